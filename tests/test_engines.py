"""Generation: the batch changes nothing, and a turn is cut exactly where it ends."""

import copy
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM
from trl.generation import vllm_client

from kr1_utils import engines, protocol
from kr1_utils.agent import rollout
from kr1_utils.engines import ServerEngine, TransformersEngine, TurnEnd, VLLMEngine
from kr1_utils.files import REPO
from kr1_utils.models import load
from kr1_utils.profiles import PROFILES

LIMIT = 48


@pytest.fixture(scope="module")
def prompts(tokenizer, chat, questions):
    """First turns and, longer, second turns."""
    out = []
    for i, q in enumerate(questions["test"][:8] + questions["test_single"][:8]):
        ids = protocol.prompt_ids(
            tokenizer, protocol.messages(q["question"], PROFILES["tiny"].system_prompt)
        )
        if i % 2:
            turn = protocol.render_turn(
                "I need to read about it.", "search", q["supporting_titles"][0]
            )
            found = [{"title": q["supporting_titles"][0], "text": "Some text. " * i}]
            ids += tokenizer(turn, add_special_tokens=False)["input_ids"] + [
                chat.end_of_turn
            ]
            ids += protocol.observation_ids(tokenizer, chat, found, 128)
        out.append(ids)
    return out


@pytest.fixture(scope="module")
def engine(tiny, chat):
    return TransformersEngine(*tiny, chat.end_of_turn, temperature=0)


@pytest.fixture(scope="module")
def greedy(engine, prompts):
    """Each prompt on its own."""
    return [engine.generate([p], [LIMIT])[0].ids for p in prompts]


def assert_same(model, prompts, ones, others):
    """Equal ids; where they part, the two best tokens must be as good as equal."""
    parted = 0
    for prompt, one, other in zip(prompts, ones, others, strict=True):
        if one == other:
            continue
        at = next(
            i
            for i, (a, b) in enumerate(zip([*one, -1], [*other, -1], strict=False))
            if a != b
        )
        with torch.no_grad():
            best = model(torch.tensor([prompt + one[:at]])).logits[0, -1].topk(2).values
        assert best[0] - best[1] < 1e-3, (one, other)
        parted += 1
    assert parted <= len(prompts) // 4


def test_greedy_batch_says_what_single_prompts_say(tiny, engine, prompts, greedy):
    assert len(set(map(len, prompts))) > 3  # else nothing is padded
    batch = engine.generate(prompts, [LIMIT] * len(prompts))
    assert_same(tiny[0], prompts, greedy, [g.ids for g in batch])


def test_batches_of_three_say_the_same(tiny, chat, prompts, greedy):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=0, batch_size=3)
    assert_same(
        tiny[0],
        prompts,
        greedy,
        [g.ids for g in engine.generate(prompts, [LIMIT] * len(prompts))],
    )


def test_greedy_ids_are_the_arg_max_of_the_model(tiny, prompts, greedy):
    for prompt, ids in zip(prompts[:4], greedy[:4], strict=True):
        with torch.no_grad():
            logits = tiny[0](torch.tensor([prompt + ids])).logits[
                0, len(prompt) - 1 : -1
            ]
        best = logits.topk(2).values
        clear = best[:, 0] - best[:, 1] > 1e-3
        assert (logits.argmax(-1) == torch.tensor(ids))[
            clear
        ].all() and clear.sum() > len(ids) // 2


def ends_where_it_must(tokenizer, end_of_turn, ids, limit):
    """The length that a turn must have, found by reading it from its start each
    time."""
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        if (
            ids[n - 1] == end_of_turn
            or n == limit
            or "</search>" in text
            or "</answer>" in text
        ):
            return n
    return None


def test_turns_end_exactly_after_the_closing_tag(tokenizer, chat, greedy):
    closed = 0
    for ids in greedy:
        assert ids and ends_where_it_must(
            tokenizer, chat.end_of_turn, ids, LIMIT
        ) == len(ids)
        closed += tokenizer.decode(ids).endswith(protocol.CLOSING)
    assert closed >= len(greedy) // 2


def test_each_row_keeps_its_own_limit(engine, prompts, greedy):
    limits = [1 + i % 5 for i in range(len(prompts))]
    limits[0] = LIMIT
    for g, whole, limit in zip(
        engine.generate(prompts, limits), greedy, limits, strict=True
    ):
        assert 1 <= len(g.ids) <= limit
        assert g.ids == whole[:limit]


