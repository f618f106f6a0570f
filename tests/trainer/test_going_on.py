"""A run that was cut off goes on as if it had not been."""

from dataclasses import replace

import pytest
import torch
from helpers import (
    TIMED,
    TINY,
    keep_batches,
    length_reward,
    log_of,
    make_trainer,
    tiny_profile,
)

from kr1_utils.trainer import LOG_COLUMNS

REWARDS = [length_reward, length_reward]


class CutOffError(Exception):
    pass


def cut_off_in(step):
    """An `on_step` that ends the run with an error once this step is logged."""

    def stop(row):
        if row["step"] == step:
            raise CutOffError

    return stop


@pytest.fixture
def folders(tmp_path):
    """Of an undisturbed run, and of one that is cut off."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    return whole, cut


def test_resumed_run_logs_what_an_undisturbed_one_logs(folders, questions, retriever):
    whole, cut = folders
    profile = tiny_profile(max_steps=4, warmup_steps=3)
    arguments = (questions, retriever, profile)
    make_trainer(whole, *arguments).train()
    with pytest.raises(CutOffError):
        make_trainer(cut, *arguments, on_step=cut_off_in(3)).train()
    # Step 3 is not in any checkpoint.
    assert [row["step"] for row in log_of(cut)] == ["1", "2", "3"]
    make_trainer(cut, *arguments).train(resume_from_checkpoint=True)
    rows, wanted = log_of(cut), log_of(whole)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    for row, other in zip(rows, wanted, strict=True):
        for column in set(LOG_COLUMNS) - set(TIMED):
            value = pytest.approx(float(other[column]), rel=1e-5, abs=1e-7, nan_ok=True)
            assert float(row[column]) == value, column
    said = [(folder / "trajectories.jsonl").read_text() for folder in folders]
    assert said[0] == said[1]


# Five steps are an epoch: a checkpoint where the second begins, and one in it.
@pytest.mark.parametrize("save_steps", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_run_that_goes_on_in_a_later_epoch_is_the_undisturbed_one(
    save_steps, folders, questions, retriever
):
    whole, cut = folders
    profile = tiny_profile(max_steps=8, save_steps=save_steps)
    few = {"train": questions["train"][:10]}  # two in a step
    arguments = (few, retriever, profile)
    undisturbed = make_trainer(whole, *arguments, reward_funcs=REWARDS)
    batches = keep_batches(undisturbed)
    undisturbed.train()
    with pytest.raises(CutOffError):
        make_trainer(
            cut, *arguments, reward_funcs=REWARDS, on_step=cut_off_in(7)
        ).train()
    again = make_trainer(cut, *arguments, reward_funcs=REWARDS)
    again.train(resume_from_checkpoint=True)
    for row, wanted in zip(log_of(cut), log_of(whole), strict=True):
        for column in set(row) - set(TIMED):
            assert row[column] == wanted[column], column
    said = [(folder / "trajectories.jsonl").read_text() for folder in folders]
    assert said[0] == said[1]
    asked = [batch["prompt_ids"][::4].tolist() for batch in batches]
    assert asked[:3] != asked[5:]  # each epoch has an order of its own


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_number_of_epochs_may_stand_in_place_of_steps(
    shuffle, tmp_path, questions, retriever
):
    changes = {"max_steps": -1, "num_train_epochs": 2, "shuffle_dataset": shuffle}
    profile = replace(TINY, grpo={**TINY.grpo, **changes})
    few = {"train": questions["train"][:4]}
    make_trainer(tmp_path, few, retriever, profile).train()
    assert [row["step"] for row in log_of(tmp_path)] == ["1", "2", "3", "4"]


def test_a_trainer_that_trains_twice_keeps_its_trajectories_apart(
    tmp_path, questions, retriever
):
    run = make_trainer(tmp_path, questions, retriever, tiny_profile(max_steps=1))
    run.train()
    run.train()
    lines = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    assert len(lines) == 4


def test_a_checkpoint_of_the_last_step_is_the_end(tmp_path, questions, retriever):
    """transformers would go on for one step more."""
    run = make_trainer(tmp_path, questions, retriever, reward_funcs=REWARDS)
    run.train()
    rows = log_of(tmp_path)
    trained = {
        name: parameter.detach().clone()
        for name, parameter in run.model.named_parameters()
        if "lora" in name
    }
    again = make_trainer(tmp_path, questions, retriever, reward_funcs=REWARDS)
    again.train(resume_from_checkpoint=str(tmp_path / "state" / "checkpoint-2"))
    assert log_of(tmp_path) == rows
    assert len(rows) == 2
    loaded = dict(again.model.named_parameters())
    assert all(torch.equal(loaded[name], p) for name, p in trained.items())
    assert any(p.abs().sum() > 0 for name, p in trained.items() if "lora_B" in name)
