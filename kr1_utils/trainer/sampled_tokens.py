"""Owns which tokens the head scores in the loss: those that the model sampled.

TRL scores every token of a completion, and masks afterwards what was not sampled. Most
of a search agent's completion was retrieved, and where the vocabulary is large the head
takes a good part of a step.
"""

# Log-probabilities that TRL computed before the loss, to compare the loss's own with.
_COMPUTED_BEFORE = (
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
)


class ScoresSampledTokens:
    """Mixed into a GRPOTrainer: its loss has log-probabilities and entropies where
    `tool_mask` is 1, and 0 elsewhere. Neither the loss nor what is logged changes."""

    _sampled = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        sampled = inputs.get("tool_mask")
        if sampled is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        before = {
            name: inputs[name] * sampled
            for name in _COMPUTED_BEFORE
            if inputs.get(name) is not None
        }
        self._sampled = sampled
        try:
            return super().compute_loss(model, {**inputs, **before}, *args, **kwargs)
        finally:
            self._sampled = None

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        if self._sampled is not None:
            model = _with_labels_where(self._sampled, model)
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


def _with_labels_where(sampled, model):
    """The model, without the labels of what was not sampled.

    Args:
        sampled: (B, T) 1 or 0 for each token of the completions, which end the rows of
            the labels (B, P + T).
    """

    def forward(labels, **inputs):
        prompt = labels.shape[1] - sampled.shape[1]
        labels = labels.clone()
        labels[:, prompt:].masked_fill_(sampled == 0, -100)
        return model(labels=labels, **inputs)

    return forward
