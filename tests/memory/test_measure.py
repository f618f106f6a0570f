"""What this process has held, and the size of this machine's GPU."""

import types

import numpy as np
import pytest
import torch

from kr1_utils import memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the GPU's memory there")
def test_peak_counts_what_was_held_and_let_go():
    before = memory.peak_gib()
    held = np.ones(200 * 2**20, dtype=np.int8)
    del held
    assert memory.peak_gib() >= max(before, 200 / 1024)


def test_without_a_gpu_one_of_80_gib_is_planned_with(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.this_gpu() == 80


@pytest.mark.parametrize("total, size", [(79.2, 80), (23.6, 24), (139.8, 141)])
def test_a_gpu_is_as_large_as_it_is_sold(monkeypatch, total, size):
    properties = types.SimpleNamespace(total_memory=total * memory.GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert memory.this_gpu() == size
