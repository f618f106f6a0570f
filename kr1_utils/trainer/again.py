"""Owns training again with the same trainer: it begins as if it had never trained.

Whoever stops a notebook's training cell and runs it again keeps the trainer, with half
a step in it: weights that moved, trajectories that wait, half-filled metrics.
"""

import random

import numpy as np

from kr1_utils.extras import missing

try:
    import torch
except ImportError:
    torch = missing("train")

# A copy of the trained weights is kept in RAM; more than this is not copied.
MOST_BYTES = 4 * 2**30


class TrainsAgain:
    """Mixed into a GRPOTrainer: `train` may be called again, also after Ctrl-C."""

    _beginning = None  # of the first training

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train from the beginning, or from a checkpoint, whatever was trained before.

        Raises:
            RuntimeError: if the weights were too large to keep a copy of, and there is
                no checkpoint to go on from.
        """
        if self._beginning is None:
            self._beginning = Beginning(self.model)
        else:
            self._forget()
            if not resume_from_checkpoint:
                self._beginning.restore(self.model)
        return super().train(resume_from_checkpoint, **kwargs)

    def _forget(self) -> None:
        """Drop what an earlier training, perhaps in the middle of a step, has left."""
        self.model.zero_grad()
        self.optimizer = None
        self.lr_scheduler = None
        self._buffered_inputs = None
        self._step = 0
        self._current_train_step_time = 0.0
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        for metrics in self._metrics.values():
            metrics.clear()
        if self.use_vllm:
            self._last_loaded_step = -1  # vLLM holds other weights now


class Beginning:
    """Trained weights and random states at the beginning of a training."""

    def __init__(self, model):
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        size = sum(p.numel() * p.element_size() for _, p in trained)
        self.weights = None
        if size <= MOST_BYTES:
            self.weights = {
                name: p.detach().to("cpu", copy=True) for name, p in trained
            }
        self.python = random.getstate()
        self.numpy = np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = None
        if torch.cuda.is_available():
            self.cuda = torch.cuda.get_rng_state_all()

    def restore(self, model) -> None:
        if self.weights is None:
            raise RuntimeError(
                "This trainer has trained before, and its weights are too large to keep"
                " a copy of: restart the notebook to train again."
            )
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in self.weights.items():
                parameters[name].copy_(weight)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
