"""TRL's loss of a group: that of the published formula, and no trace in the log."""

from types import SimpleNamespace

import pytest
import torch
from helpers import make_trainer, tiny_profile
from trl.extras import profiling

from kr1_utils import agent, trainer
from kr1_utils.engines import TransformersEngine


def loss_by_hand(policy, group, advantages):
    """−ΣₜmₜA / Σₜmₜ at ratio 1, one trajectory at a time and without padding."""
    total, count = 0.0, 0
    for t, advantage in zip(group, advantages):
        ids = torch.tensor([t.prompt_ids + t.completion_ids])
        start = len(t.prompt_ids)
        logits = policy(input_ids=ids).logits[0, start - 1 : -1]
        logp = logits.log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0]
        mask = torch.tensor(t.loss_mask)
        ratio = (logp - logp.detach()).exp()
        total = total - (mask * ratio * advantage).sum()
        count += mask.sum()
    return total / count


def loss_and_gradient(compute_loss, policy):
    policy.zero_grad()
    loss = compute_loss()
    loss.backward()
    gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("budget", [0, 900])
def test_loss_and_gradient_are_those_of_the_formula(
    tmp_path, questions, retriever, budget
):
    profile = tiny_profile()
    grpo = make_trainer(
        tmp_path, questions, retriever, profile, tokens_per_micro_batch=budget
    )
    torch.manual_seed(1)
    policy = grpo.model
    # A new adapter's output is 0: give it one, so that all of it has a gradient.
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    engine = TransformersEngine(policy, grpo.processing_class, grpo.chat.end_of_turn, 1)
    group = agent.rollout(
        engine,
        grpo.processing_class,
        retriever,
        questions["train"][:4] * 2,
        profile.limits,
        profile.system_prompt,
    )
    advantages = torch.linspace(-1, 1, 8)
    by_hand, wanted = loss_and_gradient(
        lambda: loss_by_hand(policy, group, advantages), policy
    )
    loss, found = loss_and_gradient(
        lambda: trainer.loss_of_group(grpo, group, advantages), policy
    )
    assert loss == pytest.approx(by_hand, abs=1e-5)
    assert (found - wanted).abs().max() < 1e-5
    assert wanted.norm() > 1e-3
    assert not any(grpo._metrics["train"].values())


def test_nothing_is_reported_before_a_dashboard_is_open(
    tmp_path, questions, retriever, monkeypatch
):
    def log(*_, **__):
        raise RuntimeError("Call trackio.init() before trackio.log().")

    closed = SimpleNamespace(log=log)
    monkeypatch.setattr(profiling, "trackio", closed, raising=False)
    monkeypatch.setattr(profiling, "is_trackio_available", lambda: True)
    profile = tiny_profile()
    grpo = make_trainer(tmp_path, questions, retriever, profile)
    grpo.args.report_to = ["trackio"]
    engine = TransformersEngine(
        grpo.model, grpo.processing_class, grpo.chat.end_of_turn, 1
    )
    group = agent.rollout(
        engine, grpo.processing_class, retriever, questions["train"][:2], profile.limits
    )
    trainer.loss_of_group(grpo, group, torch.tensor([1.0, -1.0]))
    assert grpo.args.report_to == ["trackio"]
