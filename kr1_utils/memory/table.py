"""Owns the table of forecasts: memory of Qwen2.5-7B over response lengths."""

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

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
CONFIG = config_of("Qwen/Qwen2.5-7B-Instruct")
LORA = lora_config(resolve("7b"))


def gib(step: Step) -> float:
    return simulate(CONFIG, step).peak / GIB + OVERHEAD_GIB


def original(tokens: int, rows: int = 1) -> float:
    """All weights on ZeRO-3 over 7 GPUs, so many trajectories on each, logits of all
    tokens at once; without the frozen second model that its KL term takes."""
    return gib(
        Step(
            rows,
            PROMPT_TOKENS + tokens,
            chunked=False,
            zero=3,
            num_gpus=7,
            autocast=False,
        )
    )


def eight_rows(tokens: int) -> float:
    """What TRL does with a batch of eight: all rows in one pass, as wide as the
    longest."""
    return gib(Step(8, PROMPT_TOKENS + tokens, padded=True, lora=LORA))


def rows():
    """(run, GPU in GiB, response tokens, GiB while training, GiB while sampling)"""
    room = (40 - OVERHEAD_GIB) * GIB
    for run, together, lengths in (
        ("original", 1, LENGTHS),
        ("original, two a GPU", 2, ()),
    ):
        last = longest_that_fits(
            lambda n, of=together: (original(n, of) - OVERHEAD_GIB) * GIB,
            8192,
            room,
            16384,
        )
        for tokens in sorted([270, 600, last, last + 200, *lengths]):
            yield run, 40, tokens, original(tokens, together), None
    for tokens in LENGTHS:
        yield "eight rows", 80, tokens, eight_rows(tokens), None
    for name, sizes in (("7b", (40, 80)), ("7b-4bit", (24,))):
        profile = resolve(name)
        for tokens in LENGTHS:
            live = simulate(CONFIG, step_of(profile, tokens))
            for size in sizes:
                sampled, _ = sampling(
                    CONFIG, profile, live.at_peak, PROMPT_TOKENS + tokens, size
                )
                yield (
                    name,
                    size,
                    tokens,
                    live.peak / GIB + OVERHEAD_GIB,
                    sum(sampled.values()) + OVERHEAD_GIB,
                )


def write_table(file: Path) -> None:
    """Write the table as CSV: about ten minutes on one core."""
    columns = ["run", "gpu_gib", "response_tokens", "training_gib", "sampling_gib"]
    table = pd.DataFrame(rows(), columns=columns).round(2)
    write_text(file, table.to_csv(index=False))
    print(table.to_string(index=False))
