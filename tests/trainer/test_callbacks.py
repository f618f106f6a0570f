"""The log of a training: a row per step, and a group of trajectories per step."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import length_reward, log_of, make_trainer, tiny_profile

from kr1_utils import rewards
from kr1_utils.scoring import exact_match
from kr1_utils.trainer import LOG_COLUMNS

REWARDS = [rewards.accuracy_reward, length_reward]

# What every train_log.csv has at least.
PROMISED = {
    "step",
    "reward",
    "accuracy_reward",
    "format_reward",
    "loss",
    "learning_rate",
    "grad_norm",
    "entropy",
    "completion_length",
    "retrieved_length",
    "searches",
    "frac_reward_zero_std",
    "step_time",
    "peak_memory_gib",
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, questions, retriever):
    """A run of two steps: its folder, the trajectories, and the rows it told."""
    folder = tmp_path_factory.mktemp("run")
    told, groups = [], []

    def keep(trajectory, **_):
        groups.append(trajectory)
        return length_reward(trajectory)

    run = make_trainer(
        folder,
        questions,
        retriever,
        tiny_profile(accuracy_weight=0.0),
        reward_funcs=[rewards.accuracy_reward, keep],
        on_step=told.append,
    )
    run.train()
    return SimpleNamespace(run=run, folder=folder, told=told, groups=groups)


def test_log_has_exactly_the_promised_columns_and_a_row_a_step(two_steps):
    rows = log_of(two_steps.folder)
    assert list(rows[0]) == list(LOG_COLUMNS)
    assert set(LOG_COLUMNS) >= PROMISED
    assert [row["step"] for row in rows] == ["1", "2"]


def test_log_holds_finite_numbers_for_all_that_was_measured(two_steps):
    # This run has neither of these rewards.
    measured = set(LOG_COLUMNS) - {"format_reward", "search_cost", "evidence_reward"}
    for row in log_of(two_steps.folder):
        for column in measured:
            assert math.isfinite(float(row[column])), column
    assert [row["step"] for row in two_steps.told] == [1, 2]


def test_others_that_report_see_the_columns_that_are_added(two_steps):
    steps = [row for row in two_steps.run.state.log_history if "loss" in row]
    assert all("searches" in row and "truncated" in row for row in steps)
    callbacks = two_steps.run.callback_handler.callbacks
    assert type(callbacks[0]).__name__ == "StepLog"


def test_trajectories_of_one_group_a_step_are_kept(two_steps):
    lines = (two_steps.folder / "trajectories.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
    kept = [t.texts for group in two_steps.groups for t in group[:4]]
    assert [row["turns"] for row in rows] == kept


def rows_of(folder):
    """The rows of its trajectories.jsonl."""
    lines = (folder / "trajectories.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_each_trajectory_is_kept_with_what_it_earned(two_steps):
    kept = [t for group in two_steps.groups for t in group[:4]]
    for row, t in zip(rows_of(two_steps.folder), kept, strict=True):
        right = exact_match(t.answer, row["golden_answers"])
        earned = {"accuracy_reward": right, "keep": t.sampled_length / 10}
        assert row["rewards"] == pytest.approx(earned)
        # Accuracy has the weight 0 in this run.
        assert row["reward"] == pytest.approx(t.sampled_length / 10)
        assert (row["outcome"] == "right") == (right == 1)
        assert row["type"] and row["id"]


def test_advantages_of_a_group_rise_with_its_rewards_and_add_up_to_0(two_steps):
    rows = rows_of(two_steps.folder)
    for group in (rows[:4], rows[4:]):
        advantages = [row["advantage"] for row in group]
        rewards = [row["reward"] for row in group]
        mean = sum(rewards) / len(rewards)
        assert sum(advantages) == pytest.approx(0, abs=0.01)
        for advantage, reward in zip(advantages, rewards, strict=True):
            assert (advantage > 0) == (reward > mean)


def test_log_probabilities_are_those_of_the_model_that_sampled(
    two_steps, questions, retriever, tmp_path
):
    """Of step 1: the adapter then changes nothing yet."""
    fresh = make_trainer(tmp_path, questions, retriever)
    for row, t in zip(rows_of(two_steps.folder), two_steps.groups[0][:4]):
        ids = torch.tensor([t.prompt_ids + t.completion_ids])
        with torch.no_grad():
            logits = fresh.model(ids).logits[0, len(t.prompt_ids) - 1 : -1]
        every = (logits / fresh.temperature).log_softmax(-1)
        chosen = every.gather(1, torch.tensor(t.completion_ids)[:, None])[:, 0]
        wanted = [
            p
            for p, sampled in zip(chosen.tolist(), t.loss_mask, strict=True)
            if sampled
        ]
        written = [p for turn in row["logprobs"] for p in turn]
        assert written == pytest.approx(wanted, abs=2e-3)


def test_every_group_is_kept_where_a_step_has_several_rollouts(
    tmp_path, questions, retriever
):
    """Each with its own rewards: TRL keeps those of the latest rollout only."""
    profile = tiny_profile(max_steps=1, gradient_accumulation_steps=2)
    profile = replace(profile, grpo={**profile.grpo, "steps_per_generation": 1})
    run = make_trainer(tmp_path, questions, retriever, profile, reward_funcs=REWARDS)
    run.train()
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [1] * 8
    assert len({row["question"] for row in rows}) == 2
    for row in rows:
        assert row["rewards"]["length_reward"] == pytest.approx(row["sampled"] / 10)
        assert "logprobs" in row


def test_a_training_set_without_answers_is_logged_too(tmp_path, questions, retriever):
    run = make_trainer(
        tmp_path,
        questions,
        retriever,
        tiny_profile(max_steps=1),
        reward_funcs=[length_reward] * 2,
    )
    run.train_dataset = run.train_dataset.select_columns(["prompt"])
    run.train()
    rows = rows_of(tmp_path)
    assert len(rows) == 4
    assert all("outcome" not in row and row["observations"] for row in rows)
    # TRL keeps the rewards of one function of a name alone.
    assert all(row["reward"] is None for row in rows)


def test_a_cut_off_trajectory_keeps_its_tokens(tmp_path, questions, retriever):
    """TRL is given it without the id that was appended to end it."""
    profile = tiny_profile(max_steps=1, max_turns=0, max_turn_tokens=4)
    run = make_trainer(tmp_path, questions, retriever, profile, reward_funcs=REWARDS)
    run.train()
    for row in rows_of(tmp_path):
        assert row["stop"] == "truncated"
        assert [len(turn) for turn in row["logprobs"]] == [row["sampled"]] == [4]
