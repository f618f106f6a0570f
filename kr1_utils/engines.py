"""Owns generation: token ids in, token ids out, cut exactly where the turn ends."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from llvmlite.binding.ffi import lib
from torch.distributed.fsdp import FSDPModule
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kr1_utils.protocol import CLOSING

# tokens of each row in one pass, where nothing is kept: more would take more memory
PREFILL = 128
# vLLM 0.31 on a CPU asks every loaded object for its `__dict__`, and numba's library of
# compiled code takes that for the name of one of its functions: give it a dict to
# answer with.
lib._fntab.setdefault("__dict__", {})


@dataclass
class Generation:
    """What was sampled for one prompt: `ids` (T,), and `logprobs` (T,) where the engine
    has them."""

    ids: list[int]
    logprobs: list[float] | None = None


class TurnEnd(StoppingCriteria):
    """Stops a row at its end-of-turn token, right after a closing tag, or at its own
    limit.

    transformers' `stop_strings` has one limit for all rows; here the tokens that can
    close a tag are found once, and only then text is decoded. Row `i` sampled
    `length[i]` tokens: what follows is padding."""

    # tokens decoded to look for a closing tag; every tag is shorter than that in bytes
    tail = 16

    def __init__(
        self, tokenizer, end_of_turn: int, limits: list[int], prompt_length: int
    ):
        self.tokenizer, self.end_of_turn, self.start = (
            tokenizer,
            end_of_turn,
            prompt_length,
        )
        self.limits = torch.tensor(limits)
        self.length = [0] * len(limits)
        self.may_close = closing_tokens(tokenizer)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        last = input_ids[:, -1].cpu()
        done = (last == self.end_of_turn) | (step >= self.limits)
        may_close = self.may_close[last.clamp(max=len(self.may_close) - 1)]
        for i in torch.nonzero(may_close & ~done).flatten().tolist():
            if not self.length[i]:
                ids = input_ids[
                    i, max(self.start, input_ids.shape[1] - self.tail) :
                ].tolist()
                done[i] = closes(self.tokenizer, ids)
        for i in torch.nonzero(done).flatten().tolist():
            self.length[i] = self.length[i] or step
        return torch.tensor([n > 0 for n in self.length], device=input_ids.device)


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


class TransformersEngine:
    """Generates with `model.generate` on a left-padded batch.

    Keys and values of each conversation are kept until the next call, so that a turn
    computes only what was appended since the last one. Make a new engine when the
    weights have changed.

    Args:
        end_of_turn: the token id that ends an assistant message.
        temperature: 0 for greedy.
        batch_size: rows generated together.
        keep_cache: from turn to turn; None does so on a CPU only, for on a GPU memory
            is scarcer than time.
    """

    def __init__(
        self,
        model,
        tokenizer,
        end_of_turn: int,
        temperature: float = 1.0,
        batch_size: int = 64,
        keep_cache: bool | None = None,
    ):
        self.model, self.tokenizer, self.end_of_turn = model, tokenizer, end_of_turn
        self.temperature, self.batch_size = temperature, batch_size
        self.keep_cache = (
            model.device.type == "cpu" if keep_cache is None else keep_cache
        )
        self.at_once = None if self.keep_cache else PREFILL  # tokens
        self.window = getattr(model.config, "max_position_embeddings", None)  # tokens
        self.kept: dict[
            tuple[int, ...], list
        ] = {}  # ids -> [(keys, values) (heads, T, width) a layer]
        # tokens computed so far: of prompts, sampled, padding, and rows already
        # finished
        self.computed = 0

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """One turn for each prompt: at most `max_new_tokens[i]` ids, ending where the
        turn ends."""
        out: list[Generation] = []
        known, self.kept = self.kept, {}
        for start in range(0, len(prompt_ids), self.batch_size):
            rows = slice(start, start + self.batch_size)
            out += self._batch(prompt_ids[rows], max_new_tokens[rows], known)
        return out

    @torch.no_grad()
    def _batch(
        self, prompts: list[list[int]], limits: list[int], known: dict
    ) -> list[Generation]:
        device, pad = self.model.device, self.tokenizer.pad_token_id
        lengths = sorted({len(ids) for ids in known}, reverse=True)
        done = [
            next((n for n in lengths if n < len(p) and tuple(p[:n]) in known), 0)
            for p in prompts
        ]
        past, new = max(done), max(len(p) - n for p, n in zip(prompts, done))
        # Each row: padding, what is known already, padding, what is new.
        ids = torch.tensor(
            [
                [pad] * (past - n) + p[:n] + [pad] * (new - len(p) + n) + p[n:]
                for p, n in zip(prompts, done)
            ],
            device=device,
        )  # (B, past + new)
        attention = torch.tensor(
            [
                [0] * (past - n)
                + [1] * n
                + [0] * (new - len(p) + n)
                + [1] * (len(p) - n)
                for p, n in zip(prompts, done)
            ],
            device=device,
        )
        turn_end = TurnEnd(self.tokenizer, self.end_of_turn, limits, past + new)
        # what is not given here, a model's own generation_config.json fills in
        config = GenerationConfig(
            max_new_tokens=max(limits),
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            top_k=0 if self.temperature else 50,
            top_p=1.0,
            repetition_penalty=1.0,
            pad_token_id=pad,
            eos_token_id=self.end_of_turn,
            return_dict_in_generate=True,
            prefill_chunk_size=self.at_once,
        )
        cache = _cache(
            self.model.config.num_hidden_layers,
            past + new + max(limits),
            [known.get(tuple(p[:n])) for p, n in zip(prompts, done)],
            past,
        )
        was_training, attention_before = (
            self.model.training,
            self.model.config._attn_implementation,
        )
        self.model.eval()
        if device.type == "cpu" and attention_before == "sdpa":
            self.model.set_attn_implementation("sdpa_grouped")
        try:
            made = self.model.generate(
                ids,
                attention_mask=attention,
                generation_config=config,
                past_key_values=cache,
                synced_gpus=False,  # no process waits here
                stopping_criteria=StoppingCriteriaList([turn_end]),
            )
        finally:
            self.model.train(was_training)
            self.model.set_attn_implementation(attention_before)
        self.computed += made.sequences[
            :, past:-1
        ].numel()  # the last one is not looked at
        sampled = [
            row[:n]
            for row, n in zip(made.sequences[:, past + new :].tolist(), turn_end.length)
        ]
        if self.keep_cache:
            self._keep(prompts, sampled, attention.bool(), made.past_key_values)
        return [Generation(s) for s in sampled]

    def _keep(self, prompts, sampled, attention: torch.Tensor, cache) -> None:
        """Remember each row's keys and values without its padding."""
        steps = (
            cache.get_seq_length() - attention.shape[1]
        )  # the last token was sampled, not computed
        for i, (prompt, said) in enumerate(zip(prompts, sampled)):
            said = said[:steps]
            rest = torch.arange(steps, device=attention.device) < len(said)
            real = torch.cat([attention[i], rest])
            self.kept[tuple(prompt + said)] = [
                (layer.keys[i][:, real], layer.values[i][:, real])
                for layer in cache.layers
            ]


