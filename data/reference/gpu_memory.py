"""Writes gpu_memory.csv: what a training step really takes on this machine's GPU,
beside what is simulated.

Weights are random, so nothing is downloaded: `python data/reference/gpu_memory.py`. It
has not been run on a GPU yet; without one it only runs the step, with `--model
data/tiny-lm --tokens 128` and measures nothing."""

import argparse
import copy
import math
from pathlib import Path

import pandas as pd
import torch

from kr1_utils import memory
from kr1_utils.data import write_text
from kr1_utils.memory import GIB, Step, simulate
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
    model = memory._model(config, step).to_empty(device=device)
    model.tie_weights()  # `to_empty` made two of what was one
    for t in (*model.parameters(), *model.buffers()):
        t.data.normal_(0, 0.02)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.zeros(step.rows, step.tokens, dtype=torch.long, device=device)
    for _ in range(2):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast(device, step.dtype, enabled=step.autocast):
            loss = memory._loss(model, ids, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / GIB if cuda else math.nan


def rows(models, lengths):
    for name in models:
        config = memory.config_of(name)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--tokens", nargs="+", type=int, default=LENGTHS)
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    table = pd.DataFrame(rows(args.model, args.tokens)).assign(gpu=gpu).round(3)
    print(table.to_string(index=False))
    if torch.cuda.is_available():
        write_text(Path(__file__).with_suffix(".csv"), table.to_csv(index=False))
