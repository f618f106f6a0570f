"""The machine that was measured has a name."""

import os
import subprocess
import sys

import pytest
import torch

from kr1_utils.bench import machine_name


def test_a_cpu_is_named_with_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 4})
    assert machine_name().startswith("CPU ")
    assert machine_name().endswith(", 3 cores")


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert machine_name() == "NVIDIA H100"


@pytest.mark.parametrize("library", ["torch", "pandas", "tantivy"])
def test_an_engine_that_is_measured_does_not_hold(library):
    # Its memory would be counted as the engine's.
    code = f"import sys, kr1_utils.bench.retrieval; print({library!r} in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).strip() == "False"
