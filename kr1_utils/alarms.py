"""Owns the alarms: a callback that sees a run collapse."""

import math
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median

import torch
from transformers import TrainerCallback

from kr1_utils.agent import Trajectory
from kr1_utils.files import display_path, write_jsonl

WINDOW = 5  # steps whose mean a sign is

# sign: its bound, and what it means; none was reached in our runs that learned
LIMITS = {
    "frac_reward_zero_std": (
        0.95,
        "groups are without spread: nothing tells good samples from bad ones",
    ),
    "truncated": (0.3, "conversations are cut off before an answer"),
    "repetition": (0.5, "turns repeat themselves"),
    "empty_thoughts": (0.5, "thoughts are empty"),
    "entropy": (0.002, "entropy is near 0: all samples say the same"),
    "grad_norm": (
        25.0,
        (
            "the gradient explodes: its norm is so many times the median of the steps"
            " before"
        ),
    ),
}


def repetition(t: Trajectory) -> float:
    """Share of a trajectory's runs of four sampled tokens that stood in the same turn
    before."""
    written = groupby(zip(t.loss_mask, t.completion_ids), key=itemgetter(0))
    turns = [[token for _, token in turn] for mask, turn in written if mask]
    runs = [
        (n, tuple(ids[i : i + 4]))
        for n, ids in enumerate(turns)
        for i in range(len(ids) - 3)
    ]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def empty_thoughts(t: Trajectory) -> float:
    """Share of a trajectory's turns without a thought."""
    return sum(not turn.thought for turn in t.turns) / max(1, len(t.turns))


class CollapseAlarms(TrainerCallback):
    """Warns when a sign of collapse appears, saves a checkpoint, and stops where asked.

    The trajectories of that step are written to `folder`/alarm-<step>.jsonl; the
    checkpoint goes, as all do, when `save_total_limit` later ones are there. A sign
    warns once, and again only after it has gone; checkpoints keep what was seen. A
    gradient that is no number leaves no checkpoint, for the weights are spoiled.
    `trainer.add_callback` adds it; `stop` ends training at an alarm."""

    def __init__(self, trainer, folder: str | Path, stop: bool = False):
        self.trainer, self.folder, self.stop = trainer, Path(folder), stop
        self.raised: list[dict] = []  # step, sign, value
        self._seen: dict[str, list[float]] = {sign: [] for sign in LIMITS}
        self._on: set[str] = set()

    def _values(self, logs: dict) -> dict[str, float]:
        """This step's value of every sign; the mean over all processes where each has
        its own."""
        own = [
            [f(t) for t in self.trainer.trajectories]
            for f in (repetition, empty_thoughts)
        ]
        local = torch.tensor(own, device=self.trainer.accelerator.device).mean(
            1, keepdim=True
        )
        all_of = (
            self.trainer.accelerator.reduce(local, reduction="mean").flatten().tolist()
        )
        norms = self._seen["grad_norm"]
        usual = median(norms) if len(norms) >= WINDOW else math.inf
        norms += [logs["grad_norm"]] * (
            0 < logs["grad_norm"] < math.inf
        )  # 0: no group had spread
        return {
            **logs,
            "repetition": all_of[0],
            "empty_thoughts": all_of[1],
            "grad_norm": logs["grad_norm"] / max(usual, 1e-3),
        }

    def on_train_begin(self, args, state, control, **_):
        kept = state.stateful_callbacks.get(
            "alarms", {"seen": self._seen, "on": []}
        )  # of a checkpoint
        self._seen, self._on = kept["seen"], set(kept["on"])
        control.should_training_stop |= self.stop and bool(self._on)
        if state.is_world_process_zero:
            for file in self.folder.glob(
                "alarm-*.jsonl"
            ):  # of an earlier run, or of steps to be done again
                if int(file.stem.removeprefix("alarm-")) > state.global_step:
                    file.unlink()

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs or not self.trainer.model.training:
            return
        values, on, spoiled = (
            self._values(logs),
            set(),
            not math.isfinite(logs["grad_norm"]),
        )
        for sign, (bound, _) in LIMITS.items():
            if sign == "grad_norm":
                value, hit = values[sign], spoiled or values[sign] > bound
            else:
                self._seen[sign] = [*self._seen[sign][1 - WINDOW :], values[sign]]
                value, full = fmean(self._seen[sign]), len(self._seen[sign]) == WINDOW
                hit = full and (value < bound if sign == "entropy" else value > bound)
            if hit and sign not in self._on:
                self._raise(state, sign, value)
            on |= {sign} if hit else set()
        between = self.trainer._step % (
            args.steps_per_generation * args.num_iterations
        )  # no place to go on
        control.should_save = (
            control.should_save or bool(on - self._on) and not between
        ) and not spoiled
        control.should_training_stop |= self.stop and bool(on)
        self._on, state.stateful_callbacks["alarms"] = (
            on,
            {"seen": self._seen, "on": sorted(on)},
        )

    def _raise(self, state, sign: str, value: float) -> None:
        self.raised.append({"step": state.global_step, "sign": sign, "value": value})
        if state.is_world_process_zero:
            file = self.folder / f"alarm-{state.global_step}.jsonl"
            write_jsonl(file, [t.to_record() for t in self.trainer.trajectories])
            print(
                f"step {state.global_step}: {LIMITS[sign][1]} ({sign} {value:.3g}, see"
                f" {display_path(file)})",
                flush=True,
            )
