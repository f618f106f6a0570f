"""A step's memory is measured beside what is simulated, where there is a GPU."""

import argparse

import pytest
import torch

from kr1_utils.bench import gpu


def test_without_a_gpu_the_step_is_run_and_nothing_measured():
    if torch.cuda.is_available():
        pytest.skip("measured there")
    arguments = argparse.Namespace(model="data/tiny-lm", tokens=[64, 128])
    table = gpu.measure(arguments)
    assert list(table["model"]) == ["data/tiny-lm"] * 2
    assert list(table["tokens"]) == [64, 128]
    assert table["measured_gib"].isna().all()
    assert (table["simulated_gib"] > 0).all()


def test_without_a_gpu_large_models_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU to measure.*--model data/tiny-lm"):
        gpu.measure(argparse.Namespace(model=None, tokens=None))


def test_weights_are_random_and_shared_ones_stay_shared():
    step = gpu.Step(1, 64)
    model = gpu.random_model(gpu.config_of("data/tiny-lm"), step, "cpu")
    embeddings = model.get_input_embeddings().weight
    assert embeddings is model.get_output_embeddings().weight
    assert embeddings.float().std().item() == pytest.approx(0.02, rel=0.1)
