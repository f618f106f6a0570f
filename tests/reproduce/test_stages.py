"""The stages of a run: what makes one outdated, and a run that was cut off goes on."""

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
import papermill
import pytest
from helpers import kr1

from kr1_utils import files, profiles
from kr1_utils.reproduce import (
    STAGES,
    Request,
    is_complete,
    reproduce,
    show,
    stages,
)

# Those of `tiny`, which needs no cold start.
TINY_STAGES = stages.stages_of(profiles.PROFILES["tiny"])
NUMBERS = [stage.number for stage in TINY_STAGES]
BY_NUMBER = {stage.number: stage for stage in STAGES}


@pytest.fixture
def executed(monkeypatch):
    """Numbers of the notebooks "executed" so far: they only leave their files."""
    numbers = []

    def execute_notebook(source, output, parameters, **_):
        number = Path(source).name[:2]
        numbers.append(number)
        out = Path(parameters["OUT"])
        (out / "index").mkdir(exist_ok=True)
        Path(output).write_text("{}")
        for name in BY_NUMBER[number].outputs:
            (out / name).write_text("{}" if name.endswith(".json") else "step\n")

    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    return numbers


def stamp_after(request: Request) -> str:
    """What is noted of the one notebook that a request runs."""
    reproduce(request)
    record = Path(request.out) / ".done" / f"{request.only}.json"
    return json.loads(record.read_text())["stamp"]


def test_a_cold_start_is_a_stage_only_where_the_run_has_to_make_it():
    made = dataclasses.replace(profiles.PROFILES["tiny"], cold_start=True)
    numbers = [stage.number for stage in stages.stages_of(made)]
    assert numbers == ["01", "A3", "02", "03", "04", "05"]
    given = dataclasses.replace(made, cold_start="some/folder")
    assert [s.number for s in stages.stages_of(given)] == NUMBERS


def test_every_stage_has_a_notebook_and_invalidates_only_later_ones():
    order = [stage.number for stage in STAGES]
    for place, stage in enumerate(STAGES):
        assert (files.REPO / "notebooks" / f"{stage.notebook}.ipynb").is_file()
        assert stage.notebook.startswith(stage.number)
        assert set(stage.invalidates) <= set(order[place + 1 :])


