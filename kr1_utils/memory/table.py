"""Owns the table of forecasts: memory of Qwen2.5-7B over response lengths."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kr1_utils.files import write_text
from kr1_utils.memory.forecast import (
    OVERHEAD_GIB,
    config_of,
    longest_that_fits,
    sampling,
    step_of,
)
from kr1_utils.memory.simulate import GIB, PROMPT_TOKENS, Step, simulate
from kr1_utils.models import lora_config
from kr1_utils.profiles import resolve

MODEL = "Qwen/Qwen2.5-7B-Instruct"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
COLUMNS = ["run", "gpu_gib", "response_tokens", "training_gib", "sampling_gib"]

# The original: seven GPUs of 40 GB trained, and these are the lengths of its responses
# at the start and at the end of its figure.
ORIGINAL_GPUS = 7
ORIGINAL_GPU_GIB = 40
ORIGINAL_LENGTHS = (270, 600)


def original(config, tokens: int, rows: int = 1) -> float:
    """GiB that a training step of the original took: all weights on ZeRO-3 over seven
    GPUs, and the logits of all tokens at once.

    The frozen second model that its KL term needs is left out.

    Args:
        tokens: of a response.
        rows: trajectories on each GPU.
    """
    return _original_peak(config, tokens, rows) / GIB + OVERHEAD_GIB


def _original_peak(config, tokens: int, rows: int) -> float:
    """Bytes at the peak, without the overhead."""
    step = Step(
        rows,
        PROMPT_TOKENS + tokens,
        chunked=False,
        zero=3,
        num_gpus=ORIGINAL_GPUS,
        autocast=False,
    )
    return simulate(config, step).peak


def eight_rows(config, tokens: int) -> float:
    """GiB that TRL takes for a batch of eight: all rows in one pass, as wide as the
    longest."""
    lora = lora_config(resolve("7b"))
    step = Step(8, PROMPT_TOKENS + tokens, padded=True, lora=lora)
    return simulate(config, step).peak / GIB + OVERHEAD_GIB


def table_rows(config) -> Iterator[tuple]:
    """The rows of the table, one for each of `COLUMNS`."""
    yield from _rows_of_the_original(config, "original", 1, LENGTHS)
    yield from _rows_of_the_original(config, "original, two a GPU", 2, ())
    for tokens in LENGTHS:
        yield "eight rows", 80, tokens, eight_rows(config, tokens), None
    yield from profile_rows(config, "7b", LENGTHS, (40, 80))
    yield from profile_rows(config, "7b-4bit", LENGTHS, (24,))


def _rows_of_the_original(
    config, run: str, rows: int, lengths: tuple[int, ...]
) -> Iterator[tuple]:
    """Its own lengths, `lengths`, the longest that fits its GPUs, and one that does
    not."""
    room = (ORIGINAL_GPU_GIB - OVERHEAD_GIB) * GIB
    peak = functools.partial(_original_peak, config, rows=rows)
    longest = longest_that_fits(functools.cache(peak), 8192, room, max(LENGTHS))
    for tokens in sorted([*ORIGINAL_LENGTHS, longest, longest + 200, *lengths]):
        yield run, ORIGINAL_GPU_GIB, tokens, original(config, tokens, rows), None


def profile_rows(
    config, name: str, lengths: tuple[int, ...], gpu_sizes: tuple[int, ...]
) -> Iterator[tuple]:
    """A profile of the kit: one row for each length and size of GPU."""
    profile = resolve(name)
    for tokens in lengths:
        step = simulate(config, step_of(profile, tokens))
        training = step.peak / GIB + OVERHEAD_GIB
        for gpu_gib in gpu_sizes:
            parts, _ = sampling(
                config, profile, step.at_peak, PROMPT_TOKENS + tokens, gpu_gib
            )
            sampled = sum(parts.values()) + OVERHEAD_GIB
            yield name, gpu_gib, tokens, training, sampled


def write_table(file: Path) -> None:
    """Write the table as CSV and print it: about two minutes on one core."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {file.parent} to write into.")
    table = pd.DataFrame(table_rows(config_of(MODEL)), columns=COLUMNS).round(2)
    write_text(file, table.to_csv(index=False))
    print(table.to_string(index=False))