@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>"])
def test_padding_is_not_taken_for_end_of_turn(tiny, chat, prompts, greedy, pad):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.pad_token = pad
    engine = TransformersEngine(tiny[0], tokenizer, chat.end_of_turn, temperature=0)
    batch = engine.generate(prompts, [LIMIT] * len(prompts))
    assert len({len(g.ids) for g in batch}) > 1  # else no row is padded at its end
    assert_same(tiny[0], prompts, greedy, [g.ids for g in batch])


def test_sampling_follows_the_seed_and_is_not_greedy(tiny, chat, prompts, greedy):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=1.5)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([g.ids for g in engine.generate(prompts, [LIMIT] * len(prompts))])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] != greedy


def test_sampled_turns_are_cut_too(tiny, tokenizer, chat, prompts):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=1.5)
    torch.manual_seed(0)
    for g in engine.generate(prompts, [LIMIT] * len(prompts)):
        assert ends_where_it_must(tokenizer, chat.end_of_turn, g.ids, LIMIT) == len(
            g.ids
        )


def test_generating_leaves_training_mode_as_it_was(tiny, engine, prompts):
    model = tiny[0]
    model.train()
    try:
        engine.generate(prompts[:1], [2])
        assert model.training
    finally:
        model.eval()
    engine.generate(prompts[:1], [2])
    assert not model.training


def test_no_prompts_give_no_turns(engine):
    assert engine.generate([], []) == []


PIECES = [
    "</search>",
    "</answer>",
    "</think>",
    "<search>",
    "ĠDara",
    "Ċ",
    ">",
    "<",
    "/",
    "<|im_end|>",
]
SPELLED = [*"</search>"], [*"</answer>"], [*"</think>"], ["<", "/", *"search"]


@st.composite
def turns(draw):
    """Token strings of a turn; tags come whole or spelled out in single characters."""
    pieces = st.one_of(
        st.sampled_from(PIECES).map(lambda p: [p]), st.sampled_from(SPELLED)
    )
    return sum(draw(st.lists(pieces, max_size=8)), [])


