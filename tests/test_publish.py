"""What is published can be loaded, tells no path of this machine, and is uploaded
whole."""

import json
import os
import shutil

import pytest
import torch
from helpers import kr1
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from uploads import loopback_hub

from kr1_utils import cli, models, publish, runs
from kr1_utils.files import REPO

BASE = "somebody/base-model"
NAME = "ada/my-agent"


@pytest.fixture
def run(tmp_path):
    """A copy of the shipped run, whose base model lies in a folder."""
    return shutil.copytree(REPO / runs.SHIPPED_RUN, tmp_path / "run")


def trained_from(run, base):
    """The run, with an adapter that names another base model."""
    file = run / "checkpoint" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return run


def dry_run(run, *words):
    """`kr1 push … --dry-run`; returns its status."""
    return cli.main(["push", str(run), "--to", NAME, "--dry-run", *words])


def same_logits(one, other):
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        return torch.allclose(one(ids).logits, other(ids).logits, atol=1e-4)


# --- the folder ---


def test_an_adapter_on_a_folder_is_merged_into_a_model_that_loads_alone(run, tiny):
    assert dry_run(run) == 0
    published = AutoModelForCausalLM.from_pretrained(run / "hub")
    AutoTokenizer.from_pretrained(run / "hub")
    trained, _ = models.load("data/tiny-lm", run / "checkpoint")
    assert same_logits(published, trained)
    # It is another model than the one before training.
    assert not same_logits(published, tiny[0])


def test_an_adapter_on_a_model_of_the_hub_goes_alone_and_names_it(run):
    # As on the machine that trained it from a download.
    trained_from(run, "/home/ada/base-model")
    assert dry_run(run, "--base", BASE, "--license", "mit") == 0
    config = json.loads((run / "hub" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE
    weights = "adapter_model.safetensors"
    uploaded = (run / "hub" / weights).read_bytes()
    assert uploaded == (run / "checkpoint" / weights).read_bytes()
    network, _ = models.load("data/tiny-lm")
    PeftModel.from_pretrained(network, run / "hub")


def test_a_model_of_which_all_weights_were_trained_is_uploaded_as_it_is(run, tiny):
    shutil.rmtree(run / "checkpoint")
    models.save_adapter(*tiny, run / "checkpoint")
    assert dry_run(run, "--license", "mit") == 0
    assert same_logits(AutoModelForCausalLM.from_pretrained(run / "hub"), tiny[0])


@pytest.mark.parametrize("words", [[], ["--base", BASE, "--license", "mit"]])
def test_no_file_tells_a_path_of_this_machine(run, words):
    if words:
        trained_from(run, str(run))
    dry_run(run, *words)
    for file in (run / "hub").iterdir():
        assert str(run).encode() not in file.read_bytes(), file.name
        assert str(REPO).encode() not in file.read_bytes(), file.name


def test_a_dry_run_lists_each_file_with_its_size_and_leaves_the_run_as_it_was(
    run, capsys
):
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    dry_run(run)
    printed = capsys.readouterr().out
    for file in (run / "hub").iterdir():
        (told,) = [t for t in printed.splitlines() if t.startswith(f"{file.name} ")]
        number, unit = told.split()[1:]
        size = float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]
        assert size == pytest.approx(file.stat().st_size, rel=0.05)
    assert all(file.read_bytes() == content for file, content in before.items())
    assert not (run / "hub.part").exists()


def test_a_second_time_takes_the_place_of_the_first(run):
    dry_run(run)
    (run / "hub" / "left_over.txt").write_text("of an earlier time")
    dry_run(run)
    assert not (run / "hub" / "left_over.txt").exists()
    assert (run / "hub" / "README.md").is_file()


# --- what is refused ---


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--to", "my-agent"], "must be USER/NAME"),
        (["--to", "a/b/c"], "a/b/c"),
        (["--to", "ada/my agent"], "my agent"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_bad_name_is_refused_in_one_sentence(run, words, sentence, capsys):
    assert cli.main(["push", str(run), "--dry-run", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (run / "hub").exists()


def test_a_run_that_was_not_evaluated_is_refused(run, capsys):
    (run / "summary.json").unlink()
    assert dry_run(run, "--base", BASE) == 2
    assert "summary.json" in capsys.readouterr().err


def test_a_base_model_that_is_gone_must_be_named(run, capsys):
    trained_from(run, "/no/such/folder")
    assert dry_run(run) == 2
    assert "--base" in capsys.readouterr().err


def test_a_licence_that_nobody_tells_must_be_named(run, capsys):
    trained_from(run, BASE)
    # The tests' hub is offline.
    assert dry_run(run) == 2
    assert "--license" in capsys.readouterr().err
    assert not (run / "hub").exists()


# --- the upload ---


@pytest.fixture
def hub():
    with loopback_hub() as hub:
        yield hub


def push(hub, run, *words, token=None):
    """`kr1 push` in a process of its own: the address is read when it starts."""
    own = hub.environment(run.parent / "home")
    if token is not None:
        own["HF_TOKEN"] = token
    return kr1("push", str(run), "--to", NAME, *words, env={**os.environ, **own})


def test_all_files_are_uploaded_and_the_licence_is_the_base_models(run, hub):
    hub.licences[BASE] = "apache-2.0"
    done = push(hub, trained_from(run, BASE))
    assert done.returncode == 0, done.stderr
    made = {file.name: file.read_bytes() for file in (run / "hub").iterdir()}
    assert hub.files == {NAME: made}
    assert "adapter_model.safetensors" in made
    assert b"license: apache-2.0" in made["README.md"]
    assert f"{hub.url}/{NAME}" in done.stdout
    assert "visibility" not in hub.created[0]


def test_a_second_upload_of_a_model_that_is_there_changes_its_files(run, hub):
    hub.files[NAME] = {"README.md": b"of an earlier time", "notes.txt": b"kept"}
    words = ["--license", "mit", "--private"]
    done = push(hub, trained_from(run, BASE), *words)
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["visibility"] == "private"
    assert hub.files[NAME]["notes.txt"] == b"kept"
    card = (run / "hub" / "README.md").read_bytes()
    assert hub.files[NAME]["README.md"] == card


def test_without_a_token_nothing_is_made(run, hub):
    done = push(hub, trained_from(run, BASE), "--license", "mit", token="")
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr
    assert not (run / "hub").exists()


@pytest.mark.parametrize(
    "refused, status", [("/api/repos/create", 403), ("/commit/", 500)]
)
def test_what_the_hub_refuses_is_said_in_one_sentence(run, hub, refused, status):
    hub.refuses[refused] = status
    done = push(hub, trained_from(run, BASE), "--license", "mit")
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-1]
    assert NAME in said and str(status) in said
    assert "Traceback" not in done.stderr
    assert not hub.files.get(NAME)


def test_a_hub_that_is_not_there_is_said_in_one_sentence(run):
    with loopback_hub() as gone:
        pass
    done = push(gone, trained_from(run, BASE), "--license", "mit")
    assert done.returncode == 2
    assert NAME in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_settings_of_a_request_are_those_of_the_words(monkeypatch, capsys):
    seen = []

    def remember(request, is_dry):
        seen.append((request, is_dry))
        return "done"

    monkeypatch.setattr(publish, "push", remember)
    words = "--to a/b --base c/d --license mit --private --dry-run"
    assert cli.main(["push", "out", *words.split()]) == 0
    wanted = publish.Request("out", "a/b", base="c/d", licence="mit", private=True)
    assert seen == [(wanted, True)]
    assert capsys.readouterr().out == "done\n"
