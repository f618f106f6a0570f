"""Owns resuming: where a run that was cut off starts again, with which questions."""

import json
import shutil
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import fsync, write_text

try:
    from transformers import TrainerCallback
except ImportError:
    TrainerCallback = missing("train")

# A file beside the checkpoints of a run that ran out of memory, until its next step.
OUT_OF_MEMORY = "out_of_memory"
# Settings that may change when such a run goes on.
CHANGEABLE_AFTER_OOM = (
    "max_response_tokens",
    "tokens_per_micro_batch",
    "overlong_tokens",
    "gradient_checkpointing",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
)

# Settings that may always change: a served index may have moved to another address.
CHANGEABLE = ("retriever",)


def resume_point(folder: Path, settings: dict) -> str | None:
    """The last complete checkpoint in `folder` of a run with these settings.

    A folder of a run with other settings is cleared. Those in `CHANGEABLE` do not
    count, nor do those in `CHANGEABLE_AFTER_OOM` if the run ran out of memory. Where
    several processes train, the first one looks, and tells the others.

    Args:
        settings: everything that a run depends on, as plain values; kept in `folder`.
    """
    import accelerate

    found = [None]
    if accelerate.PartialState().is_main_process:
        found = [_resume_point(folder, settings)]
    return accelerate.utils.broadcast_object_list(found)[0]


def _resume_point(folder: Path, settings: dict) -> str | None:
    note = folder / "settings.json"
    if not _goes_on(folder, note, settings):
        note.unlink(missing_ok=True)  # first: without it nothing in the folder counts
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    write_text(note, _as_text(settings))
    checkpoints = sorted(folder.glob("checkpoint-[0-9]*"), key=_step_of, reverse=True)
    for checkpoint in checkpoints:
        if _is_whole(checkpoint):
            return str(checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _goes_on(folder: Path, note: Path, settings: dict) -> bool:
    """Whether the run that left `note` is this one."""
    if not note.exists():
        return False
    try:
        before = json.loads(note.read_text())
    except ValueError:
        return False
    changeable = CHANGEABLE
    if (folder / OUT_OF_MEMORY).exists():
        changeable += CHANGEABLE_AFTER_OOM
    return _as_text(before, changeable) == _as_text(settings, changeable)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _is_whole(checkpoint: Path) -> bool:
    """Whether trainer_state.json can be read: transformers writes it last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def _as_text(settings: dict, without: tuple[str, ...] = ()) -> str:
    """Nested settings as one text, without some keys."""

    def keep(value):
        if not isinstance(value, dict):
            return value
        return {k: keep(v) for k, v in value.items() if k not in without}

    return json.dumps(keep(settings), sort_keys=True, default=str)


class EpochOrder(TrainerCallback):
    """Gives each epoch an order of questions that depends on the seed and its number.

    TRL's sampler draws its orders one after another, so a run that goes on in the
    second epoch would ask in the order of the first.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_):
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):  # one process's share of the batches
            sampler = sampler.batch_sampler
        order = getattr(sampler.sampler, "generator", None)
        if order is not None:  # None where questions are asked in the file's order
            order.manual_seed(args.seed + int(state.epoch or 0))


class StopsAtTheLastStep:
    """Mixed into a trainer: a checkpoint of the last step is the end.

    transformers would train one step more: it looks at `should_training_stop` only
    after a step, and resets it before training, so that no callback can say so.
    """

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)


class DurableCheckpoints:
    """Mixed into a trainer: a checkpoint is noted as complete once all of it is there.

    transformers writes random states before trainer_state.json, which says that the
    checkpoint is complete, and calls `on_save` after it: too late to wait in.
    """

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        fsync(*Path(output_dir).rglob("*"), output_dir)
        self.accelerator.wait_for_everyone()
