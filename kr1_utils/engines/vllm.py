"""Owns generation with vLLM: in this process, or on a server."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kr1_utils.engines.base import Generation, closes, closing_tokens
from kr1_utils.extras import missing
from kr1_utils.protocol import CLOSING

try:
    import torch
except ImportError:
    torch = missing("train")


class VLLMEngine:
    """Generates with vLLM (Kwon et al., 2023, https://arxiv.org/abs/2309.06180).

    Its prefix cache keeps keys and values of every conversation, so that a turn
    computes only what was appended since the last one. The system prompt is computed
    once for all conversations.

    Args:
        llm: a `vllm.LLM` made with `logprobs_mode="processed_logprobs"`, as TRL makes
            its own: log-probabilities are then those of the distribution that was
            sampled from.
        end_of_turn: the token id that ends an assistant message.
        temperature: 0 is greedy.

    Attributes:
        window: tokens that a prompt and its response may have together.
        computed: tokens that went through the model so far: of prompts, if the cache
            had none of them, and sampled.
        shaping: what shapes the choice of a token beside the temperature: any of
            top_k, top_p, min_p and repetition_penalty. Nothing does by default.
    """

    def __init__(self, llm, tokenizer, end_of_turn: int, temperature: float = 1.0):
        self.llm = llm
        self.tokenizer = tokenizer
        self.end_of_turn = end_of_turn
        self.temperature = temperature
        self.may_close = closing_tokens(tokenizer)
        # With `ignore_eos`, what the model's generation_config.json says of its end is
        # not asked. A turn ends where the transformers engine would end it.
        self.ending = {
            "ignore_eos": True,
            "stop_token_ids": [end_of_turn],
            "stop": list(CLOSING),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }
        self.shaping: dict = {}
        self.window = self._window()
        self.computed = 0

    @classmethod
    def open(
        cls, model: str, tokenizer, end_of_turn: int, temperature: float = 1.0, **llm
    ) -> "VLLMEngine":
        """Start vLLM in this process.

        Args:
            model: a folder, or a hub id.
            llm: further arguments of `vllm.LLM`.

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
            configure_vllm_cpu()
            # Only full blocks are kept for the next turn. A CPU's have 128 tokens by
            # default, and a turn is often shorter.
            llm = {"block_size": 32, **llm}
        engine = LLM(
            model, logprobs_mode="processed_logprobs", enable_prefix_caching=True, **llm
        )
        return cls(engine, tokenizer, end_of_turn, temperature)

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """One turn for each prompt, with log-probabilities.

        Arguments and what comes back are those of `engines.base.Engine`.
        """
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids]
        settings = [self._sampling_params(limit) for limit in max_new_tokens]
        requests = self.llm.generate(prompts, settings, use_tqdm=False)
        return [self._turn(request) for request in requests]

    def _window(self) -> int:
        return self.llm.llm_engine.model_config.max_model_len

    def _sampling_params(self, limit: int):
        from vllm import SamplingParams

        # logprobs=0: of the sampled token alone.
        return SamplingParams(
            temperature=self.temperature,
            max_tokens=limit,
            logprobs=0,
            **self.ending,
            **self.shaping,
        )

    def _turn(self, request) -> Generation:
        """The turn in a `vllm.RequestOutput`, and its tokens counted."""
        sampled = request.outputs[0]
        cached = request.num_cached_tokens or 0
        self.computed += len(request.prompt_token_ids) - cached
        self.computed += len(sampled.token_ids)
        ids = list(sampled.token_ids)[: self._turn_length(sampled.token_ids)]
        logprobs = [step[token].logprob for step, token in zip(sampled.logprobs, ids)]
        return Generation(ids, logprobs)

    def _turn_length(self, ids: Sequence[int]) -> int:
        """Tokens to the end of the turn: vLLM may find a closing tag a token late."""
        unknown = len(self.may_close) - 1
        for length, token in enumerate(ids, 1):
            if token == self.end_of_turn:
                return length
            may_close = self.may_close[min(token, unknown)]
            if may_close and closes(self.tokenizer, ids[:length]):
                return length
        return len(ids)


