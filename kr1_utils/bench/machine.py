"""Owns the name of the machine that was measured."""

import os
import platform

import torch


def machine_name() -> str:
    """What these figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
