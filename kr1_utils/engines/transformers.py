"""Owns generation with transformers, on a left-padded batch."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from weakref import WeakKeyDictionary

from kr1_utils.engines.base import Generation, closes, closing_tokens
from kr1_utils.engines.cpu import (
    PreallocatedLayer,
    RowCache,
    contiguous_at_head,
    register_grouped_attention,
    starting_cache,
)
from kr1_utils.engines.layers import Layers, check_generates, layers_of
from kr1_utils.engines.recorded import (
    RecordableLayer,
    can_be_recorded,
    register_folded_attention,
    write_turns,
)
from kr1_utils.extras import missing

try:
    import torch
    from peft import PeftModel
    from transformers import DynamicCache
    from transformers.generation import (
        GenerationConfig,
        StoppingCriteria,
        StoppingCriteriaList,
    )
except ImportError:
    torch = missing("train")
    PeftModel = missing("train")
    DynamicCache = missing("train")
    GenerationConfig = missing("train")
    StoppingCriteria = missing("train")
    StoppingCriteriaList = missing("train")

# Tokens of each row in one forward pass over the prompts, if no keys and values are
# kept: more would take more memory.
PREFILL = 128

# An engine is made for every rollout, and the layers of a model stay what they are.
_LAYERS: WeakKeyDictionary = WeakKeyDictionary()


@lru_cache(8)
def _closing_tokens(tokenizer) -> torch.Tensor:
    """`closing_tokens` as a tensor (V + 1,) of bool, to look up a whole batch."""
    return torch.tensor(closing_tokens(tokenizer))


class TurnEnd(StoppingCriteria):
    """Stops a row at its end-of-turn token, after a closing tag, or at its own limit.

    transformers' `stop_strings` has one limit for all rows. Here text is decoded only
    after a token that can complete a closing tag.

    Args:
        limits: (B,) tokens that each row may sample.
        prompt_length: tokens before the first sampled one, padding included.

    Attributes:
        length: (B,) tokens that each row sampled, 0 while it goes on. What follows them
            in a row is padding.
    """

    # Tokens that are decoded to look for a closing tag. No tag has as many bytes.
    tail = 16

    def __init__(
        self, tokenizer, end_of_turn: int, limits: list[int], prompt_length: int
    ):
        self.tokenizer = tokenizer
        self.end_of_turn = end_of_turn
        self.limits = torch.tensor(limits)
        self.prompt_length = prompt_length
        self.may_close = _closing_tokens(tokenizer)
        self.length = [0] * len(limits)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """Which rows (B,) are finished, after one more token in `input_ids` (B, T)."""
        sampled = input_ids.shape[1] - self.prompt_length
        last = input_ids[:, -1].cpu()
        finished = (last == self.end_of_turn) | (sampled >= self.limits)
        for row in self._rows_to_decode(last, finished):
            if self.length[row] == 0:
                finished[row] = closes(self.tokenizer, self._tail_ids(input_ids[row]))
        for row in torch.nonzero(finished).flatten().tolist():
            if self.length[row] == 0:
                self.length[row] = sampled
        return torch.tensor([n > 0 for n in self.length], device=input_ids.device)

    def _rows_to_decode(self, last: torch.Tensor, finished: torch.Tensor) -> list[int]:
        unknown = len(self.may_close) - 1
        may_close = self.may_close[last.clamp(max=unknown)]
        return torch.nonzero(may_close & ~finished).flatten().tolist()

    def _tail_ids(self, row: torch.Tensor) -> list[int]:
        start = max(self.prompt_length, len(row) - self.tail)
        return row[start:].tolist()


class TransformersEngine:
    """Generates with `model.generate`, or by recorded steps, on a left-padded batch.

    Keys and values of each conversation are kept until the next call, so that a turn
    computes only what was appended since the last one. Make a new engine when the
    weights have changed.

    That holds where every layer sees all earlier tokens. With sliding windows, linear
    attention or keys and values of different widths, each turn computes its whole
    conversation again, and transformers chooses the cache: padding between known and
    new tokens would count as a part of the window, or of the state.

    Args:
        model: a causal language model of transformers, or of PEFT.
        end_of_turn: the token id that ends an assistant message.
        temperature: 0 is greedy.
        batch_size: rows that are generated together.
        keep_cache: whether to keep keys and values from turn to turn, if the model's
            layers allow it. None does so on a CPU only, because memory is scarcer than
            time on a GPU.
        record: whether to record a step and replay it (see `recorded`). None does so
            on a GPU, for models where every step does the same work.

    Raises:
        ValueError: if the model is none that continues its own text.

    Attributes:
        window: tokens that a prompt and its response may have together, or None.
        computed: tokens that went through the model so far: of prompts and sampled,
            with padding, and with rows that were finished while others went on.
        shaping: what shapes the choice of a token beside the temperature: any of
            top_k, top_p, min_p and repetition_penalty. Nothing does by default.
        on_batch: called with the number of rows after each batch, for progress.
    """

    def __init__(
        self,
        model,
        tokenizer,
        end_of_turn: int,
        temperature: float = 1.0,
        batch_size: int = 64,
        keep_cache: bool | None = None,
        record: bool | None = None,
    ):
        self.shaping: dict = {}
        self.on_batch: Callable[[int], object] | None = None
        check_generates(_without_peft(model))
        self.model = model
        self.tokenizer = tokenizer
        self.end_of_turn = end_of_turn
        self.temperature = temperature
        self.batch_size = batch_size
        if keep_cache is None:
            keep_cache = model.device.type == "cpu"
        self.keep_cache = keep_cache
        if record is None:
            record = can_be_recorded(model)
        self.record = record
        text_config = model.config.get_text_config(decoder=True)
        self.window = getattr(text_config, "max_position_embeddings", None)
        # The ids of a conversation so far -> their keys and values.
        self.kept: dict[tuple[int, ...], RowCache] = {}
        self.computed = 0

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """One turn for each prompt, without log-probabilities.

        Arguments and what comes back are those of `engines.base.Engine`.
        """
        known = self.kept
        self.kept = {}
        generations = []
        with torch.no_grad(), _ready_to_generate(self.model, self._attention()):
            layers = self._layers()
            for start in range(0, len(prompt_ids), self.batch_size):
                rows = slice(start, start + self.batch_size)
                turns = self._batch(
                    prompt_ids[rows], max_new_tokens[rows], known, layers
                )
                generations += [Generation(ids) for ids in turns]
                if self.on_batch:
                    self.on_batch(len(turns))
        return generations

    def _layers(self) -> Layers:
        model = _without_peft(self.model)
        if model not in _LAYERS:
            _LAYERS[model] = layers_of(model, self.model)
        return _LAYERS[model]

    def _attention(self) -> str:
        """What transformers calls the attention to generate with, "" for its own."""
        if self.record:
            return register_folded_attention()
        model = self.model
        if model.device.type == "cpu" and model._can_set_attn_implementation():
            return register_grouped_attention()
        return ""

    def _batch(
        self,
        prompts: list[list[int]],
        limits: list[int],
        known: dict[tuple[int, ...], RowCache],
        layers: Layers,
    ) -> list[list[int]]:
        """The sampled ids of each row; its keys and values are kept for the next turn.

        Args:
            known: ids of earlier conversations -> their keys and values.
            layers: of the model.
        """
        known_lengths = _known_lengths(prompts, known)
        past = max(known_lengths)
        ids, attention = left_pad(prompts, known_lengths, self._filler())
        ids = ids.to(self.model.device)
        attention = attention.to(self.model.device)
        prompt_length = ids.shape[1]
        # Recorded steps take one choice of the token, and layers that see all.
        record = self.record and layers.see_all and not self.shaping
        cache = None
        if layers.see_all:
            rows = [
                known.get(tuple(prompt[:length]))
                for prompt, length in zip(prompts, known_lengths)
            ]
            cache = starting_cache(
                len(layers.memory),
                prompt_length + max(limits),
                rows,
                past,
                RecordableLayer if record else PreallocatedLayer,
            )
        turn_end = TurnEnd(self.tokenizer, self.end_of_turn, limits, prompt_length)
        if record:
            sequences = write_turns(
                self.model, ids, attention, cache, max(limits), self._choose, turn_end
            )
        else:
            sequences = self._generate(ids, attention, cache, layers, turn_end)
        # The last token was sampled, but not looked at.
        self.computed += sequences[:, past:-1].numel()
        sampled = sequences[:, prompt_length:].tolist()
        turns = [row[:length] for row, length in zip(sampled, turn_end.length)]
        if self.keep_cache and layers.see_all:
            self._keep(prompts, turns, attention.bool(), cache)
        return turns

    def _generate(
        self,
        ids: torch.Tensor,
        attention: torch.Tensor,
        cache: DynamicCache | None,
        layers: Layers,
        turn_end: TurnEnd,
    ) -> torch.Tensor:
        """Prompts and what transformers samples after them (B, T)."""
        part = None
        if layers.only_attention and not (self.keep_cache and layers.see_all):
            part = PREFILL
        most = int(turn_end.limits.max())
        return self.model.generate(
            ids,
            attention_mask=attention,
            generation_config=self._generation_config(most, part),
            # Each process has all the weights, so none waits for the tokens of another.
            synced_gpus=False,
            stopping_criteria=StoppingCriteriaList([turn_end]),
            **({} if cache is None else {"past_key_values": cache}),
        ).sequences

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next tokens (B,) by their logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (logits.float() / self.temperature).softmax(-1)
        # The first of several exponential waiting times is i's with probability p_i.
        # Unlike torch.multinomial, this never waits for the GPU.
        return (p / torch.empty_like(p).exponential_()).argmax(-1)

    def _filler(self) -> int:
        """What stands where a row is padded. It is masked out, so any id would do."""
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn if pad is None else pad

    def _generation_config(
        self, max_new_tokens: int, part: int | None
    ) -> GenerationConfig:
        """Nothing but the temperature, and `shaping`, shapes the choice of a token.

        What is not given here is filled in from the model's generation_config.json, so
        the neutral values are given too.

        Args:
            part: tokens of each prompt in one pass; None is all.
        """
        greedy = self.temperature == 0
        # 0 is off. With greedy decoding transformers warns about all but 50, its
        # default, and looks at none.
        neutral = {
            "top_k": 50 if greedy else 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
        }
        shaping = neutral if greedy else neutral | self.shaping
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=not greedy,
            temperature=1.0 if greedy else self.temperature,
            **shaping,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.end_of_turn,
            return_dict_in_generate=True,
            # Training turns it off in the model's own config.
            use_cache=True,
            prefill_chunk_size=part,
        )

    def _keep(
        self,
        prompts: list[list[int]],
        turns: list[list[int]],
        attention: torch.Tensor,
        cache,
    ) -> None:
        """Remember the keys and values of each conversation, without padding.

        Args:
            attention: (B, T) bool, whether a position before the turn is no padding.
            cache: of the batch, as generation left it.
        """
        # The last token was sampled, but has no keys and values yet.
        steps = cache.get_seq_length() - attention.shape[1]
        for row, (prompt, turn) in enumerate(zip(prompts, turns)):
            computed = turn[:steps]
            in_turn = torch.arange(steps, device=attention.device) < len(computed)
            real = torch.cat([attention[row], in_turn])
            self.kept[tuple(prompt + computed)] = [
                (layer.keys[row][:, real], layer.values[row][:, real])
                for layer in cache.layers
            ]


def _without_peft(model):
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _ready_to_generate(model, fast: str):
    """The model in evaluation mode, with the attention `fast`, if any, instead of
    transformers' `sdpa`; afterwards as it was."""
    was_training = model.training
    attention = _attention_of(model.config)
    config = model.config.get_text_config(decoder=True)
    # A mixture of experts that is asked for its router's loss computes it from the mask
    # of the whole conversation, and fails where keys and values are kept.
    router_logits = getattr(config, "output_router_logits", None)
    if router_logits:
        config.output_router_logits = False
    model.eval()
    if fast:
        model.set_attn_implementation(
            {part: fast for part, name in attention.items() if name == "sdpa"}
        )
    try:
        with contiguous_at_head(_without_peft(model)):
            yield
    finally:
        model.train(was_training)
        if router_logits:
            config.output_router_logits = router_logits
        if fast:
            model.set_attn_implementation(attention)


