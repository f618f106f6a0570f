"""Owns the measurement of asking: from the command to its first answer, and the next.

`kr1 ask` runs in a process of its own, as a reader starts it, and is asked one question
after the other through a pipe.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

import pandas as pd

from kr1_utils.bench.machine import machine_name
from kr1_utils.corpus import load_split, locate_files
from kr1_utils.profiles import resolve


def measure(arguments) -> pd.DataFrame:
    """The table of `kr1 bench ask`, see `measure_starts`."""
    for name in ("starts", "questions"):
        value = getattr(arguments, name)
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}.")
    profile = resolve(arguments.profile)
    files = locate_files(profile, arguments.data)
    questions = load_split(files, "test", arguments.questions + 1)
    words = ["--profile", profile.name, "--data", arguments.data]
    words += ["--run", arguments.run]
    texts = [question["question"] for question in questions]
    return measure_starts(profile.name, words, texts, arguments.starts)


def measure_starts(
    profile: str, words: Iterable[str], questions: list[str], starts: int
) -> pd.DataFrame:
    """Seconds of the first answer, counted from the command, and of each next one.

    Args:
        profile: its name, for the table.
        words: of `kr1 ask`.
        questions: at least two; all are asked at each start.
        starts: of the command.

    Returns:
        two rows, `first` and `next`: `profile`, `answer`, `measured` (how many),
        `seconds` (the median), `slowest`, `machine`.

    Raises:
        RuntimeError: if the command fails.
    """
    seconds: dict[str, list[float]] = {"first": [], "next": []}
    for _ in range(starts):
        first, *others = _ask_all(words, questions)
        seconds["first"].append(first)
        seconds["next"] += others
    rows = [
        {
            "profile": profile,
            "answer": answer,
            "measured": len(measured),
            "seconds": round(statistics.median(measured), 3),
            "slowest": round(max(measured), 3),
            "machine": machine_name(),
        }
        for answer, measured in seconds.items()
    ]
    return pd.DataFrame(rows)


def _ask_all(words: Iterable[str], questions: list[str]) -> list[float]:
    """Seconds of each answer of one `kr1 ask`; the first counts from its start."""
    command = [sys.executable, "-m", "kr1_utils", "ask", "--json", *words]
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            seconds = []
            for question in questions:
                process.stdin.write(f"{question}\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    raise RuntimeError("kr1 ask ended before it answered.")
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()
            return seconds
        finally:
            process.kill()
