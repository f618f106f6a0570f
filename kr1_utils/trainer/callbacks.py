"""Owns the log of a training: train_log.csv and trajectories.jsonl."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from kr1_utils.agent import Trajectory
from kr1_utils.evaluation import outcome
from kr1_utils.extras import missing
from kr1_utils.files import append_log, append_rows, drop_from_step
from kr1_utils.memory.measure import peak_gib
from kr1_utils.records import conversation, rounded
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
    """Keeps one group of trajectories per rollout in trajectories.jsonl.

    They are written when their step ends: with what they earned, their advantage, and
    the log-probability of each sampled token, from vLLM or as the loss computed it.

    Attributes:
        latest: the rows that were written last.
    """

    def __init__(self, trainer, folder: Path):
        self.trainer = trainer
        self.file = folder / "trajectories.jsonl"
        self.latest: list[dict] = []
        self._held: list[_Held] = []
        self._finished: list[dict] = []
        self._numbers: dict[str, int] = {}

    def on_train_begin(self, args, state, control, **_):
        """Drop what an earlier run wrote for the steps that are trained now."""
        self._held = []
        self._finished = []
        if state.is_world_process_zero:
            drop_from_step(self.file, state.global_step + 1)

    def hold(
        self, step: int, trajectories: list[Trajectory], ids: list[list[int]]
    ) -> None:
        """Keep the first group of a rollout until its step ends.

        Args:
            step: in which it was made, from 1.
            ids: of prompt and completion, one list per trajectory, as TRL trains on it.
        """
        self._finish_held()
        self._held = [
            _Held(step, t, tuple(i), t.logprobs) for t, i in zip(trajectories, ids)
        ]

    def see(self, input_ids, attention_mask, logprobs) -> None:
        """Take the log-probabilities of held trajectories from a pass of the loss.

        Args:
            input_ids: (B, P + T), prompts padded on the left, completions on the right.
            attention_mask: (B, P + T), 0 where `input_ids` is padding.
            logprobs: (B, T) of the completions' tokens.
        """
        wanted = [held for held in self._held if held.logprobs is None]
        if not wanted:
            return
        rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        seen = {
            tuple(i for i, counts in zip(ids, mask) if counts): number
            for number, (ids, mask) in enumerate(rows)
        }
        for held in wanted:
            if held.ids in seen:
                held.logprobs = logprobs[seen[held.ids]].tolist()

    def on_step_end(self, args, state, control, **_):
        self._finish_held()
        if self._finished:
            append_rows(self.file, self._finished)
            self.latest = self._finished
            self._finished = []

    def _finish_held(self) -> None:
        """Make rows of what is held, now that TRL knows what each has earned."""
        logs = self.trainer._logs
        for number, held in enumerate(self._held):
            earned = {
                name: rounded(values[number])
                for name, values in logs["rewards"].items()
            }
            self._finished.append(
                {
                    "step": held.step,
                    **held.trajectory.to_record(),
                    **self._details(held),
                    "rewards": earned,
                    "reward": self._weighted(earned),
                    "advantage": rounded(logs["advantages"][number]),
                }
            )
        self._held = []

    def _weighted(self, earned: dict[str, float | None]) -> float | None:
        """What all rewards come to; None where functions share a name, for TRL keeps
        the last one's rewards alone."""
        weights = self.trainer.reward_weights.tolist()
        if len(earned) < len(weights):
            return None
        parts = zip(weights, earned.values(), strict=True)
        return rounded(sum(w * r for w, r in parts if r is not None))

    def _details(self, held: "_Held") -> dict:
        """How it ended, what was read, and the single tokens."""
        question = held.trajectory.question | self._known(held.trajectory.question)
        details = {
            name: value
            for name, value in question.items()
            if name in ("id", "type", "golden_answers")
        }
        if "golden_answers" in question:
            details["outcome"] = outcome(replace(held.trajectory, question=question))
        tokenizer = self.trainer.processing_class
        return details | conversation(held.trajectory, tokenizer, held.logprobs)

    def _known(self, question: dict) -> dict:
        """What the training set knows of a question, named as questions name it."""
        questions = self.trainer.train_dataset
        if not self._numbers:
            self._numbers = {text: n for n, text in enumerate(questions["prompt"])}
        number = self._numbers.get(question["question"])
        row = {} if number is None else questions[number]
        if "question_id" in row:
            row["id"] = row["question_id"]
        return row


@dataclass
class _Held:
    """A trajectory until the end of its step."""

    step: int
    trajectory: Trajectory
    # Of prompt and completion, as TRL trains on them.
    ids: tuple[int, ...]
    # (T,) of the completion's tokens, once they are known.
    logprobs: list[float] | None