def _grouped_attention(module, query, key, value, attention_mask, **kwargs):
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


AttentionInterface.register("sdpa_grouped", _grouped_attention)
AttentionMaskInterface.register("sdpa_grouped", sdpa_mask)


class _Roomy(DynamicLayer):
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


def _cache(
    layers: int, room: int, rows: list[list | None], length: int
) -> DynamicCache:
    """A cache that starts with `length` positions: what is known of each row, padded on
    the left."""
    cache = DynamicCache()
    cache.layers = [_Roomy(room) for _ in range(layers)]
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


class VLLMEngine:
    """Generates with vLLM (Kwon et al., 2023, https://arxiv.org/abs/2309.06180); token
    ids in and out.

    Its prefix cache keeps the keys and values of every conversation, so that a turn
    computes what was appended since the last one, and of the system prompt, which all
    conversations share.

    Args:
        llm: a `vllm.LLM` made with `logprobs_mode="processed_logprobs"`, as TRL makes
            its own: the log-probabilities are then those of the distribution that was
            sampled from.
        end_of_turn: the token id that ends an assistant message.
        temperature: 0 for greedy.
    """

    def __init__(self, llm, tokenizer, end_of_turn: int, temperature: float = 1.0):
        self.llm, self.tokenizer, self.end_of_turn = llm, tokenizer, end_of_turn
        self.temperature, self.may_close = temperature, closing_tokens(tokenizer)
        # A model's own generation_config.json is not asked: nothing but the temperature
        # shapes the choice.
        self.ending = {
            "ignore_eos": True,
            "stop_token_ids": [end_of_turn],
            "stop": list(CLOSING),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }
        self.window = self._window()  # tokens
        # tokens computed so far: of prompts, where the cache had none, and sampled
        self.computed = 0

    @classmethod
    def open(
        cls, model: str, tokenizer, end_of_turn: int, temperature: float = 1.0, **llm
    ) -> "VLLMEngine":
        """Start vLLM on a folder or hub id; `llm` goes to `vllm.LLM`.

        Raises:
            ImportError: if vLLM is not installed.
        """
        try:
            from vllm import LLM
        except ImportError:
            raise ImportError(
                "vLLM is not installed: see requirements-gpu.txt."
            ) from None
        if not torch.cuda.is_available():
            settle_vllm_on_cpu()
            llm = {
                "block_size": 32,
                **llm,
            }  # what fills no block is not kept, and its own have 128 tokens
        engine = LLM(
            model, logprobs_mode="processed_logprobs", enable_prefix_caching=True, **llm
        )
        return cls(engine, tokenizer, end_of_turn, temperature)

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """One turn for each prompt: at most `max_new_tokens[i]` ids, ending where the
        turn ends."""
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                temperature=self.temperature,
                max_tokens=limit,
                logprobs=0,
                **self.ending,
            )
            for limit in max_new_tokens
        ]
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids]
        made = self.llm.generate(prompts, settings, use_tqdm=False)
        out = []
        for request in made:
            self.computed += len(request.prompt_token_ids) - (
                request.num_cached_tokens or 0
            )
            said = request.outputs[0]
            self.computed += len(said.token_ids)
            ids = list(said.token_ids)[: self._turn_length(said.token_ids)]
            logprobs = [step[token].logprob for step, token in zip(said.logprobs, ids)]
            out.append(Generation(ids, logprobs))
        return out

    def _window(self) -> int:
        return self.llm.llm_engine.model_config.max_model_len

    def _turn_length(self, ids) -> int:
        """Tokens up to the end of the turn: vLLM may find a closing tag a token
        late."""
        for n, token in enumerate(ids, 1):
            may_close = self.may_close[min(token, len(self.may_close) - 1)]
            if token == self.end_of_turn or (
                may_close and closes(self.tokenizer, ids[:n])
            ):
                return n
        return len(ids)


