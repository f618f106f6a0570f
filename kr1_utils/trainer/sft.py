"""Owns supervised training on the tokens that a model is to say, and no others."""

from kr1_utils.extras import missing

try:
    import torch
    from trl import SFTTrainer
except ImportError:
    torch = SFTTrainer = missing("train")

# Of a label that does not count.
IGNORED = -100


class DemonstrationTrainer(SFTTrainer):
    """TRL's SFTTrainer, with the head applied to the tokens that count.

    TRL applies it to every token of a conversation. Most of them were read, not said,
    and the head of a small model with a large vocabulary is a third of its work.

    It takes one conversation at a time (`per_device_train_batch_size=1`), so that
    nothing is padding; `gradient_accumulation_steps` of them make an update.
    """

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        """Mean cross-entropy of what is said, over all conversations of an update."""
        if return_outputs:
            raise ValueError("DemonstrationTrainer gives no outputs beside the loss.")
        [labels] = inputs["labels"]
        # A token is predicted at the position before it.
        wanted = labels[1:]
        positions = (wanted != IGNORED).nonzero()[:, 0]
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            logits_to_keep=positions,
            use_cache=False,
        ).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits.float(), wanted[positions], reduction="sum"
        )
        said = len(positions) if num_items_in_batch is None else num_items_in_batch
        return loss / said
