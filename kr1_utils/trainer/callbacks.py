"""Owns the log of a training: train_log.csv, trajectories.jsonl, decisions.jsonl."""

import math
from pathlib import Path

from kr1_utils import decisions
from kr1_utils.agent import Trajectory
from kr1_utils.extras import missing
from kr1_utils.files import append_log, append_rows, drop_from_step
from kr1_utils.memory.measure import peak_gib
from kr1_utils.trainer.resume import OUT_OF_MEMORY

try:
    from transformers import TrainerCallback
except ImportError:
    TrainerCallback = missing("train")

# Column of train_log.csv: the name under which TRL logs it.
LOG_COLUMNS = {
    "step": "step",
    "reward": "reward",
    "accuracy_reward": "rewards/accuracy_reward/mean",
    "format_reward": "rewards/format_reward/mean",
    "search_cost": "rewards/search_cost/mean",
    "evidence_reward": "rewards/evidence_reward/mean",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "retrieved_length": "retrieved_length",
    "searches": "searches",
    "truncated": "truncated",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "step_time": "step_time",
    "peak_memory_gib": "peak_memory_gib",
}


class StepLog(TrainerCallback):
    """Writes one row of train_log.csv per training step, and tells `trainer.on_step`.

    It must come before the callbacks that report to TensorBoard and the like, so that
    they see the column it adds.
    """

    def __init__(self, trainer, folder: Path):
        self.trainer = trainer
        self.file = folder / "train_log.csv"

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs or not self.trainer.model.training:
            return
        logs["peak_memory_gib"] = peak_gib()
        if not state.is_world_process_zero:
            return
        values = {**logs, "step": state.global_step}
        row = {
            column: values.get(name, math.nan) for column, name in LOG_COLUMNS.items()
        }
        append_log(self.file, row)
        # The run has come further than where it ran out of memory.
        (Path(args.output_dir) / OUT_OF_MEMORY).unlink(missing_ok=True)
        if self.trainer.on_step:
            self.trainer.on_step(row)


class TrajectoryLog(TrainerCallback):
    """Keeps one group of trajectories per training step in trajectories.jsonl."""

    def __init__(self, folder: Path):
        self.file = folder / "trajectories.jsonl"

    def on_train_begin(self, args, state, control, **_):
        """Drop what an earlier run wrote for the steps that are trained now."""
        if state.is_world_process_zero:
            drop_from_step(self.file, state.global_step + 1)

    def add(self, step: int, trajectories: list[Trajectory]) -> None:
        rows = [{"step": step, **t.to_record()} for t in trajectories]
        append_rows(self.file, rows)


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
