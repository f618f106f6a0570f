"""The machine that was measured has a name."""

import os
import subprocess
import sys

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


def test_an_engine_that_is_measured_holds_neither_torch_nor_pandas():
    code = (
        "import sys, kr1_utils.bench.retrieval;"
        "print([name for name in ('torch', 'pandas', 'tantivy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).strip() == "[]"
