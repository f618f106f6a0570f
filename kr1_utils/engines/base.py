"""Owns what an engine is: token ids in, token ids out, cut where the turn ends."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from kr1_utils.protocol import CLOSING


@dataclass
class Generation:
    """What was sampled for one prompt: `ids` (T,), and `logprobs` (T,) where the engine
    has them."""

    ids: list[int]
    logprobs: list[float] | None = None


def closes(tokenizer, ids: list[int]) -> bool:
    """Whether the last of `ids` completes a closing tag; it may hold more than the
    tag's end (">\n")."""
    before, text = tokenizer.decode(ids[:-1]), tokenizer.decode(ids)
    return any(text.count(tag) > before.count(tag) for tag in CLOSING)


@lru_cache(8)
def closing_tokens(tokenizer) -> torch.Tensor:
    """(V + 1,) bool: which tokens hold a '>' and so may complete a closing tag; the
    last stands for ids past the tokenizer's, of which a model may have some, unused."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return torch.tensor([*(">" in t for t in texts), False])
