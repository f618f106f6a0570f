"""Owns going on: where a run that was cut off starts again."""

import json
import shutil
from pathlib import Path

from kr1_utils.files import write_text

# a file beside the checkpoints of a run that stopped so, until its next step
OUT_OF_MEMORY = "out_of_memory"

CHANGEABLE_AFTER_OOM = (
    "max_response_tokens",
    "tokens_per_micro_batch",
    "overlong_tokens",
    "gradient_checkpointing",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "expected",
)


def resume_point(folder: Path, settings: dict) -> str | None:
    """The last complete checkpoint in `folder` of a run with these settings; else clear
    the folder. Where several processes train, the first one looks, and tells the
    others.

    transformers writes trainer_state.json last, so a checkpoint without a readable one
    was cut off. A run that ran out of memory may go on with other values of `LOWERED`.
    """
    import accelerate  # here, for the processes that make an index need none of it

    found = [
        _resume_point(folder, settings)
        if accelerate.PartialState().is_main_process
        else None
    ]
    return accelerate.utils.broadcast_object_list(found)[0]


def _resume_point(folder: Path, settings: dict) -> str | None:
    note, stopped, text = (
        folder / "settings.json",
        folder / OUT_OF_MEMORY,
        _plain(settings),
    )
    before = note.read_text() if note.exists() else ""
    if before != text and not (
        stopped.exists()
        and before
        and _plain(json.loads(before), CHANGEABLE_AFTER_OOM)
        == _plain(settings, CHANGEABLE_AFTER_OOM)
    ):
        note.unlink(
            missing_ok=True
        )  # first, for without it nothing in the folder counts
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    write_text(note, text)
    for checkpoint in sorted(
        folder.glob("checkpoint-[0-9]*"), key=lambda c: -int(c.name.split("-")[1])
    ):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def _plain(settings: dict, without: tuple[str, ...] = ()) -> str:
    """Nested settings as one text, without some keys."""

    def keep(value):
        inside = isinstance(value, dict)
        return (
            {k: keep(v) for k, v in value.items() if k not in without}
            if inside
            else value
        )

    return json.dumps(keep(settings), sort_keys=True, default=str)
