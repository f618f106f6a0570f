"""Owns the alarms: a callback that sees a run collapse."""

import math
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median

from kr1_utils.agent import Trajectory
from kr1_utils.extras import missing
from kr1_utils.files import display_path, write_jsonl

try:
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError:
    torch = TrainerCallback = missing("train")
    ExportableState = missing("train")

WINDOW = 5  # steps


@dataclass(frozen=True)
class Sign:
    """A sign of collapse: a number of each step, and the bound it must not pass."""

    name: str
    bound: float
    message: str
    below: bool = False  # whether it is the low values that are bad
    window: int = WINDOW  # steps over which the number is averaged


# No bound was reached in our runs that learned. (Of the gradient's norm, single steps
# reached 37 times the median there.)
SIGNS = (
    Sign(
        "frac_reward_zero_std",
        0.95,
        "groups are without spread: nothing tells good samples from bad ones",
    ),
    Sign("truncated", 0.3, "conversations are cut off before an answer"),
    Sign("repetition", 0.5, "turns repeat themselves"),
    Sign("empty_thoughts", 0.5, "thoughts are empty"),
    Sign("entropy", 0.002, "entropy is near 0: all samples say the same", below=True),
    Sign(
        "grad_norm",
        50.0,
        "the gradient explodes: its norm is this many times the median of earlier"
        " steps",
        window=1,
    ),
)


def repetition(trajectory: Trajectory) -> float:
    """Share of a trajectory's runs of four sampled tokens that stood in the same turn
    before."""
    written = zip(trajectory.loss_mask, trajectory.completion_ids)
    turns = [
        [token for _, token in tokens]
        for mask, tokens in groupby(written, key=itemgetter(0))
        if mask
    ]
    runs = []
    for number, ids in enumerate(turns):
        for start in range(len(ids) - 3):
            runs.append((number, tuple(ids[start : start + 4])))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def empty_thoughts(trajectory: Trajectory) -> float:
    """Share of a trajectory's turns without a thought."""
    empty = sum(not turn.thought for turn in trajectory.turns)
    return empty / max(1, len(trajectory.turns))


class CollapseAlarms(TrainerCallback, ExportableState):
    """Warns when a sign of collapse appears, saves a checkpoint, and stops if asked to.

    The trajectories of that step are written to `folder`/alarm-<step>.jsonl. The
    checkpoint goes, as all do, when `save_total_limit` later ones are there. A sign
    warns once, and again only after it has gone; checkpoints keep what was seen. A
    gradient that is not a finite number leaves no checkpoint, for the weights are
    spoiled.

    Args:
        trainer: a `KnowledgeGRPOTrainer`; its `add_callback` adds the alarms.
        stop: whether an alarm ends training.
    """

    def __init__(self, trainer, folder: str | Path, stop: bool = False):
        self.trainer = trainer
        self.folder = Path(folder)
        self.stop = stop
        self.raised: list[dict] = []  # step, sign, value
        self._forget()

    def _forget(self) -> None:
        self.seen: dict[str, list[float]] = {sign.name: [] for sign in SIGNS}
        self.norms: list[float] = []  # of the gradients of all steps, where finite
        self.on: set[str] = set()  # names of the signs that are past their bound

    def state(self) -> dict:
        """What a checkpoint keeps (transformers' `ExportableState`)."""
        kept = {"seen": self.seen, "norms": self.norms, "on": sorted(self.on)}
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args, state, control, **_):
        self._forget()
        kept = state.stateful_callbacks.get(type(self).__name__)
        if kept and state.global_step:  # by the checkpoint that the run goes on from
            self.seen = kept["attributes"]["seen"]
            self.norms = kept["attributes"]["norms"]
            self.on = set(kept["attributes"]["on"])
        if self.stop and self.on:
            control.should_training_stop = True
        if state.is_world_process_zero:
            self._remove_later_files(state.global_step)

    def _remove_later_files(self, step: int) -> None:
        """Files of an earlier run, or of steps that are trained again now, go."""
        for file in self.folder.glob("alarm-*.jsonl"):
            if int(file.stem.removeprefix("alarm-")) > step:
                file.unlink()

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs or not self.trainer.model.training:
            return
        spoiled = not math.isfinite(logs["grad_norm"])
        before = self.on
        self.on = set()
        for name, value in self._values(logs).items():
            sign = next(s for s in SIGNS if s.name == name)
            mean = self._mean(sign, value)
            exploded = spoiled and name == "grad_norm"
            if exploded or (mean is not None and _is_past(sign, mean)):
                self.on.add(name)
                if name not in before:
                    self._warn(state, sign, mean)
        if self.on - before and self._can_go_on_from_here(args):
            control.should_save = True
        if spoiled:
            control.should_save = False
        if self.stop and self.on:
            control.should_training_stop = True

    def _values(self, logs: dict) -> dict[str, float]:
        """This step's value of every sign, the same in every process."""
        values = {sign.name: logs.get(sign.name) for sign in SIGNS}
        values["repetition"] = self._mean_of_all(repetition)
        values["empty_thoughts"] = self._mean_of_all(empty_thoughts)
        norm = logs["grad_norm"]
        usual = median(self.norms) if len(self.norms) >= WINDOW else math.inf
        values["grad_norm"] = norm / max(usual, 1e-3)
        if 0 < norm < math.inf:  # 0: no group had spread
            self.norms.append(norm)
        return values

    def _mean_of_all(self, measure) -> float:
        """Mean of a measure over the step's trajectories in all processes."""
        own = [measure(trajectory) for trajectory in self.trainer.trajectories]
        accelerator = self.trainer.accelerator
        mean = torch.tensor(own, device=accelerator.device).mean()
        return accelerator.reduce(mean, reduction="mean").item()

    def _mean(self, sign: Sign, value: float) -> float | None:
        """The sign's mean over its window; None until that many steps were seen."""
        seen = [*self.seen[sign.name], value][-sign.window :]
        self.seen[sign.name] = seen
        return fmean(seen) if len(seen) == sign.window else None

    def _can_go_on_from_here(self, args) -> bool:
        """Whether all sampled trajectories are trained on: no checkpoint keeps them."""
        generation = args.steps_per_generation * args.num_iterations
        return self.trainer._step % generation == 0

    def _warn(self, state, sign: Sign, value: float) -> None:
        step = state.global_step
        self.raised.append({"step": step, "sign": sign.name, "value": value})
        if not state.is_world_process_zero:
            return
        file = self.folder / f"alarm-{step}.jsonl"
        write_jsonl(file, [t.to_record() for t in self.trainer.trajectories])
        where = display_path(file)
        print(
            f"step {step}: {sign.message} ({sign.name} {value:.3g}, see {where})",
            flush=True,
        )


def _is_past(sign: Sign, value: float) -> bool:
    return value < sign.bound if sign.below else value > sign.bound


def watch(trainer, folder: str | Path, stop: bool = False) -> CollapseAlarms:
    """Add alarms to a trainer, in place of those that are there already.

    A notebook's cell may be run twice, and each sign is to be seen once.
    """
    trainer.remove_callback(CollapseAlarms)
    alarms = CollapseAlarms(trainer, folder, stop)
    trainer.add_callback(alarms)
    return alarms
