"""The trainer: TRL is given what was sampled, and trains on that alone."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    TINY,
    keep_batches,
    length_reward,
    log_of,
    make_trainer,
    tiny_profile,
)

from kr1_utils import models, rewards, trainer
from kr1_utils.profiles import Limits, resolve
from kr1_utils.trainer import KnowledgeGRPOTrainer


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, questions, retriever):
    """A run of two steps: its trainer and folder, TRL's batches, and trajectories."""
    folder = tmp_path_factory.mktemp("run")
    groups = []

    def keep(trajectory, **_):
        groups.append(trajectory)
        return length_reward(trajectory)

    run = make_trainer(
        folder,
        questions,
        retriever,
        tiny_profile(accuracy_weight=0.0),
        reward_funcs=[rewards.accuracy_reward, keep],
    )
    batches = keep_batches(run)
    run.train()
    return SimpleNamespace(run=run, folder=folder, batches=batches, groups=groups)


def test_log_counts_what_the_trajectories_hold(two_steps):
    for row, group in zip(log_of(two_steps.folder), two_steps.groups, strict=True):
        counted = {
            "completion_length": [t.sampled_length for t in group],
            "searches": [t.searches for t in group],
            "retrieved_length": [t.retrieved_length for t in group],
            "truncated": [t.stop == "truncated" for t in group],
        }
        for column, values in counted.items():
            mean = sum(values) / len(values)
            assert float(row[column]) == pytest.approx(mean, abs=1e-4), column


def test_mask_that_trl_trains_on_is_the_loss_mask(two_steps):
    assert len(two_steps.batches) == len(two_steps.groups) == 2
    for batch, group in zip(two_steps.batches, two_steps.groups, strict=True):
        trained_on = batch["completion_mask"] * batch["tool_mask"]
        for i, t in enumerate(group):
            n = len(t.completion_ids)
            padding = [0] * (trained_on.shape[1] - n)
            assert batch["completion_ids"][i, :n].tolist() == t.completion_ids
            assert trained_on[i].tolist() == t.loss_mask + padding
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
            assert prompt.tolist() == t.prompt_ids


def test_rows_of_a_group_share_their_question(two_steps):
    for trajectories in two_steps.groups:
        asked = [t.question["question"] for t in trajectories]
        first, second = set(asked[:4]), set(asked[4:])
        assert len(asked) == 8
        assert len(first) == len(second) == 1
        assert first != second


def gradient(run, batch):
    run.model.zero_grad()
    run._compute_loss(run.model, batch).backward()
    gradients = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    run.model.zero_grad()
    return gradients


def test_gradient_ignores_tokens_that_were_appended(two_steps):
    run = two_steps.run
    run.model.train()
    batch = copy.deepcopy(dict(two_steps.batches[-1]))
    batch["advantages"] = torch.ones_like(batch["advantages"])
    # The last token of a completion is nobody's input: it is a label only.
    appended_labels = [
        (row, len(t.completion_ids) - 1)
        for row, t in enumerate(two_steps.groups[-1])
        if t.loss_mask[-1] == 0
    ]
    assert appended_labels
    changed = copy.deepcopy(batch)
    for row, last in appended_labels:
        changed["completion_ids"][row, last] = 300
    for a, b in zip(gradient(run, batch), gradient(run, changed), strict=True):
        assert torch.equal(a, b)
    for one in (batch, changed):
        for row, last in appended_labels:
            one["tool_mask"][row, last] = 1  # if it were trained on, it would show
    pairs = zip(gradient(run, batch), gradient(run, changed), strict=True)
    assert not all(torch.allclose(a, b) for a, b in pairs)


def test_training_changes_the_adapter_and_not_the_base(two_steps):
    model = two_steps.run.model
    base, _ = models.load("data/tiny-lm")
    trained = model.base_model.model.model.embed_tokens.weight
    assert torch.equal(trained, base.model.embed_tokens.weight)
    adapter = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert any(p.abs().max() > 0 for p in adapter)


def test_reward_functions_are_given_every_promised_field(
    tmp_path, questions, retriever
):
    given = {}

    def look(**columns):
        given.update(columns)
        return [0.0] * len(columns["prompts"])

    profile = tiny_profile(max_steps=1, per_device_train_batch_size=4)
    run = make_trainer(
        tmp_path, questions, retriever, profile, reward_funcs=[look, look]
    )
    run.train()
    wanted = {*trainer.FIELDS, "trajectory", "golden_answers", "question_id"}
    assert wanted <= set(given)
    assert {len(given[name]) for name in wanted} == {4}
    assert given["answer"] == [t.answer for t in given["trajectory"]]


def test_limits_that_disagree_with_trls_are_refused(tmp_path, tiny, retriever):
    sentence = "max_completion_length=220 must equal max_response_tokens=700"
    with pytest.raises(ValueError, match=sentence):
        KnowledgeGRPOTrainer(
            tiny[0],
            retriever=retriever,
            limits=Limits(3, 2, 60, 120, 700),
            folder=tmp_path,
            args=trainer.grpo_config(TINY, 42, tmp_path),
            processing_class=tiny[1],
        )


def test_profile_reaches_trl_as_it_is():
    profile = resolve("tiny", {"accuracy_weight": 0.25})
    config = trainer.grpo_config(profile, 7, "x")
    assert config.seed == 7
    assert config.reward_weights == [0.25, 1.0]
    assert config.max_completion_length == profile.limits.max_response_tokens
    for key, value in profile.grpo.items():
        assert getattr(config, key) == ([] if value == "none" else value), key
