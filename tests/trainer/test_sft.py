"""Supervised training: the loss and its gradient are TRL's own, for less work."""

import pytest
import torch
import trl
from datasets import Dataset
from helpers import tiny_profile

from kr1_utils import agent, cold_start, models
from kr1_utils.trainer import DemonstrationTrainer


@pytest.fixture(scope="module")
def rows(questions, retriever, tokenizer):
    profile = tiny_profile()
    asked = [q for q in questions["dev"] if q["type"] in ("single", "look_alike")][:8]
    made = cold_start.demonstrations(asked, tokenizer, retriever, profile)
    assert len(made) >= 6 and isinstance(made[0], agent.Trajectory)
    return [
        {
            "input_ids": t.prompt_ids + t.completion_ids,
            "completion_mask": [0] * len(t.prompt_ids) + t.loss_mask,
        }
        for t in made
    ]


def train(kind, rows, folder):
    """Losses and weights of two updates of three conversations each."""
    torch.manual_seed(0)
    model, tokenizer = models.load("data/tiny-lm")
    args = trl.SFTConfig(
        output_dir=str(folder),
        seed=1,
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
        # Adam would make a step of any size out of a gradient that is nearly 0.
        optim="sgd",
        learning_rate=0.1,
        max_length=None,
        logging_steps=1,
        completion_only_loss=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    run = kind(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    run.train()
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    return losses, [p.detach().clone() for p in run.model.parameters()]


def test_losses_and_weights_are_those_of_trl(rows, tmp_path):
    losses, weights = train(DemonstrationTrainer, rows, tmp_path / "ours")
    wanted, wanted_weights = train(trl.SFTTrainer, rows, tmp_path / "trl")
    assert losses == pytest.approx(wanted, abs=1e-4)
    for one, other in zip(weights, wanted_weights, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_head_sees_only_what_is_said(rows, tmp_path):
    model, tokenizer = models.load("data/tiny-lm")
    seen = []
    model.lm_head.register_forward_hook(
        lambda module, given, out: seen.append(out.shape[-2])
    )
    args = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        max_length=None,
        completion_only_loss=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    DemonstrationTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows[:1]),
        processing_class=tokenizer,
    ).train()
    assert seen == [sum(rows[0]["completion_mask"])]