class ServerEngine(VLLMEngine):
    """The same from a vLLM server, which may have GPUs of its own.

    Each process asks for its own turns, so that none waits for the conversations of
    another.

    Args:
        llm: TRL's `VLLMClient` of that server.
    """

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """One turn for each prompt, with log-probabilities.

        Arguments and what comes back are those of `engines.base.Engine`.
        """
        made = self.llm.generate(
            prompt_ids,
            temperature=self.temperature,
            max_tokens=max(max_new_tokens),
            generation_kwargs=self.ending | self.shaping,
        )
        return [
            self._turn_of(ids[:limit], steps)
            for ids, steps, limit in zip(
                made["completion_ids"], made["logprobs"], max_new_tokens, strict=True
            )
        ]

    def _window(self) -> int:
        models = self.llm.session.get(f"{self.llm.base_url}/v1/models").json()
        return models["data"][0]["max_model_len"]

    def _turn_of(self, ids: list[int], steps: list[list[float]]) -> Generation:
        """The turn in `ids`; `steps` are log-probabilities, the sampled token's first.

        The server has one limit for all rows, so `ids` come cut at the row's own.
        """
        length = self._turn_length(ids)
        logprobs = [step[0] for step in steps[:length]]
        return Generation(ids[:length], logprobs)


@contextmanager
def vllm_engine(
    vllm, tokenizer, end_of_turn: int, temperature: float
) -> Iterator[VLLMEngine]:
    """The engine of one rollout, on the vLLM to which TRL has pushed this step's
    weights.

    Args:
        vllm: TRL's `VLLMGeneration`, in mode "server" or "colocate". With sleep mode,
            colocated vLLM wakes for the rollout and sleeps again after it.
    """
    if vllm.mode == "server":
        # It imports vLLM.
        from trl.generation.vllm_client import VLLMClient

        # The first process pushes the weights; until then the server has old ones.
        vllm.accelerator.wait_for_everyone()
        url = vllm.server_base_url or f"http://{vllm.server_host}:{vllm.server_port}"
        yield ServerEngine(VLLMClient(url), tokenizer, end_of_turn, temperature)
        return
    if vllm.enable_sleep_mode:
        # TRL has woken the weights when it pushed them. In a second rollout of one step
        # they are asleep again, and another push wakes them.
        if vllm._llm_weights_sleeping:
            vllm.sync_weights()
        vllm.llm.wake_up(tags=["kv_cache"])
    try:
        yield VLLMEngine(vllm.llm, tokenizer, end_of_turn, temperature)
    finally:
        if vllm.enable_sleep_mode:
            # Level 2 drops the weights: the next push brings new ones.
            vllm.llm.sleep(level=2)
            vllm._llm_weights_sleeping = True


def configure_vllm_cpu(reload: bool = False) -> None:
    """Make vLLM's CPU build run in this process and on any core.

    Call it before vLLM starts; to call it again changes nothing. A variable of the
    environment that is set already is left as it is.

    Args:
        reload: whether weights will be pushed to vLLM later, as TRL does before every
            rollout. It packs weights for oneDNN when it loads them and drops the
            originals, so that pushed ones would find no place. With `reload` the
            weights stay as they are.
    """
    _let_numba_answer_vllm()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # GiB
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    if reload:
        _keep_weights_unpacked()


def _let_numba_answer_vllm() -> None:
    """Keep vLLM from failing on numba's library of compiled code.

    vLLM 0.31 on a CPU asks every loaded object for its `__dict__`. That library takes
    the name for one of its functions, so it gets a dict to answer with.
    """
    from llvmlite.binding.ffi import lib

    lib._fntab.setdefault("__dict__", {})


def _keep_weights_unpacked() -> None:
    """Make vLLM's linear layers on a CPU plain ones, with the weights they have."""
    from vllm.model_executor.layers import utils

    def use_plain_linear(layer, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = use_plain_linear
