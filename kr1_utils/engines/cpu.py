"""Owns what makes generation fast on a CPU: its attention and its cache."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def grouped_attention(module, query, key, value, attention_mask, **kwargs):
    """transformers' `sdpa` without its copy of keys and values for each query head that
    shares them.

    With a mask it makes that copy for the sake of CUDA's kernels; on a CPU it takes
    most of the time."""
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=kwargs.get("scaling"),
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), None


def register_grouped_attention() -> str:
    """Make `grouped_attention` known to transformers, and return its name there."""
    AttentionInterface.register("sdpa_grouped", grouped_attention)
    AttentionMaskInterface.register("sdpa_grouped", sdpa_mask)
    return "sdpa_grouped"


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, with room for all that will come.

    A plain `DynamicLayer` copies everything for every token that is added; this one
    copies the token."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.filled = room, 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            shape = (*keys.shape[:2], self.room, keys.shape[3])
            self.all = keys.new_zeros(shape), values.new_zeros(shape)
        start, self.filled = self.filled, self.filled + keys.shape[2]
        for whole, more in zip(self.all, (keys, values)):
            whole[:, :, start : self.filled] = more
        self.keys, self.values = (whole[:, :, : self.filled] for whole in self.all)
        return self.keys, self.values


def starting_cache(
    layers: int, room: int, rows: list[list | None], length: int
) -> DynamicCache:
    """A cache that starts with `length` positions: what is known of each row, padded on
    the left."""
    cache = DynamicCache()
    cache.layers = [PreallocatedLayer(room) for _ in range(layers)]
    some = next((row for row in rows if row is not None), None)
    for number, example in enumerate(some or []):
        stacked = [
            part.new_zeros(len(rows), part.shape[0], length, part.shape[2])
            for part in example
        ]
        for i, row in enumerate(rows):
            for batch, part in zip(stacked, row[number] if row is not None else ()):
                batch[i, :, length - part.shape[1] :] = part
        cache.update(*stacked, number)
    return cache
