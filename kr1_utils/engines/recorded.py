"""Owns what makes generation fast on a GPU: a step that is recorded once and replayed.

One step of a small model is a thousand short kernels, and Python takes longer to start
them than the GPU to run them. A CUDA graph starts them all at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It reads and writes
the same memory each time, so all that a step needs lies in tensors of fixed size.
"""

from collections.abc import Callable

from kr1_utils.engines.cpu import PreallocatedLayer, register_attention
from kr1_utils.extras import missing

try:
    import torch
    from transformers import DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
except ImportError:
    torch = DynamicCache = sdpa_attention_forward = missing("train")

# Models whose step does the same work whatever the tokens are. A mixture of experts,
# for one, does not.
SAME_WORK = ("llama", "qwen2", "qwen3")

# Positions whose frequencies change as a text grows.
CHANGING_POSITIONS = ("dynamic", "longrope")

# Tokens of a batch in one pass over the prompts: more would take more memory.
PREFILL_TOKENS = 8192

# What transformers calls `folded_attention`, once it is registered.
FOLDED_ATTENTION = "sdpa_folded"


def can_be_recorded(model) -> bool:
    """Whether the steps of a model, of transformers or of PEFT, can be recorded.

    Its weights must lie whole on one GPU, and not be packed.
    """
    config = model.config
    positions = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in SAME_WORK
        and config._attn_implementation == "sdpa"
        and positions.get("rope_type") not in CHANGING_POSITIONS
        and all(map(_is_whole_on_a_gpu, model.parameters()))
    )


def _is_whole_on_a_gpu(weight: torch.nn.Parameter) -> bool:
    # FSDP 2's parts are of another type, and ZeRO-3's are empty.
    return (
        type(weight) is torch.nn.Parameter
        and weight.is_cuda
        and weight.is_floating_point()
        and weight.numel() > 0
    )


def folded_attention(module, query, key, value, attention_mask, **kwargs):
    """transformers' `sdpa`, without a copy of keys and values where one token is new.

    Query heads that share a head of keys and values are laid out as if they were
    several tokens: to attention it is the same.

    Args:
        module: the attention layer.
        query: (B, query heads, T, width).
        key: (B, heads, S, width), and `value` likewise.
        attention_mask: (B, 1, T, S), or None for plain causal attention.

    Returns:
        the attended values (B, T, query heads, width), and None for the weights.
    """
    batch, query_heads, new, width = query.shape
    if new > 1 or attention_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
    heads = key.shape[1]
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads, query_heads // heads, width),
        key,
        value,
        attn_mask=attention_mask,
        scale=kwargs.get("scaling"),
    )
    return attended.reshape(batch, 1, query_heads, width), None


def register_folded_attention() -> str:
    """Make `folded_attention` known to transformers, and return its name there."""
    return register_attention(FOLDED_ATTENTION, folded_attention)


class RecordableLayer(PreallocatedLayer):
    """Keys and values of one layer, which a recorded step can write to.

    Attributes:
        column: (1,) where the new token goes, while steps are recorded. All columns are
            then shown, and the mask must hide those that are not filled.
    """

    column: torch.Tensor | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values (B, heads, new, width), and return what is there."""
        if self.column is None:
            return super().update(keys, values)
        self.all_keys.index_copy_(2, self.column, keys)
        self.all_values.index_copy_(2, self.column, values)
        return self.all_keys, self.all_values

    def end_recording(self, filled: int) -> None:
        """Show the columns that are filled."""
        self.column = None
        self.filled = filled
        self.keys = self.all_keys[:, :, :filled]
        self.values = self.all_values[:, :, :filled]


class Step:
    """One more token of every row, by the same work each time it is called.

    Args:
        model: of transformers or of PEFT.
        cache: of `RecordableLayer`s that hold the prompts.
        attention: (B, P), 1 for tokens of the prompts and 0 for padding.
        room: columns of the cache.
        first: (B,) the first sampled tokens.
        choose: the next tokens (B,) by their logits (B, V).

    Attributes:
        token: (B, 1) the latest sampled tokens; their keys and values are computed by
            the next call.
    """

    def __init__(
        self,
        model,
        cache: DynamicCache,
        attention: torch.Tensor,
        room: int,
        first: torch.Tensor,
        choose: Callable[[torch.Tensor], torch.Tensor],
    ):
        self.model = model
        self.cache = cache
        self.choose = choose
        batch, prompt_length = attention.shape
        self.token = first[:, None].clone()
        self.position = attention.sum(-1, keepdim=True)
        self.column = attention.new_tensor([prompt_length])
        self.seen = torch.zeros(
            (batch, 1, 1, room), dtype=torch.bool, device=attention.device
        )
        self.seen[:, 0, 0, :prompt_length] = attention.bool()
        for layer in cache.layers:
            layer.column = self.column

    def __call__(self) -> None:
        """Read `token`, and put the next one in its place."""
        self.seen.index_fill_(3, self.column, True)
        logits = self.model(
            self.token,
            attention_mask=self.seen,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.token.copy_(self.choose(logits[:, -1])[:, None])
        self.position += 1
        self.column += 1


def recorded(step: Step) -> Callable[[], None]:
    """The same step as a CUDA graph; elsewhere, the step itself.

    The step is taken once meanwhile: what is made at the first call, such as the
    workspaces of matrix products, must not be a part of the recording.
    """
    if step.token.device.type != "cuda":
        step()
        return step
    here = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        step()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def write_turns(
    model,
    ids: torch.Tensor,
    attention: torch.Tensor,
    cache: DynamicCache,
    most: int,
    choose: Callable[[torch.Tensor], torch.Tensor],
    finished: Callable[[torch.Tensor, None], torch.Tensor],
) -> torch.Tensor:
    """Sample until every row is finished.

    Args:
        model: of transformers or of PEFT, in evaluation mode.
        ids: (B, P) the prompts, padded.
        attention: (B, P), 1 for tokens and 0 for padding.
        cache: of `RecordableLayer`s with room for P + `most` columns; the columns that
            it begins with are not computed again.
        most: tokens that a row may sample.
        choose: the next tokens (B,) by their logits (B, V).
        finished: which rows (B,) are finished, by all ids (B, T); the second argument
            is what transformers gives to a stopping criterion.

    Returns:
        (B, T) prompts and what was sampled; what follows the end of a row means
        nothing.
    """
    prompt_length = ids.shape[1]
    token = choose(_read_prompts(model, ids, attention, cache))
    sequences = torch.cat([ids, ids.new_zeros(len(ids), most)], dim=1)
    sequences[:, prompt_length] = token
    length = prompt_length + 1
    step = Step(model, cache, attention, sequences.shape[1], token, choose)
    take_step = None
    while not finished(sequences[:, :length], None).all():
        if take_step is None:
            take_step = recorded(step)
        else:
            take_step()
        sequences[:, length] = step.token[:, 0]
        length += 1
    for layer in cache.layers:
        layer.end_recording(length - 1)
    return sequences[:, :length]


def _read_prompts(
    model, ids: torch.Tensor, attention: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """The logits (B, V) of the first new token, part by part."""
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    columns = max(1, PREFILL_TOKENS // len(ids))
    for start in range(cache.get_seq_length(), ids.shape[1], columns):
        stop = min(start + columns, ids.shape[1])
        logits = model(
            ids[:, start:stop],
            attention_mask=attention[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    return logits[:, -1]