def test_all_notebooks_run_in_order_and_finished_ones_are_skipped(
    executed, tmp_path, capsys
):
    summary = reproduce(Request(out=str(tmp_path)))
    assert executed == NUMBERS
    assert set(summary["seconds"]) == {*NUMBERS, "total"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    capsys.readouterr()
    assert reproduce(Request(out=str(tmp_path))) == summary
    assert executed == NUMBERS
    assert capsys.readouterr().out.count("complete already") == len(NUMBERS)


def test_tilde_in_out_and_data_is_the_home_folder(executed, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(files.REPO / "data" / "miniwiki", home / "mine")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    reproduce(Request(out="~/out", data="~/mine", only="01"))
    assert executed == ["01"]
    assert (home / "out" / "01.ipynb").is_file()
    assert not (tmp_path / "~").exists()


def test_with_a_served_index_none_is_built_and_no_passages_are_needed(
    executed, tmp_path, capsys
):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("train", "test"):
        shutil.copy(files.REPO / "data" / "miniwiki" / f"{name}.jsonl", own)
    request = Request(out=str(tmp_path / "out"), data=str(own))
    with pytest.raises(FileNotFoundError, match="no passages.jsonl"):
        reproduce(request)
    overrides = {"retriever": "http://127.0.0.1:8000"}
    request = dataclasses.replace(request, overrides=overrides)
    reproduce(request)
    assert executed == ["02", "03", "04", "05"]
    shutil.rmtree(tmp_path / "out" / "index")
    capsys.readouterr()
    reproduce(request)
    assert executed == ["02", "03", "04", "05"]
    said = capsys.readouterr().out
    assert said.count("complete already") == 4
    assert "01_build_index       not needed" in said


def test_force_runs_finished_notebooks_again(executed, tmp_path):
    reproduce(Request(out=str(tmp_path), only="02"))
    reproduce(Request(out=str(tmp_path), only="02", force=True))
    assert executed == ["02", "02"]


def test_what_a_run_is_made_of_makes_a_notebook_outdated_when_it_changes(
    executed, tmp_path, monkeypatch
):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("passages", "train", "test"):
        shutil.copy(files.REPO / "data" / "miniwiki" / f"{name}.jsonl", own)
    request = Request(out=str(tmp_path / "out"), data=str(own), only="03")
    other_seed = dataclasses.replace(request, seed=7)
    fewer_steps = dataclasses.replace(request, overrides={"max_steps": 2})
    seen = [stamp_after(request), stamp_after(other_seed), stamp_after(fewer_steps)]

    with (own / "train.jsonl").open("a") as file:
        file.write("\n")
    seen.append(stamp_after(request))

    changed = dataclasses.replace(profiles.PROFILES["tiny"], lora_r=4)
    monkeypatch.setitem(profiles.PROFILES, "tiny", changed)
    seen.append(stamp_after(request))

    model = shutil.copytree(files.REPO / "data" / "tiny-lm", tmp_path / "model")
    own_model = dataclasses.replace(request, overrides={"model": str(model)})
    seen.append(stamp_after(own_model))
    with (model / "config.json").open("a") as file:
        file.write("\n")
    seen.append(stamp_after(own_model))

    assert len(set(seen)) == len(seen) == 7
    assert stamp_after(own_model) == seen[-1]


def test_code_of_an_earlier_notebook_makes_later_ones_outdated(tmp_path, monkeypatch):
    notebooks = shutil.copytree(files.REPO / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(stages, "shipped", lambda path: tmp_path / path)

    def stamps():
        found, previous = [], ""
        for stage in TINY_STAGES:
            previous = stages.stamp(stage, previous, {})
            found.append(previous)
        return found

    before = stamps()
    file = notebooks / "02_agent_loop.ipynb"
    notebook = json.loads(file.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    notebook["cells"][0]["source"] = ["Another explanation."]
    file.write_text(json.dumps(notebook))
    assert stamps() == before

    last_code = [c for c in notebook["cells"] if c["cell_type"] == "code"][-1]
    last_code["source"] = ["pass"]
    file.write_text(json.dumps(notebook))
    changed = stamps()
    assert changed[0] == before[0]
    assert all(new != old for new, old in zip(changed[1:], before[1:], strict=True))


def test_how_training_is_spread_makes_only_training_and_later_ones_outdated(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("num_machines: 1")
    two, four = stages.Spread(2, 32), stages.Spread(4, 16)
    configured = stages.Spread(2, 32, str(config))
    seen = [
        stages.stamp(BY_NUMBER["03"], "", {}, spread)
        for spread in (None, two, four, configured)
    ]
    config.write_text("num_machines: 2")
    seen.append(stages.stamp(BY_NUMBER["03"], "", {}, configured))
    assert len(set(seen)) == 5


def test_what_was_scored_before_training_is_scored_again_after_it(executed, tmp_path):
    """Alone, 04 takes the shipped adapter: a run's own, made later, has the same
    settings."""
    for number in ("04", "03", "04", "03", "04"):
        reproduce(Request(out=str(tmp_path), only=number))
    assert executed == ["04", "03", "04"]


@pytest.mark.parametrize(
    "number, lost",
    [
        ("03", "checkpoint"),
        ("03", "train_log.csv"),
        ("04", "summary.json"),
        ("02", "02.ipynb"),
    ],
)
def test_notebook_whose_files_are_gone_is_not_complete(
    executed, tmp_path, number, lost
):
    stamp = stamp_after(Request(out=str(tmp_path), only=number))
    assert is_complete(BY_NUMBER[number], tmp_path, stamp)
    assert not is_complete(BY_NUMBER[number], tmp_path, "another stamp")
    (tmp_path / lost).unlink()
    assert not is_complete(BY_NUMBER[number], tmp_path, stamp)


def test_a_second_run_is_kept_out_until_the_first_one_ends(executed, tmp_path):
    request = Request(out=str(tmp_path), only="01")
    fake = papermill.execute_notebook

    def run_twice(*words, **more):
        with pytest.raises(OSError, match="is another run's, which has not ended"):
            reproduce(request)
        fake(*words, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papermill, "execute_notebook", run_twice)
        reproduce(request)
    reproduce(request)
    assert executed == ["01"]


def test_a_run_that_failed_lets_the_next_one_in(executed, tmp_path, monkeypatch):
    request = Request(out=str(tmp_path), only="01")

    def fail(*_, **__):
        raise RuntimeError("the kernel died")

    with monkeypatch.context() as patch:
        patch.setattr(papermill, "execute_notebook", fail)
        with pytest.raises(RuntimeError, match="01_build_index: the kernel died"):
            reproduce(request)
    reproduce(request)
    assert executed == ["01"]


def test_a_notebook_that_is_not_part_of_the_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose one of 01, 02, 03, 04, 05"):
        reproduce(Request(out=str(tmp_path / "out"), only="06"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "steps_done, stays", [(2, False), (1, True)], ids=["finished", "stopped early"]
)
def test_training_state_goes_only_when_training_is_finished(
    executed, tmp_path, steps_done, stays
):
    request = Request(out=str(tmp_path), only="03", overrides={"max_steps": 2})
    reproduce(request)
    (tmp_path / "training").mkdir()
    rows = "".join(f"{step}\n" for step in range(1, steps_done + 1))
    (tmp_path / "train_log.csv").write_text(f"step\n{rows}")
    reproduce(request)
    assert (tmp_path / "training").exists() == stays
    assert executed == ["03"]


def test_summary_shows_a_dash_where_a_number_is_not_known():
    rows = show({"em_before": 0.5}).splitlines()
    assert rows[1].split()[-2:] == ["0.500", "–"]


SHORT = {"save_steps": 2, "per_device_train_batch_size": 16}


@pytest.mark.slow
def test_a_run_interrupted_in_training_goes_on_where_it_was(tmp_path):
    settings = {**SHORT, "max_steps": 8}
    sets = [f"--set={key}={value}" for key, value in settings.items()]
    words = ["run", "--out", str(tmp_path), "--only", "03", *sets]
    first = subprocess.Popen(
        [sys.executable, "-m", "kr1_utils", *words],
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
    assert first.wait(timeout=120) == 130
    # Bars, and one sentence: no traceback of the kernel's sockets.
    said = [line for line in first.stderr.read().splitlines() if line.strip()]
    assert said[-1] == "Interrupted: the same command goes on from here."
    assert [line for line in said[:-1] if not line.startswith("GRPO:")] == []
    assert any((tmp_path / "training").glob("checkpoint-*"))
    again = kr1(*words)
    assert again.returncode == 0, again.stderr
    assert pd.read_csv(log)["step"].tolist() == list(range(1, 9))
    assert (tmp_path / "checkpoint" / "adapter_config.json").exists()
    assert not (tmp_path / "training").exists()


@pytest.mark.slow
def test_a_training_that_was_not_yet_noted_as_complete_is_not_done_again(
    tmp_path, monkeypatch
):
    overrides = {**SHORT, "max_steps": 2, "per_device_train_batch_size": 8}
    request = Request(out=str(tmp_path), only="03", overrides=overrides)

    def killed(file, text):
        if file.name == "03.json":
            raise KeyboardInterrupt
        files.write_text(file, text)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce(request)
    made = [tmp_path / "train_log.csv", tmp_path / "trajectories.jsonl"]
    # The log holds the times of its steps too.
    before = [file.read_bytes() for file in made]
    reproduce(request)
    assert [file.read_bytes() for file in made] == before
    assert not (tmp_path / "training").exists()
    assert (tmp_path / "checkpoint").is_dir()
