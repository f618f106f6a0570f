"""The head scores what the model sampled: the loss and the log stay what they are."""

from dataclasses import replace

import pytest
import torch
from helpers import length_reward, make_trainer, tiny_profile

from kr1_utils import rewards, trainer


class ScoresAllTokens(trainer.KnowledgeGRPOTrainer):
    """Trains as TRL does: with the log-probabilities of retrieved tokens too."""

    _sampled = property(lambda self: None, lambda self, sampled: None)


def train(folder, questions, retriever, kind, **settings):
    """Train on two batches, the second update of each with ratios other than 1.

    Returns:
        what TRL logged of each update, and how many tokens each pass with a gradient
        had labels for.
    """
    profile = tiny_profile(per_device_train_batch_size=8, save_steps=50)
    more = {"max_steps": 4, "num_iterations": 2, "optim": "sgd", "learning_rate": 0.5}
    profile = replace(profile, grpo=profile.grpo | more | settings)
    torch.manual_seed(0)
    functions = [rewards.accuracy_reward, length_reward]
    run = make_trainer(
        folder, questions, retriever, profile, kind, reward_funcs=functions
    )
    labelled = []

    def count_labels(module, args, kwargs):
        if "labels" in kwargs and torch.is_grad_enabled():
            labelled.append((kwargs["labels"] != -100).sum().item())

    run.model.register_forward_pre_hook(count_labels, with_kwargs=True)
    run.train()
    return [row for row in run.state.log_history if "loss" in row], labelled


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_what_is_logged_is_what_trl_logs(beta, tmp_path, questions, retriever):
    made = {
        kind: train(tmp_path / kind.__name__, questions, retriever, kind, beta=beta)
        for kind in (trainer.KnowledgeGRPOTrainer, ScoresAllTokens)
    }
    (rows, sampled), (rows_of_trl, scored_by_trl) = made.values()
    assert len(rows) == len(rows_of_trl) == 4
    for row, other in zip(rows, rows_of_trl):
        assert set(row) == set(other)
        for name, value in row.items():
            if "time" not in name and "memory" not in name:
                assert value == pytest.approx(other[name], abs=2e-5, nan_ok=True), name
    # The completion's length is that of its sampled tokens.
    assert sampled[0] == 8 * rows[0]["completions/mean_length"]
    assert sampled[0] < 0.5 * scored_by_trl[0]
