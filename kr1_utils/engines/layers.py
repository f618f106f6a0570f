"""Owns what the layers of a model keep from token to token."""

import inspect
from dataclasses import dataclass

from kr1_utils.extras import missing

try:
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import (
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionLayer,
    )
except ImportError:
    torch = missing("train")
    DynamicCache = DynamicLayer = missing("train")
    DynamicSlidingWindowLayer = LinearAttentionLayer = missing("train")


@dataclass(frozen=True)
class Memory:
    """What one layer keeps of one row.

    Attributes:
        per_token: bytes of a token's keys and values.
        window: tokens that it keeps them of; None is all.
        state: bytes that do not grow with the row.
    """

    per_token: int
    window: int | None
    state: int


@dataclass(frozen=True)
class Layers:
    """How a model's layers look back at earlier tokens.

    Attributes:
        memory: of each layer that has any.
        see_all: whether every layer sees all earlier tokens, by keys and values of one
            width, at positions that it is told. Padding in the midst of a row, masked
            out, then changes nothing.
        only_attention: whether all they keep is keys and values. A prompt may then go
            through them part by part, whatever is padded.
    """

    memory: tuple[Memory, ...]
    see_all: bool
    only_attention: bool


def check_generates(model) -> None:
    """Refuse a model that does not continue the text it is given.

    Raises:
        ValueError: naming the model and its kind.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{name} ({model.config.model_type}) has an encoder and a decoder, but a"
            " conversation needs a model that continues its own text: take a causal"
            " language model."
        )
    if not model.can_generate():
        raise ValueError(
            f"{name} ({model.config.model_type}) cannot generate text: take a causal"
            " language model."
        )


def layers_of(model, outermost=None) -> Layers:
    """Look at what the model keeps of one token.

    Args:
        model: of transformers, without PEFT around it, in evaluation mode; on the meta
            device with eager attention.
        outermost: the model with what is around it, which reads the token: FSDP wants
            to be entered there. None is `model`.

    Raises:
        ValueError: if it keeps what it must remember in no cache of transformers.
    """
    layers = _cache_of_one_token(outermost or model).layers
    by_config = DynamicCache(config=model.config).layers
    kinds = {type(layer) for layer in layers + by_config}
    told_positions = "position_ids" in inspect.signature(model.forward).parameters
    # GPT-Neo's windows are in its masks, and its cache does not know of them.
    hidden_windows = "local" in getattr(model.config, "attention_layers", ())
    see_all = (
        kinds == {DynamicLayer}
        and told_positions
        and not hidden_windows
        and _are_of_one_width(layers)
    )
    only_attention = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
    memory = tuple(map(_memory_of, layers))
    return Layers(memory, see_all, only_attention)


def _cache_of_one_token(model):
    """The cache that the model makes itself when it reads one token."""
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.no_grad():
        out = model(token, attention_mask=torch.ones_like(token), use_cache=True)
    cache = out.get("past_key_values")
    if cache is None:
        # Mamba's name for it.
        cache = out.get("cache_params")
    if type(cache) is not DynamicCache:
        raise ValueError(
            f"{type(model).__name__} ({model.config.model_type}) keeps what it"
            " remembers outside transformers' cache, where padding would change it:"
            " take another model."
        )
    return cache


def _are_of_one_width(layers: list) -> bool:
    """Whether keys and values of all layers have the same shape."""
    if not all(layer.is_initialized for layer in layers):
        return False
    keys = {layer.keys.shape for layer in layers}
    values = {layer.values.shape for layer in layers}
    return len(keys | values) == 1


def _memory_of(layer) -> Memory:
    """What one layer of the cache holds after one token."""
    per_token = 0
    if isinstance(layer, DynamicLayer) and layer.is_initialized:
        per_token = layer.keys.nbytes + layer.values.nbytes
    window = None
    if isinstance(layer, DynamicSlidingWindowLayer):
        window = layer.sliding_window
    state = 0
    if isinstance(layer, LinearAttentionLayer):
        states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
        state = sum(tensor.nbytes for tensor in states if tensor is not None)
    return Memory(per_token, window, state)