@given(
    st.lists(st.tuples(turns(), st.integers(1, 40)), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_batch_of_turns_stops_where_each_must(tokenizer, chat, rows, pad_is_end):
    pad = chat.end_of_turn if pad_is_end else tokenizer.pad_token_id
    filler = tokenizer.convert_tokens_to_ids("x")
    prompt, limits = [5, 6, 7], [limit for _, limit in rows]
    ids = []
    for tokens, limit in rows:
        row = tokenizer.convert_tokens_to_ids(tokens)
        assert None not in row
        ids.append((row + [filler] * limit)[: max(limits)])
    turn_end = TurnEnd(tokenizer, chat.end_of_turn, limits, len(prompt))
    wanted = [
        ends_where_it_must(tokenizer, chat.end_of_turn, r, n)
        for r, n in zip(ids, limits, strict=True)
    ]
    for step in range(
        1, max(limits) + 1
    ):  # as transformers does: finished rows go on with padding
        seen = [
            prompt + [t if i < n else pad for i, t in enumerate(r[:step])]
            for r, n in zip(ids, wanted, strict=True)
        ]
        width = len(prompt) + step
        batch = torch.tensor([s + [pad] * (width - len(s)) for s in seen])
        assert turn_end(batch, None).tolist() == [step >= n for n in wanted]
    assert turn_end.length == wanted


class Words:
    """As much of a tokenizer as finding the end of a turn needs."""

    def __init__(self, words):
        self.words = words

    def __len__(self):
        return len(self.words)

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]


@pytest.mark.parametrize("last", [">", ">\n", "></", "><think>"])
def test_token_that_holds_more_than_the_end_of_a_tag_ends_the_turn(last):
    turn_end = TurnEnd(Words(["<|end|>", "x", "</search", last]), 0, [9], 0)
    assert [
        turn_end(torch.tensor([ids]), None).tolist() for ids in ([1], [1, 2], [1, 2, 3])
    ] == [[False], [False], [True]]
    assert turn_end.length == [3]


def test_closing_tokens_of_one_tokenizer_are_not_taken_for_anothers():
    for size in range(2, 40):  # each is thrown away, and the next may lie where it lay
        table = engines.closing_tokens(Words(["a"] * (size - 1) + [">"]))
        assert table.tolist() == [False] * (size - 1) + [
            True,
            False,
        ]  # the last: ids past its own


def conversation(
    tiny,
    retriever,
    chat,
    questions,
    keep_cache,
    batch_size=256,
    temperature=0.0,
    own=None,
):
    """Trajectories of whole conversations with the trained adapter, and the engine that
    made them."""
    torch.manual_seed(0)
    adapter = REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint"
    model, tokenizer = load("data/tiny-lm", adapter)
    model.generation_config.update(**own or {})
    engine = TransformersEngine(
        model, tokenizer, chat.end_of_turn, temperature, batch_size, keep_cache
    )
    profile = PROFILES["tiny"]
    return rollout(
        engine, tokenizer, retriever, questions, profile.limits, profile.system_prompt
    ), engine


@pytest.mark.parametrize("batch_size", [256, 5])
def test_kept_keys_and_values_change_nothing_but_the_work(
    tiny, retriever, chat, questions, batch_size
):
    asked = (
        questions["test"][:12] + questions["test"][:2]
    )  # two conversations stand twice
    kept, with_cache = conversation(tiny, retriever, chat, asked, True, batch_size)
    fresh, without = conversation(tiny, retriever, chat, asked, False, batch_size)
    assert sum(t.searches for t in fresh) > len(asked)  # else there is nothing to keep
    prompts = [t.prompt_ids for t in fresh]
    assert_same(
        tiny[0],
        prompts,
        [t.completion_ids for t in fresh],
        [t.completion_ids for t in kept],
    )
    last = [len(t.prompt_ids + t.completion_ids) for t in fresh]
    assert with_cache.computed < without.computed
    if (
        batch_size == 256
    ):  # padding and finished rows included, still no prompt is computed twice
        assert with_cache.computed < 1.5 * sum(last) < without.computed


def test_a_models_own_generation_config_changes_nothing(
    tiny, retriever, chat, questions
):
    """Qwen2.5's asks for a repetition penalty, and others for a second token that ends
    a turn."""

    def said(temperature):
        return [
            t.completion_ids
            for t in conversation(
                tiny,
                retriever,
                chat,
                questions["test"][:8],
                True,
                temperature=temperature,
                own=own,
            )[0]
        ]

    own = {}
    plain = [said(t) for t in (0.0, 1.0)]
    words = tiny[1](" I need to read about", add_special_tokens=False)["input_ids"]
    own = {
        "repetition_penalty": 1.3,
        "top_p": 0.3,
        "top_k": 2,
        "temperature": 0.5,
        "do_sample": True,
        "eos_token_id": [chat.end_of_turn, *words],
    }
    assert [said(t) for t in (0.0, 1.0)] == plain


def test_shared_keys_and_values_are_not_copied_for_each_head(tiny, chat, prompts):
    """As in SmolLM2 and Qwen2.5, several query heads share one head of keys and
    values."""
    config = copy.deepcopy(tiny[0].config)
    config.num_key_value_heads, config.num_hidden_layers = 2, 2
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    x = tiny[1].pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        expected, unpadded = model(**x).logits, model(x["input_ids"]).logits
        model.set_attn_implementation("sdpa_grouped")
        assert torch.equal(model(**x).logits, expected)
        assert torch.equal(model(x["input_ids"]).logits, unpadded)
    model.set_attn_implementation("sdpa")
    engine = TransformersEngine(model, tiny[1], chat.end_of_turn, temperature=0)
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda *_: seen.append(model.config._attn_implementation)
    )
    ones = [engine.generate([p], [12])[0].ids for p in prompts]
    assert_same(
        model,
        prompts,
        ones,
        [g.ids for g in engine.generate(prompts, [12] * len(prompts))],
    )
    hook.remove()
    assert "sdpa_grouped" in seen and model.config._attn_implementation == "sdpa"


def test_a_prompt_that_is_known_to_its_last_token_is_continued(engine, prompts, greedy):
    whole = prompts[0] + greedy[0][:5]
    engine.kept = {}
    first = engine.generate([whole], [LIMIT])[0].ids
    engine.kept = {tuple(whole): next(iter(engine.kept.values()))}
    assert engine.generate([whole], [LIMIT])[0].ids == first == greedy[0][5:]


