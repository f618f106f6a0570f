"""The log of a training: a row per step, and a group of trajectories per step."""

import json
import math
from types import SimpleNamespace

import pytest
from helpers import length_reward, log_of, make_trainer, tiny_profile

from kr1_utils import rewards
from kr1_utils.trainer import LOG_COLUMNS

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
    # This run has another reward function in the place of format.
    measured = set(LOG_COLUMNS) - {"format_reward"}
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
