"""Owns TRL's loss of one group of trajectories, to be compared with a loss by hand."""

from kr1_utils.agent import Trajectory
from kr1_utils.extras import missing
from kr1_utils.trainer.grpo import KnowledgeGRPOTrainer, fields_for_trl

try:
    import torch
    from torch.nn.utils.rnn import pad_sequence
except ImportError:
    torch = pad_sequence = missing("train")


def loss_of_group(
    trainer: KnowledgeGRPOTrainer,
    trajectories: list[Trajectory],
    advantages: torch.Tensor,
) -> torch.Tensor:
    """The loss that `trainer` would step down, without a trace in its log.

    Set gradients to zero before this call: with a budget of tokens it runs backward
    through all parts but the last itself.

    Args:
        trajectories: G of them.
        advantages: (G,) one each.
    """
    batch = _as_batch(trainer, trajectories, advantages)
    metrics = trainer._metrics["train"]
    logged_before = {name: list(values) for name, values in metrics.items()}
    trainer.model.train()
    # TRL divides by it, and sets it when training begins.
    trainer.current_gradient_accumulation_steps = 1
    # TRL reports how long a loss takes, and a dashboard only opens with the training.
    report_to, trainer.args.report_to = trainer.args.report_to, []
    try:
        loss = trainer.compute_loss(trainer.model, batch)
    finally:
        trainer.args.report_to = report_to
    metrics.clear()
    metrics.update(logged_before)
    return loss


def _as_batch(trainer, trajectories, advantages) -> dict:
    """The trajectories as TRL lays them out: prompts end where completions begin."""
    fields = fields_for_trl(trajectories)
    filler = trainer.processing_class.pad_token_id
    device = trainer.accelerator.device

    def laid_out(rows, side, value):
        tensors = [torch.tensor(row) for row in rows]
        padded = pad_sequence(
            tensors, batch_first=True, padding_value=value, padding_side=side
        )
        return padded.to(device)

    def ones(rows):
        return [[1] * len(row) for row in rows]

    prompts, completions = fields["prompt_ids"], fields["completion_ids"]
    return {
        "prompt_ids": laid_out(prompts, "left", filler),
        "prompt_mask": laid_out(ones(prompts), "left", 0),
        "completion_ids": laid_out(completions, "right", filler),
        "completion_mask": laid_out(ones(completions), "right", 0),
        "tool_mask": laid_out(fields["env_mask"], "right", 0),
        "advantages": advantages.to(device),
        "num_items_in_batch": torch.tensor(sum(map(sum, fields["env_mask"]))),
    }
