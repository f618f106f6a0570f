"""A run's folder tells its profile, its data and its weights, or what it lacks."""

import json

import pytest

from kr1_utils import runs
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve


@pytest.fixture
def folder(tmp_path):
    """A run that says nothing yet but that an adapter was trained."""
    checkpoint = tmp_path / "run" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter_config.json").write_text("{}")
    return tmp_path / "run"


def note_parameters(folder, **parameters):
    """The training notebook, as papermill leaves it."""
    executed = {"metadata": {"papermill": {"parameters": parameters}}}
    (folder / "03.ipynb").write_text(json.dumps(executed))


def note_summary(folder, profile):
    (folder / "summary.json").write_text(json.dumps({"profile": profile}))


def test_settings_and_data_are_those_that_the_training_notebook_was_run_with(folder):
    overrides = {"top_k": 1, "model": "somebody/model"}
    note_parameters(folder, PROFILE="tiny", DATA="/some/data", OVERRIDES=overrides)
    run = runs.read_run(folder)
    assert run.profile == resolve("tiny", overrides)
    assert run.data == "/some/data"
    assert run.has_adapter


def test_a_run_by_hand_has_the_profile_that_its_summary_notes(folder):
    note_summary(folder, "smol")
    run = runs.read_run(folder)
    assert run.profile == resolve("smol")
    assert run.data == ""


def test_another_profile_does_not_get_what_was_set_for_the_runs_own(folder):
    note_parameters(folder, PROFILE="tiny", OVERRIDES={"top_k": 1})
    assert runs.read_run(folder, "smol").profile == resolve("smol")
    assert runs.read_run(folder, "tiny").profile == resolve("tiny", {"top_k": 1})


@pytest.mark.parametrize("broken", ["", "no JSON", "[]", '{"metadata": {}}', "{}"])
def test_files_that_cannot_be_read_are_as_good_as_none(folder, broken):
    (folder / "03.ipynb").write_text(broken)
    (folder / "summary.json").write_text(broken)
    with pytest.raises(ValueError, match="--profile"):
        runs.read_run(folder)
    assert runs.read_run(folder, "tiny").profile == resolve("tiny")


def test_a_run_in_which_all_weights_were_trained_has_no_adapter(folder):
    (folder / "checkpoint" / "adapter_config.json").unlink()
    (folder / "checkpoint" / "config.json").write_text("{}")
    assert not runs.read_run(folder, "tiny").has_adapter


def test_a_folder_that_is_not_there_or_holds_no_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        runs.read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no trained agent"):
        runs.read_run(tmp_path / "empty")


def test_an_unknown_profile_is_named(folder):
    note_summary(folder, "tyni")
    with pytest.raises(ValueError, match="'tyni'"):
        runs.read_run(folder)


def test_tiny_without_a_run_of_its_own_is_the_shipped_one(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "data_folder", lambda: tmp_path)
    for profile in ("", "tiny"):
        run = runs.find_run(profile)
        assert run.folder == REPO / runs.SHIPPED_RUN
        assert run.profile == resolve("tiny")
        assert run.has_adapter


def test_a_run_of_ones_own_goes_before_the_shipped_one(monkeypatch, folder):
    home = folder.parent
    (home / "runs").mkdir()
    folder.rename(home / "runs" / "tiny")
    note_parameters(home / "runs" / "tiny", PROFILE="tiny", OVERRIDES={"top_k": 1})
    monkeypatch.setattr(runs, "data_folder", lambda: home)
    run = runs.find_run()
    assert run.folder == home / "runs" / "tiny"
    assert run.profile.limits.top_k == 1


def test_another_profile_without_a_run_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "data_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="kr1 run --profile smol"):
        runs.find_run("smol")


def test_a_folder_is_found_from_the_repository_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert runs.read_run(runs.SHIPPED_RUN).folder == REPO / runs.SHIPPED_RUN
