"""The log of decisions: before training, every few steps, and after a resume."""

from types import SimpleNamespace

import pytest
from helpers import make_trainer, tiny_profile

from kr1_utils import corpus, decisions, models
from kr1_utils.trainer import DecisionLog


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
