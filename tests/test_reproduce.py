"""The command line: bad input is refused before any notebook runs, and a cut-off run
goes on."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kr1_utils import files, profiles, reproduce


def call(*words: str):
    """`python -m kr1_utils.reproduce` with these words, as a reader types them."""
    return subprocess.run(
        [sys.executable, "-m", "kr1_utils.reproduce", *words],
        text=True,
        capture_output=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--profile", "tyni"], "Unknown profile 'tyni'"),
        (["--set", "max_step=3"], "did you mean 'max_steps'"),
        (["--set", "max_steps=many"], "must be a int"),
        (["--set", "max_turns=-1"], "must not be negative"),
        (["--seed", "-1"], "SEED must be a whole number"),
        (["--data", "no/such/folder"], "no passages.jsonl"),
        (["--out", "LICENSE/below"], "can not be written"),
    ],
)
def test_bad_input_ends_in_one_sentence_before_any_work(words, sentence, tmp_path):
    if words[0] == "--out":
        words = ["--out", str(files.REPO / words[1])]
    else:
        words = [*words, "--out", str(tmp_path / "out")]
    done = call(*words)
    assert done.returncode == 2 and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "01.ipynb").exists()


@pytest.mark.parametrize(
    "name, gpu, words",
    [
        (
            "7b",
            "80",
            [
                "per_device_train_batch_size = 64",
                "generation_batch_size = 64",
                "bf16 = True",
                "r = 16",
                "gpu_memory_utilization = 0.45",
                "max_completion_length = 8192",
                "15.2 GB",
                "yours",
            ],
        ),
        ("7b-4bit", "24", ["four_bit = True", "transformers samples", "packed"]),
        ("1.5b", "24", ["Qwen2.5-1.5B-Instruct: 3.1 GB", "max_model_length = 4608"]),
        ("tiny", "8", ["here already", "no vLLM", "data/miniwiki/passages.jsonl"]),
    ],
)
def test_dry_run_says_what_it_takes_and_touches_nothing(name, gpu, words, tmp_path):
    def files():
        return {
            f: f.stat().st_mtime_ns
            for f in files.REPO.rglob("*")
            if not {"__pycache__", ".git"} & set(f.parts)
            and ".cache" not in f.name
            and f.is_file()
        }

    before = files()
    done = call(
        "--profile", name, "--dry-run", "--gpu-gib", gpu, "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout
        for word in [*words, "estimated, not measured", "It fits", "simulated"]
    )
    assert files() == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--set", "max_response_tokens=1000"], "smaller than one turn"),
        (["--set", "tokens_per_micro_batch=8000"], "less than one row"),
        (["--set", "overlong_tokens=9000"], "must be fewer"),
        (["--gpu-gib", "23"], "Unknown GPU size 23"),
    ],
)
def test_dry_run_refuses_what_a_run_would(words, sentence):
    done = call("--profile", "7b", "--dry-run", *words)
    assert (
        done.returncode == 2
        and sentence in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_an_unknown_argument_is_refused():
    done = call("--profil-e", "tiny")
    assert done.returncode == 2 and "unrecognized arguments" in done.stderr


def test_a_failing_notebook_is_named_with_cell_and_error(tmp_path):
    index = tmp_path / "index"
    index.mkdir(parents=True)
    (index / "foreign.txt").write_text("not an index")
    done = call("--out", str(tmp_path), "--only", "01")
    assert done.returncode == 1
    assert "01_build_index, cell" in done.stderr and "ValueError" in done.stderr
    assert (index / "foreign.txt").exists()


def test_only_one_notebook_is_run(tmp_path):
    done = call("--out", str(tmp_path), "--only", "01")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "01.ipynb").exists() and not (tmp_path / "02.ipynb").exists()


@pytest.fixture
def stamps(monkeypatch):
    """`reproduce` without running: what it notes of a notebook that leaves its files
    behind."""

    def run(number, parameters, out):
        (out / "index").mkdir(exist_ok=True)
        for name in (f"{number}.ipynb", *reproduce.REQUIRED_OUTPUTS.get(number, ())):
            (out / name).write_text("{}" if name.endswith(".json") else "step\n")
        return 1.0

    def stamp(*words):
        args = reproduce.arguments([*words])
        reproduce.reproduce(args)
        return json.loads((Path(args.out) / ".done" / f"{args.only}.json").read_text())[
            "stamp"
        ]

    monkeypatch.setattr(reproduce, "run_notebook", run)
    return stamp


def test_what_a_run_is_made_of_makes_a_notebook_outdated_when_it_changes(
    stamps, tmp_path, monkeypatch
):
    own, out = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    for name in ("passages", "train", "test"):
        shutil.copy(files.REPO / "data" / "miniwiki" / f"{name}.jsonl", own)
    words = ["--out", str(out), "--data", str(own), "--only", "03"]
    seen = [
        stamps(*words),
        stamps(*words, "--seed", "7"),
        stamps(*words, "--set", "max_steps=2"),
    ]
    with (own / "train.jsonl").open("a") as file:
        file.write("\n")
    seen.append(stamps(*words))
    tiny = profiles.PROFILES["tiny"]
    monkeypatch.setitem(profiles.PROFILES, "tiny", dataclasses.replace(tiny, lora_r=4))
    seen.append(stamps(*words))
    model = shutil.copytree(files.REPO / "data" / "tiny-lm", tmp_path / "model")
    words += ["--set", f"model={model}"]
    seen.append(stamps(*words))
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    seen.append(stamps(*words))
    assert len(set(seen)) == len(seen) == 7
    told = dataclasses.replace(
        tiny, lora_r=4, expected={"minutes": 1}
    )  # of no matter to a run
    monkeypatch.setitem(profiles.PROFILES, "tiny", told)
    assert stamps(*words) == seen[-1]


def test_what_was_scored_before_training_is_scored_again_after_it(
    stamps, tmp_path, capsys
):
    """Alone, 04 takes the shipped adapter: a run's own, made later, has the same
    settings."""
    stamps("--out", str(tmp_path), "--only", "04")
    stamps("--out", str(tmp_path), "--only", "03")
    capsys.readouterr()
    stamps("--out", str(tmp_path), "--only", "04")
    assert "complete already" not in capsys.readouterr().out
    stamps("--out", str(tmp_path), "--only", "03")
    stamps("--out", str(tmp_path), "--only", "04")
    assert capsys.readouterr().out.count("complete already") == 2


@pytest.mark.parametrize(
    "number, lost",
    [("03", "checkpoint"), ("03", "train_log.csv"), ("04", "summary.json")],
)
def test_notebook_whose_files_are_gone_is_not_complete(stamps, tmp_path, number, lost):
    stamp = stamps("--out", str(tmp_path), "--only", number)
    assert reproduce.is_complete(tmp_path, number, stamp) == 1.0
    (tmp_path / lost).unlink()
    assert reproduce.is_complete(tmp_path, number, stamp) is None


@pytest.mark.slow
def test_a_run_interrupted_in_training_goes_on_where_it_was(tmp_path):
    words = [
        "--out",
        str(tmp_path),
        "--only",
        "03",
        "--set",
        "max_steps=8",
        "--set",
        "save_steps=2",
        "--set",
        "per_device_train_batch_size=16",
    ]
    first = subprocess.Popen(
        [sys.executable, "-m", "kr1_utils.reproduce", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "train_log.csv"
    while not (log.exists() and len(pd.read_csv(log)) >= 3):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended by itself: {first.wait(timeout=0.2)}")
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(timeout=120) == 130 and "goes on from here" in first.stderr.read()
    assert any((tmp_path / "training").glob("checkpoint-*"))
    again = call(*words)
    assert again.returncode == 0, again.stderr
    assert pd.read_csv(log)["step"].tolist() == list(range(1, 9))
    assert (tmp_path / "checkpoint" / "adapter_config.json").exists()
    assert not (tmp_path / "training").exists()


@pytest.mark.slow
def test_a_training_that_was_not_yet_noted_as_complete_is_not_done_again(
    tmp_path, monkeypatch
):
    args = reproduce.arguments(
        [
            "--out",
            str(tmp_path),
            "--only",
            "03",
            "--set",
            "max_steps=2",
            "--set",
            "save_steps=2",
            "--set",
            "per_device_train_batch_size=8",
        ]
    )

    def killed(file, text):
        if file.name == "03.json":
            raise KeyboardInterrupt
        files.write_text(file, text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reproduce, "write_text", killed)
        reproduce.reproduce(args)
    log, said = (
        (tmp_path / "train_log.csv").read_bytes(),
        (tmp_path / "trajectories.jsonl").read_bytes(),
    )
    reproduce.reproduce(args)
    assert (tmp_path / "train_log.csv").read_bytes() == log  # its times, too
    assert (tmp_path / "trajectories.jsonl").read_bytes() == said
    assert not (tmp_path / "training").exists() and (tmp_path / "checkpoint").is_dir()