# --- vLLM, without vLLM: what it returns is cut as ours is (real vLLM is in
# test_vllm.py) ---


class Replay:
    """Stands in for `vllm.LLM`: says given ids, however far they run past the end of
    the turn."""

    def __init__(self, said, cached=0):
        self.said, self.cached, self.settings = said, cached, []
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=512)
        )

    def generate(self, prompts, settings, use_tqdm):
        self.settings = settings
        return [
            SimpleNamespace(
                prompt_token_ids=p["prompt_token_ids"],
                num_cached_tokens=self.cached,
                outputs=[
                    SimpleNamespace(
                        token_ids=ids,
                        logprobs=[
                            {i: SimpleNamespace(logprob=-float(n))}
                            for n, i in enumerate(ids)
                        ],
                    )
                ],
            )
            for p, ids in zip(prompts, self.said, strict=True)
        ]


@pytest.fixture
def no_vllm(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace)
    )


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
    no_vllm, tiny, chat, text, kept
):
    tokenizer = tiny[1]
    said = tokenizer(text, add_special_tokens=False)["input_ids"]
    llm = Replay([said, said], cached=3)
    engine = VLLMEngine(llm, tokenizer, chat.end_of_turn, temperature=0.7)
    made = engine.generate([[5] * 8, [6] * 4], [20, 9])
    assert [tokenizer.decode(g.ids) for g in made] == [kept] * 2
    assert [g.logprobs for g in made] == [
        [-float(n) for n in range(len(g.ids))] for g in made
    ]
    assert engine.computed == 5 + 1 + 2 * len(said) and engine.window == 512
    assert [s.max_tokens for s in llm.settings] == [20, 9]
    assert {(s.temperature, s.include_stop_str_in_output) for s in llm.settings} == {
        (0.7, True)
    }


def test_ids_past_the_tokenizers_end_no_turn(no_vllm, tiny, chat):
    unknown = len(tiny[1]) + 40  # models may have more ids than their tokenizer
    engine = VLLMEngine(Replay([[unknown, unknown]]), tiny[1], chat.end_of_turn)
    assert engine.generate([[5]], [9])[0].ids == [unknown, unknown]
    turn_end = TurnEnd(tiny[1], chat.end_of_turn, [9], 0)
    assert turn_end(torch.tensor([[unknown]]), None).tolist() == [False]


def test_vllm_that_is_not_installed_is_said_so(monkeypatch, tiny, chat):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="requirements-gpu"):
        VLLMEngine.open("x", tiny[1], chat.end_of_turn)


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
            "tokens": [f"token_id:{i}" for i in said],
            "top_logprobs": [None] * len(said),
            "token_logprobs": [-float(n) for n in range(len(said))],
        }
        self.answer(
            {
                "choices": [
                    {"prompt_token_ids": p, "token_ids": said, "logprobs": steps}
                    for p in asked["prompt"]
                ]
            }
        )

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        server.asked = []
        yield server
        server.shutdown()


def test_what_a_vllm_server_says_past_the_end_of_the_turn_is_dropped(
    server, monkeypatch, tiny, chat
):
    monkeypatch.setattr(
        vllm_client, "is_vllm_available", lambda: True
    )  # the client itself needs none of it
    tokenizer, client = (
        tiny[1],
        vllm_client.VLLMClient(f"http://127.0.0.1:{server.server_port}"),
    )
    server.said = tokenizer(
        "<search> Dara</search><think> more", add_special_tokens=False
    )["input_ids"]
    engine = ServerEngine(client, tokenizer, chat.end_of_turn, temperature=0.7)
    whole, cut = engine.generate([[5] * 8, [6] * 4], [20, 2])
    assert (
        tokenizer.decode(whole.ids) == "<search> Dara</search>"
        and cut.ids == server.said[:2]
    )
    assert [whole.logprobs, cut.logprobs] == [
        [-float(n) for n in range(len(g.ids))] for g in (whole, cut)
    ]
    (asked,) = server.asked
    assert asked["prompt"] == [[5] * 8, [6] * 4] and engine.window == 512
    assert (
        asked["max_tokens"],
        asked["temperature"],
        asked["top_k"],
        asked["top_p"],
    ) == (20, 0.7, 0, 1.0)
    assert (
        asked["stop_token_ids"] == [chat.end_of_turn]
        and asked["include_stop_str_in_output"]
    )
