"""Owns the log-probabilities of the log: taken from passes that the loss makes anyway.

Only vLLM says how likely its tokens were. For others they are seen here, at the update
for which they were sampled.
"""

from kr1_utils.extras import missing

try:
    import torch
except ImportError:
    torch = missing("train")


class ShowsLogprobs:
    """Mixed into a GRPOTrainer: its `trajectory_log` sees what the loss computes."""

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, *args, **kwargs
    ):
        computed = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, *args, **kwargs
        )
        # Without a gradient it may be the reference model.
        if torch.is_grad_enabled():
            logprobs = computed[0].detach()
            self.trajectory_log.see(input_ids, attention_mask, logprobs)
        return computed
