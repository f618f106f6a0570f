"""Owns what makes generation fast on a CPU: its attention, its cache and its head."""

from contextlib import contextmanager

from kr1_utils.extras import missing

try:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
    from transformers.cache_utils import DynamicLayer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask
except ImportError:
    torch = missing("train")
    AttentionInterface = missing("train")
    AttentionMaskInterface = missing("train")
    DynamicCache = missing("train")
    DynamicLayer = missing("train")
    sdpa_attention_forward = missing("train")
    sdpa_mask = missing("train")

# What transformers calls `grouped_attention`, once it is registered.
GROUPED_ATTENTION = "sdpa_grouped"

# The keys and values of one conversation: per layer two tensors (heads, T, width).
RowCache = list[tuple[torch.Tensor, torch.Tensor]]


def grouped_attention(module, query, key, value, attention_mask, **kwargs):
    """transformers' `sdpa`, without a copy of keys and values for each query head.

    In grouped-query attention (Ainslie et al., 2023, https://arxiv.org/abs/2305.13245)
    several query heads share one head of keys and values. If there is a mask,
    transformers repeats the shared head for each of them, for the sake of CUDA's
    kernels. On a CPU that copy takes most of the time.

    Args:
        module: the attention layer.
        query: (B, query heads, T, width).
        key: (B, heads, S, width), and `value` likewise.
        attention_mask: (B, 1, T, S), or None for plain causal attention.

    Returns:
        the attended values (B, T, query heads, width), and None for the weights.
    """
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=kwargs.get("scaling"),
        enable_gqa=True,
    )
    return attended.transpose(1, 2).contiguous(), None


def register_grouped_attention() -> str:
    """Make `grouped_attention` known to transformers, and return its name there."""
    return register_attention(GROUPED_ATTENTION, grouped_attention)


def register_attention(name: str, attention) -> str:
    """Make an attention that takes the masks of `sdpa` known to transformers.

    Registering it again changes nothing.

    Returns:
        its name.
    """
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


@contextmanager
def contiguous_at_head(model):
    """While it is entered, the head gets its input without gaps in memory.

    transformers gives it the last position of each prompt, as a view of all positions.
    With weights in bfloat16 that are not trained, PyTorch multiplies such a view some
    hundred times as slowly as a copy of it.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, with room for all positions that will come.

    A plain `DynamicLayer` copies everything for each token that is added. This one
    copies the token.

    Args:
        room: positions.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.filled = 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values (B, heads, new, width), and return all there are."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            batch, heads, _, width = keys.shape
            self.all_keys = keys.new_zeros(batch, heads, self.room, width)
            self.all_values = values.new_zeros(batch, heads, self.room, width)
        start = self.filled
        self.filled += keys.shape[2]
        self.all_keys[:, :, start : self.filled] = keys
        self.all_values[:, :, start : self.filled] = values
        # Views: transformers reads these two, and nothing is copied.
        self.keys = self.all_keys[:, :, : self.filled]
        self.values = self.all_values[:, :, : self.filled]
        return self.keys, self.values


def starting_cache(
    layers: int,
    room: int,
    rows: list[RowCache | None],
    length: int,
    kind: type[PreallocatedLayer] = PreallocatedLayer,
) -> DynamicCache:
    """A cache that begins with what is known of each row.

    Args:
        layers: of the model.
        room: positions that it can hold.
        rows: one per row of the batch; None if nothing is known of it.
        length: positions that it begins with. Rows that are known less far begin with
            zeros, which the attention mask must hide.
        kind: of layer.
    """
    cache = DynamicCache()
    cache.layers = [kind(room) for _ in range(layers)]
    if any(row is not None for row in rows):
        for layer in range(layers):
            keys = [None if row is None else row[layer][0] for row in rows]
            values = [None if row is None else row[layer][1] for row in rows]
            stacked_keys = _stack_to_the_right(keys, length)
            stacked_values = _stack_to_the_right(values, length)
            cache.update(stacked_keys, stacked_values, layer)
    return cache


def _stack_to_the_right(parts: list[torch.Tensor | None], length: int) -> torch.Tensor:
    """Stack (heads, T, width) for various T ≤ `length` into (B, heads, length, width).

    Each part ends at the last position; before it, and where there is none, are zeros.
    """
    example = next(part for part in parts if part is not None)
    heads, _, width = example.shape
    stacked = example.new_zeros(len(parts), heads, length, width)
    for row, part in enumerate(parts):
        if part is not None:
            first = length - part.shape[1]
            stacked[row, :, first:] = part
    return stacked
