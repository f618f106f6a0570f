"""What vLLM returns is cut as ours is; here without vLLM, in test_vllm.py with it."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest
import torch
from llvmlite.binding.ffi import lib
from trl.generation import vllm_client

from kr1_utils import protocol
from kr1_utils.engines import (
    ServerEngine,
    VLLMEngine,
    configure_vllm_cpu,
    vllm_engine,
)


class Replay:
    """Acts as `vllm.LLM`: says given ids, however far they run past the turn's end."""

    def __init__(self, said, cached=0):
        self.said = said
        self.cached = cached
        self.settings = []
        self.told = []
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=512)
        )

    def generate(self, prompts, settings, use_tqdm):
        self.settings = settings
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                num_cached_tokens=self.cached,
                outputs=[self._output(ids)],
            )
            for prompt, ids in zip(prompts, self.said, strict=True)
        ]

    @staticmethod
    def _output(ids):
        steps = [
            {token: SimpleNamespace(logprob=-float(number))}
            for number, token in enumerate(ids)
        ]
        return SimpleNamespace(token_ids=ids, logprobs=steps)

    def wake_up(self, tags):
        self.told.append(("wake", *tags))

    def sleep(self, level):
        self.told.append(("sleep", level))


def counted(ids):
    """The log-probabilities that `Replay` and `Completions` give."""
    return [-float(number) for number in range(len(ids))]


@pytest.fixture
def no_vllm(monkeypatch):
    """Settings for sampling can be made without vLLM."""
    vllm = SimpleNamespace(SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)


@pytest.mark.parametrize(
    "text, kept",
    [
        ("<search> Dara</search><think> more", "<search> Dara</search>"),
        ("<answer> Dara</answer>", "<answer> Dara</answer>"),
        ("<think> Dara<|im_end|> more", "<think> Dara<|im_end|>"),
        ("<think> Dara", "<think> Dara"),
        ("", ""),
    ],
)
def test_what_vllm_says_past_the_end_of_the_turn_is_dropped(
    no_vllm, tokenizer, chat, text, kept
):
    said = protocol.encode(tokenizer, text)
    llm = Replay([said, said], cached=3)
    engine = VLLMEngine(llm, tokenizer, chat.end_of_turn, temperature=0.7)
    made = engine.generate([[5] * 8, [6] * 4], [20, 9])
    assert [tokenizer.decode(g.ids) for g in made] == [kept] * 2
    assert [g.logprobs for g in made] == [counted(g.ids) for g in made]
    assert engine.computed == (8 - 3) + (4 - 3) + 2 * len(said)
    assert engine.window == 512
    assert [s.max_tokens for s in llm.settings] == [20, 9]
    for settings in llm.settings:
        assert settings.temperature == 0.7
        assert settings.include_stop_str_in_output


def test_ids_past_the_tokenizers_end_no_turn(no_vllm, tokenizer, chat):
    # Models may have more ids than their tokenizer.
    unknown = len(tokenizer) + 40
    engine = VLLMEngine(Replay([[unknown, unknown]]), tokenizer, chat.end_of_turn)
    assert engine.generate([[5]], [9])[0].ids == [unknown, unknown]


def test_vllm_that_is_not_installed_is_said_so(monkeypatch, tokenizer, chat):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="requirements-gpu"):
        VLLMEngine.open("x", tokenizer, chat.end_of_turn)


# --- vLLM in TRL's process ---


def colocated(sleeping_weights):
    """As much of TRL's `VLLMGeneration` as a rollout touches."""
    llm = Replay([])
    return SimpleNamespace(
        mode="colocate",
        enable_sleep_mode=True,
        _llm_weights_sleeping=sleeping_weights,
        llm=llm,
        sync_weights=lambda: llm.told.append(("push",)),
    )


@pytest.mark.parametrize("sleeping, push", [(False, []), (True, [("push",)])])
def test_vllm_wakes_for_a_rollout_and_sleeps_after_it(tokenizer, chat, sleeping, push):
    vllm = colocated(sleeping)
    with vllm_engine(vllm, tokenizer, chat.end_of_turn, 1.0) as engine:
        assert engine.llm is vllm.llm
        assert vllm.llm.told == [*push, ("wake", "kv_cache")]
    assert vllm.llm.told[-1] == ("sleep", 2)
    assert vllm._llm_weights_sleeping


