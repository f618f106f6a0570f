"""Owns the measurement of a GPU's memory beside what is simulated."""

import copy
import math

import pandas as pd

from kr1_utils.bench.machine import machine_name
from kr1_utils.extras import missing
from kr1_utils.memory.forecast import config_of
from kr1_utils.memory.simulate import (
    GIB,
    PROMPT_TOKENS,
    Step,
    build_model,
    simulate,
    step_loss,
)
from kr1_utils.models import lora_config
from kr1_utils.profiles import resolve

try:
    import torch
except ImportError:
    torch = missing("train")

MODELS = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
LENGTHS = (1024, 4096, 8192, 16384)


def measure(arguments) -> pd.DataFrame:
    """The table of `kr1 bench gpu`, see `measure_steps`.

    Raises:
        ValueError: if there is no GPU, and no small model was named either.
    """
    if not arguments.model and not torch.cuda.is_available():
        raise ValueError(
            "There is no GPU to measure: to run the step alone, on this CPU, name a"
            " small model and length, as in --model data/tiny-lm --tokens 128."
        )
    models = [arguments.model] if arguments.model else MODELS
    return measure_steps(models, arguments.tokens or LENGTHS)


def measure_steps(models: list[str], lengths: list[int]) -> pd.DataFrame:
    """A training step of each model at each length, really taken and simulated.

    Weights are random, so that no model is downloaded.

    Args:
        models: folders or hub ids.
        lengths: tokens of one row, its prompt included.

    Returns:
        one row per step: `model`, `tokens`, `measured_gib` (NaN without a GPU, where
        the step is only run), `simulated_gib`, `machine`.
    """
    rows = []
    for model in models:
        config = config_of(model)
        for tokens in lengths:
            step = Step(
                rows=1,
                tokens=tokens,
                prompt_tokens=min(PROMPT_TOKENS, tokens // 2),
                lora=lora_config(resolve("7b")),
            )
            simulated = simulate(config, step).peak / GIB
            row = {
                "model": model,
                "tokens": tokens,
                "measured_gib": measure_step(config, step),
                "simulated_gib": simulated,
            }
            rows.append(row)
    return pd.DataFrame(rows).round(3).assign(machine=machine_name())


def measure_step(config, step: Step) -> float:
    """GiB allocated at the peak of the second of two steps: the first one makes AdamW's
    moments."""
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    model = random_model(config, step, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.zeros(step.rows, step.tokens, dtype=torch.long, device=device)
    for _ in range(2):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast(device, step.dtype, enabled=step.autocast):
            loss = step_loss(model, ids, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if not on_gpu:
        return math.nan
    return torch.cuda.max_memory_allocated() / GIB


def random_model(config, step: Step, device: str):
    """The step's model with random weights, on a device."""
    config = copy.deepcopy(config)
    config.use_cache = False
    model = build_model(config, step).to_empty(device=device)
    # `to_empty` made two of what was shared.
    model.tie_weights()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.normal_(0, 0.02)
    return model
