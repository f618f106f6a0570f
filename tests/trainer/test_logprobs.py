"""The log sees the log-probabilities that the loss computes, in whatever parts."""

import json

import pytest
from helpers import make_trainer, tiny_profile

from kr1_utils.records import rounded


@pytest.mark.parametrize("budget", [0, 400], ids=["whole", "in parts"])
def test_every_sampled_token_has_one_however_the_batch_is_cut(
    budget, tmp_path, questions, retriever
):
    profile = tiny_profile(max_steps=1)
    run = make_trainer(
        tmp_path, questions, retriever, profile, tokens_per_micro_batch=budget
    )
    passes = []
    see = run.trajectory_log.see

    def see_and_count(input_ids, attention_mask, logprobs):
        passes.append(len(input_ids))
        see(input_ids, attention_mask, logprobs)

    run.trajectory_log.see = see_and_count
    run.train()
    assert (len(passes) > 1) == bool(budget)
    lines = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        logprobs = [p for turn in row["logprobs"] for p in turn]
        assert len(logprobs) == row["sampled"]
        assert all(p is not None and rounded(p) <= 0 for p in logprobs)


def test_the_reference_model_is_not_taken_for_the_one_that_is_trained(
    tmp_path, questions, retriever
):
    profile = tiny_profile(max_steps=1, beta=0.1)
    run = make_trainer(tmp_path, questions, retriever, profile)
    gradients = []
    run.trajectory_log.see = lambda *_: gradients.append(1)
    run.train()
    assert len(gradients) == 1
