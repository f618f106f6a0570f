"""Owns the measurement of a GPU's memory beside what is simulated."""

import copy
import math

import torch

from kr1_utils.memory.forecast import config_of
from kr1_utils.memory.simulate import GIB, Step, build_model, simulate, step_loss
from kr1_utils.models import lora_config
from kr1_utils.profiles import resolve

MODELS = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
LENGTHS = (1024, 4096, 8192, 16384)


def measure(config, step: Step) -> float:
    """GiB allocated at the peak of the second of two steps, for the first one makes
    AdamW's moments."""
    config, cuda = copy.deepcopy(config), torch.cuda.is_available()
    config.use_cache = False
    device = "cuda" if cuda else "cpu"
    model = build_model(config, step).to_empty(device=device)
    model.tie_weights()  # `to_empty` made two of what was one
    for t in (*model.parameters(), *model.buffers()):
        t.data.normal_(0, 0.02)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.zeros(step.rows, step.tokens, dtype=torch.long, device=device)
    for _ in range(2):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast(device, step.dtype, enabled=step.autocast):
            loss = step_loss(model, ids, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / GIB if cuda else math.nan


def rows(models, lengths):
    for name in models:
        config = config_of(name)
        for tokens in lengths:
            step = Step(
                1,
                tokens,
                prompt_tokens=min(256, tokens // 2),
                lora=lora_config(resolve("7b")),
            )
            simulated = simulate(config, step).peak / GIB
            yield {
                "model": name,
                "tokens": tokens,
                "measured_gib": measure(config, step),
                "simulated_gib": simulated,
            }
