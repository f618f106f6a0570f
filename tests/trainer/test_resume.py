"""A run goes on from its last whole checkpoint, and only if it is the same run."""

import pytest

from kr1_utils import trainer
from kr1_utils.trainer.resume import CHANGEABLE_AFTER_OOM, OUT_OF_MEMORY

SETTINGS = {"seed": 1, "profile": {"model": "m", "limits": {"max_response_tokens": 9}}}
LOWERED = {**SETTINGS, "profile": {"model": "m", "limits": {"max_response_tokens": 7}}}


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with SETTINGS that has started."""
    folder = tmp_path / "training"
    assert trainer.resume_point(folder, SETTINGS) is None
    return folder


def add_checkpoint(folder, step, state="{}"):
    """Add the checkpoint of a step; `state` None leaves trainer_state.json out."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    return str(checkpoint)


def test_run_goes_on_from_its_last_whole_checkpoint_and_broken_ones_go(folder):
    first = add_checkpoint(folder, 20)
    last = add_checkpoint(folder, 100)
    add_checkpoint(folder, 120, state=None)
    add_checkpoint(folder, 140, state='{"half')
    assert trainer.resume_point(folder, SETTINGS) == last
    assert {str(left) for left in folder.glob("checkpoint-*")} == {first, last}


@pytest.mark.parametrize("settings", [{**SETTINGS, "seed": 2}, LOWERED])
def test_run_with_other_settings_starts_anew(folder, settings):
    add_checkpoint(folder, 20)
    assert trainer.resume_point(folder, settings) is None
    assert not list(folder.glob("checkpoint-*"))


def test_run_goes_on_where_its_served_index_has_moved(folder):
    checkpoint = add_checkpoint(folder, 20)
    for url in ("http://a:8000", "http://b:8000", ""):
        profile = {**SETTINGS["profile"], "retriever": url}
        moved = {**SETTINGS, "profile": profile}
        assert trainer.resume_point(folder, moved) == checkpoint
    assert trainer.resume_point(folder, {**moved, "seed": 2}) is None


@pytest.mark.parametrize("note", ["", '{"half', "[]", "null"])
def test_run_whose_note_cannot_be_read_starts_anew(folder, note):
    add_checkpoint(folder, 20)
    (folder / "settings.json").write_text(note)
    assert trainer.resume_point(folder, SETTINGS) is None


def test_run_without_a_note_of_its_settings_starts_anew(folder):
    add_checkpoint(folder, 20)
    (folder / "settings.json").unlink()
    assert trainer.resume_point(folder, SETTINGS) is None
    assert not list(folder.glob("checkpoint-*"))


def test_run_that_ran_out_of_memory_goes_on_with_lower_settings(folder):
    assert "max_response_tokens" in CHANGEABLE_AFTER_OOM
    checkpoint = add_checkpoint(folder, 20)
    (folder / OUT_OF_MEMORY).touch()
    assert trainer.resume_point(folder, LOWERED) == checkpoint
    # These are the run's settings from now on.
    (folder / OUT_OF_MEMORY).unlink()
    assert trainer.resume_point(folder, LOWERED) == checkpoint
    assert trainer.resume_point(folder, SETTINGS) is None


def test_run_that_ran_out_of_memory_does_not_go_on_as_another_experiment(folder):
    add_checkpoint(folder, 20)
    (folder / OUT_OF_MEMORY).touch()
    assert trainer.resume_point(folder, {**LOWERED, "seed": 2}) is None