def test_vllm_sleeps_after_a_rollout_that_failed(tokenizer, chat):
    vllm = colocated(sleeping_weights=False)
    with (
        pytest.raises(RuntimeError, match="a search failed"),
        vllm_engine(vllm, tokenizer, chat.end_of_turn, 1.0),
    ):
        raise RuntimeError("a search failed")
    assert vllm.llm.told[-1] == ("sleep", 2)


def test_vllm_without_sleep_mode_stays_awake(tokenizer, chat):
    vllm = colocated(sleeping_weights=False)
    vllm.enable_sleep_mode = False
    with vllm_engine(vllm, tokenizer, chat.end_of_turn, 1.0):
        pass
    assert vllm.llm.told == []


# --- vLLM on a CPU ---


@pytest.fixture
def untouched(monkeypatch):
    """Environment and llvmlite as they are before vLLM is configured."""
    for name in (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_CPU_KVCACHE_SPACE",
    ):
        # Setting it first makes monkeypatch restore what it was.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    functions = dict(lib._fntab)
    functions.pop("__dict__", None)
    monkeypatch.setattr(lib, "_fntab", functions)


def test_configuring_twice_changes_nothing_more(untouched, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    configure_vllm_cpu()
    functions = dict(lib._fntab)
    environment = dict(os.environ)
    assert functions["__dict__"] == {}
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    configure_vllm_cpu()
    assert dict(lib._fntab) == functions and dict(os.environ) == environment


def test_weights_that_are_pushed_later_are_not_packed(untouched, monkeypatch):
    utils = SimpleNamespace(dispatch_cpu_unquantized_gemm=None)
    layers = ModuleType("vllm.model_executor.layers")
    layers.utils = utils
    for name in ("vllm", "vllm.model_executor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers", layers)
    configure_vllm_cpu(reload=True)
    layer = SimpleNamespace()
    utils.dispatch_cpu_unquantized_gemm(layer, True)
    assert layer.cpu_linear is torch.nn.functional.linear


# --- on a server ---


class Completions(BaseHTTPRequestHandler):
    """Speaks a vLLM server's protocol, and says `server.said` to every prompt."""

    def answer(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self):
        self.answer({"data": [{"id": "tiny", "max_model_len": 512}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        said = self.server.said
        steps = {
            "tokens": [f"token_id:{token}" for token in said],
            "top_logprobs": [None] * len(said),
            "token_logprobs": counted(said),
        }
        choices = [
            {"prompt_token_ids": prompt, "token_ids": said, "logprobs": steps}
            for prompt in asked["prompt"]
        ]
        self.answer({"choices": choices})

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    # TRL's client refuses to be made without vLLM, of which it needs nothing here.
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda: True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        server.asked = []
        yield server
        server.shutdown()


def test_what_a_vllm_server_says_past_the_end_of_the_turn_is_dropped(
    server, tokenizer, chat
):
    client = vllm_client.VLLMClient(f"http://127.0.0.1:{server.server_port}")
    text = "<search> Dara</search><think> more"
    server.said = protocol.encode(tokenizer, text)
    engine = ServerEngine(client, tokenizer, chat.end_of_turn, temperature=0.7)
    whole, cut = engine.generate([[5] * 8, [6] * 4], [20, 2])
    assert tokenizer.decode(whole.ids) == "<search> Dara</search>"
    assert cut.ids == server.said[:2]
    assert whole.logprobs == counted(whole.ids)
    assert cut.logprobs == counted(cut.ids)
    assert engine.window == 512
    (asked,) = server.asked
    assert asked["prompt"] == [[5] * 8, [6] * 4]
    assert asked["max_tokens"] == 20
    assert asked["temperature"] == 0.7
    assert (asked["top_k"], asked["top_p"]) == (0, 1.0)
    assert asked["stop_token_ids"] == [chat.end_of_turn]
    assert asked["include_stop_str_in_output"]


def test_rollout_on_a_server_waits_until_the_weights_are_pushed(
    server, tokenizer, chat
):
    waited = []
    accelerator = SimpleNamespace(wait_for_everyone=lambda: waited.append(True))
    vllm = SimpleNamespace(
        mode="server",
        accelerator=accelerator,
        server_base_url=None,
        server_host="127.0.0.1",
        server_port=server.server_port,
    )
    with vllm_engine(vllm, tokenizer, chat.end_of_turn, 1.0) as engine:
        assert isinstance(engine, ServerEngine)
        assert waited == [True]
        assert engine.window == 512
