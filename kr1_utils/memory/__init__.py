"""The GPU memory that a run will need, simulated before anything is rented."""

from kr1_utils.memory.forecast import (
    OVERHEAD_GIB,
    config_of,
    count_parameters,
    forecast,
    sampling,
    show,
    step_of,
)
from kr1_utils.memory.measure import GPU_SIZES, peak_gib, this_gpu
from kr1_utils.memory.simulate import GIB, PROMPT_TOKENS, Step, simulate

__all__ = [
    "GIB",
    "GPU_SIZES",
    "OVERHEAD_GIB",
    "PROMPT_TOKENS",
    "Step",
    "config_of",
    "count_parameters",
    "forecast",
    "peak_gib",
    "sampling",
    "show",
    "simulate",
    "step_of",
    "this_gpu",
]
