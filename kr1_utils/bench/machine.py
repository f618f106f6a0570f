"""Owns the name of the machine that was measured."""

import os
import platform


def machine_name() -> str:
    """The GPU, or the CPU and how many of its cores this process may use."""
    # Not at the top: an engine that is measured must not hold torch, see retrieval.py.
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
