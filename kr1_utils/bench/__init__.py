"""Measurements, each side by side in one run: the agent loop, retrieval, training."""

from kr1_utils.bench.machine import machine_name

__all__ = ["machine_name"]
