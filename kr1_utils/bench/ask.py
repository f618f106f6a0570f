"""Owns the measurement of asking: from the command to its first answer, and the next.

`kr1 ask` runs in a process of its own, as a reader starts it, and is asked one question
after the other through a pipe.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from kr1_utils.bench.machine import machine_name
from kr1_utils.corpus import load_split, locate_files
from kr1_utils.extras import missing
from kr1_utils.profiles import resolve

try:
    import psutil
except ImportError:
    psutil = missing("bench")


@dataclass(frozen=True)
class Sample:
    """What one answer took."""

    seconds: float
    # Of all cores together.
    cpu_seconds: float


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
        `seconds` (the median), `slowest`, `cpu_seconds` (the median of what one core
        would need; on a quiet machine nearly as many), `machine`.

    Raises:
        RuntimeError: if the command fails.
        ImportError: without the extra [bench].
    """
    answers: dict[str, list[Sample]] = {"first": [], "next": []}
    for _ in range(starts):
        first, *others = _ask_all(words, questions)
        answers["first"].append(first)
        answers["next"] += others
    rows = [
        {
            "profile": profile,
            "answer": answer,
            "measured": len(measured),
            "seconds": round(statistics.median(m.seconds for m in measured), 3),
            "slowest": round(max(m.seconds for m in measured), 3),
            "cpu_seconds": round(statistics.median(m.cpu_seconds for m in measured), 2),
            "machine": machine_name(),
        }
        for answer, measured in answers.items()
    ]
    return pd.DataFrame(rows)


def _ask_all(words: Iterable[str], questions: list[str]) -> list[Sample]:
    """What each answer of one `kr1 ask` takes; the first counts from its start."""
    command = [sys.executable, "-m", "kr1_utils", "ask", "--json", *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = time.perf_counter()
    cpu_before = 0.0
    samples = []
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            watched = psutil.Process(process.pid)
            for question in questions:
                process.stdin.write(f"{question}\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    raise RuntimeError("kr1 ask ended before it answered.")
                seconds = time.perf_counter() - started
                cpu_seconds = _cpu_seconds(watched)
                samples.append(Sample(seconds, cpu_seconds - cpu_before))
                started = time.perf_counter()
                cpu_before = cpu_seconds
        finally:
            process.kill()
    return samples


def _cpu_seconds(process) -> float:
    times = process.cpu_times()
    return times.user + times.system