def _attention_of(config) -> dict[str, str]:
    """The attention of each part of a model, as `set_attn_implementation` takes it.

    A model that also sees images has several parts; "" is the whole.
    """
    attention = {"": config._attn_implementation}
    for part in config.sub_configs:
        attention[part] = getattr(config, part)._attn_implementation
    return attention


def _known_lengths(
    prompts: list[list[int]], known: dict[tuple[int, ...], RowCache]
) -> list[int]:
    """For each prompt, how many of its first tokens have known keys and values.

    At least one token is left to compute: its logits choose the next one.
    """
    longest_first = sorted({len(ids) for ids in known}, reverse=True)
    return [_known_length(prompt, known, longest_first) for prompt in prompts]


def _known_length(
    prompt: list[int], known: dict[tuple[int, ...], RowCache], lengths: list[int]
) -> int:
    for length in lengths:
        if length < len(prompt) and tuple(prompt[:length]) in known:
            return length
    return 0


def left_pad(
    prompts: list[list[int]], known_lengths: list[int], filler: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay prompts into one batch: known tokens end at one column, new ones at the last.

    Three prompts with 3, 1 and 0 known tokens, where `.` is filler:

        known | new         attention
        a b c | . d         1 1 1 0 1
        . . e | . f         0 0 1 0 1
        . . . | g h         0 0 0 1 1

    Args:
        prompts: (B,) lists of token ids.
        known_lengths: (B,) how many of the first tokens are known; less than all.
        filler: the id of padding.

    Returns:
        ids (B, T), and attention (B, T): 1 for tokens, 0 for padding.
    """
    past = max(known_lengths)
    new_lengths = [len(prompt) - known for prompt, known in zip(prompts, known_lengths)]
    shape = (len(prompts), past + max(new_lengths))
    ids = torch.full(shape, filler)
    attention = torch.zeros(shape, dtype=torch.long)
    for row, (prompt, known) in enumerate(zip(prompts, known_lengths)):
        tokens = torch.tensor(prompt)
        known_start = past - known
        new_start = shape[1] - (len(prompt) - known)
        ids[row, known_start:past] = tokens[:known]
        attention[row, known_start:past] = 1
        ids[row, new_start:] = tokens[known:]
        attention[row, new_start:] = 1
    return ids, attention
