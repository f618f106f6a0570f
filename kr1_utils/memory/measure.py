"""Owns what this process has held, and how large this machine's GPU is."""

import resource

from kr1_utils.extras import missing
from kr1_utils.memory.simulate import GIB

try:
    import torch
except ImportError:
    torch = missing("train")

# GiB, of the GPUs that one can rent.
GPU_SIZES = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 141, 180, 192, 288)

# The size to plan with where there is no GPU.
USUAL_GPU_GIB = 80


def peak_gib() -> float:
    """The most GiB that this process has held so far: of the GPU's memory where there
    is a GPU, else of RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def this_gpu() -> int:
    """The size in GiB of this machine's GPU, as it is sold; 80 where there is none."""
    if not torch.cuda.is_available():
        return USUAL_GPU_GIB
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    return min(GPU_SIZES, key=lambda size: abs(size - total))