class ServerEngine(VLLMEngine):
    """The same from a vLLM server, which may have other GPUs; `llm` is TRL's client of
    it. Each process asks for its own turns, so that none waits for the conversations of
    another."""

    def _window(self) -> int:
        return self.llm.session.get(f"{self.llm.base_url}/v1/models").json()["data"][0][
            "max_model_len"
        ]

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        made = self.llm.generate(
            prompt_ids,
            temperature=self.temperature,
            max_tokens=max(max_new_tokens),
            generation_kwargs=self.ending,
        )
        out = []
        for ids, steps, limit in zip(
            made["completion_ids"], made["logprobs"], max_new_tokens, strict=True
        ):
            length = self._turn_length(ids[:limit])
            out.append(
                Generation(ids[:length], [logprob for logprob, *_ in steps[:length]])
            )
        return out


@contextmanager
def vllm_engine(vllm, *more):
    """The engine of one rollout on TRL's `VLLMGeneration`, to which TRL has pushed this
    step's weights."""
    if vllm.mode == "server":
        from trl.generation.vllm_client import VLLMClient  # imports vLLM

        vllm.accelerator.wait_for_everyone()  # for the first process, which pushes
        url = vllm.server_base_url or f"http://{vllm.server_host}:{vllm.server_port}"
        yield ServerEngine(VLLMClient(url), *more)
        return
    if vllm.enable_sleep_mode:
        if vllm._llm_weights_sleeping:  # a second rollout in this step
            vllm.sync_weights()
        vllm.llm.wake_up(tags=["kv_cache"])
    try:
        yield VLLMEngine(vllm.llm, *more)
    finally:
        if vllm.enable_sleep_mode:
            vllm.llm.sleep(
                level=2
            )  # drops the weights, which the next push brings back
            vllm._llm_weights_sleeping = True


@contextmanager
def whole_weights(model):
    """Every process holds all of a model that FSDP 2 has spread: passes then wait for
    no other process."""
    parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()


def settle_vllm_on_cpu(reload: bool = False) -> None:
    """Make vLLM's CPU build run in this process and on any core. Call this before the
    engine starts.

    Args:
        reload: keep the weights as they are. It packs them for oneDNN once they are
            loaded, and drops what it packed: weights pushed later, as TRL pushes them
            before every rollout, find no place.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    if reload:
        from vllm.model_executor.layers import utils

        def plain(layer, remove_weight: bool) -> None:
            layer.cpu_linear = torch.nn.functional.linear

        utils.dispatch_cpu_unquantized_gemm = plain
