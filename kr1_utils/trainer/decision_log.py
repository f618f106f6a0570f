"""Owns the log of decisions: what the model would do, while it is trained."""

from pathlib import Path

from kr1_utils import decisions
from kr1_utils.extras import missing
from kr1_utils.files import append_rows, drop_from_step

try:
    from transformers import TrainerCallback
except ImportError:
    TrainerCallback = missing("train")


class DecisionLog(TrainerCallback):
    """Weighs the model's decisions before training and every few steps.

    decisions.jsonl gets one row per step, type of question and number of searches made,
    with the mean probability of each choice.

    Args:
        folder: where decisions.jsonl grows.
        points: the places where something is to be decided, `decision_points`.
        every: how many steps lie between two looks.
    """

    def __init__(self, folder: Path, points: list[decisions.DecisionPoint], every: int):
        self.file = Path(folder) / "decisions.jsonl"
        self.points = points
        self.every = every

    def on_train_begin(self, args, state, control, model=None, **_):
        if not state.is_world_process_zero:
            return
        drop_from_step(self.file, state.global_step + 1)
        if state.global_step == 0:
            drop_from_step(self.file, 0)
            self._look(0, model)

    def on_step_end(self, args, state, control, model=None, **_):
        is_due = state.global_step % self.every == 0
        if is_due and state.is_world_process_zero:
            self._look(state.global_step, model)

    def _look(self, step: int, model) -> None:
        means = decisions.by_type(decisions.weigh(model, self.points))
        append_rows(self.file, [{"step": step, **row} for row in means])
