"""The log of a training: a row per step, and a group of trajectories per step."""

import json
import math
from types import SimpleNamespace

import pytest
from helpers import length_reward, log_of, make_trainer, tiny_profile

from kr1_utils import corpus, decisions, models, rewards
from kr1_utils.trainer import LOG_COLUMNS, DecisionLog

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


def test_decisions_are_weighed_before_training_and_at_every_step(
    tmp_path, questions, retriever
):
    profile = tiny_profile()
    run = make_trainer(tmp_path, questions, retriever, profile)
    asked = corpus.some_of_each_type(questions["test_known"], 2)
    points = decisions.decision_points(
        run.processing_class, retriever, asked, profile.limits, profile.system_prompt
    )
    log = tmp_path / "decisions.jsonl"
    log.write_text('{"step": 1, "type": "of an earlier run"}\n')
    run.add_callback(DecisionLog(tmp_path, points, every=1))
    run.train()
    rows = list(corpus.read_rows(log))
    assert [row["step"] for row in rows if row["type"] == "known"] == [0, 0, 1, 1, 2, 2]
    start = [row for row in rows if row["step"] == 0]
    wanted = decisions.by_type(decisions.weigh(models.load("data/tiny-lm")[0], points))
    for row, expected in zip(start, wanted, strict=True):
        for choice in decisions.CHOICES:
            assert row[choice] == pytest.approx(expected[choice], abs=1e-5)


def test_decisions_of_steps_that_are_trained_again_are_dropped(tmp_path):
    log = DecisionLog(tmp_path, [], every=2)
    log.file.write_text('{"step": 2}\n{"step": 4}\n')
    state = SimpleNamespace(global_step=2, is_world_process_zero=True)
    log.on_train_begin(None, state, None)
    assert log.file.read_text() == '{"step": 2}\n'
