"""The measurement of a busy machine compares the same training four times."""

import os
import subprocess

import pytest

from kr1_utils.bench import busy
from kr1_utils.bench.run import BENCHMARKS


def test_busy_processes_end_with_their_block():
    with busy._busy_processes(2) as _:
        started = subprocess.run(
            ["ps", "-o", "args=", "--ppid", str(os.getpid())],
            capture_output=True,
            text=True,
        ).stdout
    assert started.count(busy.BUSY) == 2
    left = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
    ).stdout
    assert busy.BUSY not in left


@pytest.mark.slow
def test_steps_are_measured_quiet_and_busy_with_both_settings():
    table = busy.measure_steps(steps=2)
    assert table["other_processes"].tolist() == [0, 0, 1, 1]
    assert set(table["spinning"]) == set(busy.SPIN_COUNTS)
    assert (table["seconds"] > 0).all()
    printed = BENCHMARKS["busy"].for_print(table)
    assert printed["times"].iloc[0] == 1.0
