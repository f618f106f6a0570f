"""Owns generation with vLLM: in this process, or on a server."""

import os
from contextlib import contextmanager

import torch

from kr1_utils.engines.base import Generation, closes, closing_tokens
from kr1_utils.protocol import CLOSING


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
            configure_vllm_cpu()
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


def configure_vllm_cpu(reload: bool = False) -> None:
    """Make vLLM's CPU build run in this process and on any core. Call this before the
    engine starts.

    Args:
        reload: keep the weights as they are. It packs them for oneDNN once they are
            loaded, and drops what it packed: weights pushed later, as TRL pushes them
            before every rollout, find no place.
    """
    from llvmlite.binding.ffi import lib

    # vLLM 0.31 on a CPU asks every loaded object for its `__dict__`, and numba's
    # library of compiled code takes that for the name of one of its functions: give
    # it a dict to answer with.
    lib._fntab.setdefault("__dict__", {})
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    if reload:
        from vllm.model_executor.layers import utils

        def plain(layer, remove_weight: bool) -> None:
            layer.cpu_linear = torch.nn.functional.linear

        utils.dispatch_cpu_unquantized_gemm = plain
