"""Engines: anything with `generate(prompt_ids, max_new_tokens) -> list[Generation]`.

Names are loaded when they are first used, so that importing the agent loop does not
import torch.
"""

import importlib

_HOMES = {
    "Engine": "base",
    "Generation": "base",
    "closes": "base",
    "closing_tokens": "base",
    "PREFILL": "transformers",
    "TransformersEngine": "transformers",
    "TurnEnd": "transformers",
    "ServerEngine": "vllm",
    "VLLMEngine": "vllm",
    "configure_vllm_cpu": "vllm",
    "vllm_engine": "vllm",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(home, name)
