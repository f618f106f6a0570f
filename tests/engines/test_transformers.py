"""The batch changes nothing, and a turn is cut exactly where it ends."""

import copy

import pytest
import torch
from helpers import Words, assert_same_up_to_ties, turn_length
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import protocol
from kr1_utils.agent import rollout
from kr1_utils.engines import TransformersEngine, TurnEnd
from kr1_utils.engines.transformers import left_pad
from kr1_utils.files import REPO
from kr1_utils.models import load
from kr1_utils.profiles import PROFILES

LIMIT = 48


@pytest.fixture(scope="module")
def engine(tiny, chat):
    return TransformersEngine(*tiny, chat.end_of_turn, temperature=0)


@pytest.fixture(scope="module")
def greedy(engine, prompts):
    """Each prompt on its own."""
    return [engine.generate([prompt], [LIMIT])[0].ids for prompt in prompts]


def generate(engine, prompts):
    """The ids of each prompt's turn, made in one call."""
    made = engine.generate(prompts, [LIMIT] * len(prompts))
    return [generation.ids for generation in made]


def test_greedy_batch_says_what_single_prompts_say(tiny, engine, prompts, greedy):
    lengths = {len(prompt) for prompt in prompts}
    assert len(lengths) > 3, "nothing would be padded"
    assert_same_up_to_ties(tiny[0], prompts, greedy, generate(engine, prompts))


def test_batches_of_three_say_the_same(tiny, chat, prompts, greedy):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=0, batch_size=3)
    assert_same_up_to_ties(tiny[0], prompts, greedy, generate(engine, prompts))


def test_greedy_ids_are_the_arg_max_of_the_model(tiny, prompts, greedy):
    for prompt, ids in zip(prompts[:4], greedy[:4], strict=True):
        with torch.no_grad():
            logits = tiny[0](torch.tensor([prompt + ids])).logits[0]
        of_turn = logits[len(prompt) - 1 : -1]
        best = of_turn.topk(2).values
        clear = best[:, 0] - best[:, 1] > 1e-3
        is_best = of_turn.argmax(-1) == torch.tensor(ids)
        assert is_best[clear].all() and clear.sum() > len(ids) // 2


def test_turns_end_exactly_after_the_closing_tag(tokenizer, chat, greedy):
    closed = 0
    for ids in greedy:
        assert ids
        assert turn_length(tokenizer, chat.end_of_turn, ids, LIMIT) == len(ids)
        closed += tokenizer.decode(ids).endswith(protocol.CLOSING)
    assert closed >= len(greedy) // 2


def test_each_row_keeps_its_own_limit(engine, prompts, greedy):
    limits = [1 + number % 5 for number in range(len(prompts))]
    limits[0] = LIMIT
    made = engine.generate(prompts, limits)
    for g, whole, limit in zip(made, greedy, limits, strict=True):
        assert 1 <= len(g.ids) <= limit
        assert g.ids == whole[:limit]


@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>"])
def test_padding_is_not_taken_for_end_of_turn(tiny, chat, prompts, greedy, pad):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.pad_token = pad
    engine = TransformersEngine(tiny[0], tokenizer, chat.end_of_turn, temperature=0)
    batch = generate(engine, prompts)
    assert len({len(ids) for ids in batch}) > 1, "no row would be padded at its end"
    assert_same_up_to_ties(tiny[0], prompts, greedy, batch)


def test_tokenizer_without_a_padding_token_will_do(tiny, chat, prompts, greedy):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.pad_token = None
    engine = TransformersEngine(tiny[0], tokenizer, chat.end_of_turn, temperature=0)
    assert_same_up_to_ties(tiny[0], prompts, greedy, generate(engine, prompts))


def test_sampling_follows_the_seed_and_is_not_greedy(tiny, chat, prompts, greedy):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=1.5)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(generate(engine, prompts))
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] != greedy


def test_sampled_turns_are_cut_too(tiny, tokenizer, chat, prompts):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=1.5)
    torch.manual_seed(0)
    for ids in generate(engine, prompts):
        assert turn_length(tokenizer, chat.end_of_turn, ids, LIMIT) == len(ids)


def test_generating_leaves_training_mode_and_attention_as_they_were(
    tiny, engine, prompts
):
    model = tiny[0]
    attention = model.config._attn_implementation
    model.train()
    try:
        engine.generate(prompts[:1], [2])
        assert model.training
    finally:
        model.eval()
    engine.generate(prompts[:1], [2])
    assert not model.training
    assert model.config._attn_implementation == attention


def test_an_error_while_generating_leaves_the_model_as_it_was(tiny, chat, prompts):
    model = copy.deepcopy(tiny[0]).train()
    attention = model.config._attn_implementation

    def fail(*_):
        raise RuntimeError("no memory")

    model.model.register_forward_pre_hook(fail)
    engine = TransformersEngine(model, tiny[1], chat.end_of_turn)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.generate(prompts[:1], [2])
    assert model.training and model.config._attn_implementation == attention


def test_no_prompts_give_no_turns(engine):
    assert engine.generate([], []) == []


# --- laying a batch ---


def test_known_and_new_tokens_lie_where_the_example_says():
    prompts = [[1, 2, 3, 4], [5, 6], [7, 8]]
    ids, attention = left_pad(prompts, [3, 1, 0], filler=9)
    assert ids.tolist() == [[1, 2, 3, 9, 4], [9, 9, 5, 9, 6], [9, 9, 9, 7, 8]]
    assert attention.tolist() == [[1, 1, 1, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 1, 1]]


@st.composite
def rows_with_known_beginnings(draw):
    """(token ids, how many of the first are known, fewer than all) of each row."""
    token_ids = st.lists(st.integers(1, 50), min_size=1, max_size=12)
    prompts = draw(st.lists(token_ids, min_size=1, max_size=5))
    return [(ids, draw(st.integers(0, len(ids) - 1))) for ids in prompts]


@given(rows_with_known_beginnings())
def test_no_token_is_lost_moved_or_hidden_by_padding(rows):
    prompts = [ids for ids, _ in rows]
    known = [length for _, length in rows]
    ids, attention = left_pad(prompts, known, filler=0)
    past = max(known)
    width = past + max(len(p) - n for p, n in zip(prompts, known))
    assert ids.shape == attention.shape == (len(rows), width)
    assert ids.dtype == attention.dtype == torch.long
    for row, (prompt, length) in enumerate(rows):
        shown = attention[row].bool()
        assert ids[row][shown].tolist() == prompt
        assert shown[:past].sum() == length
        assert shown[width - 1] and (ids[row][~shown] == 0).all()


# --- the end of a turn ---

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
SPELLED = [
    [*"</search>"],
    [*"</answer>"],
    [*"</think>"],
    ["<", "/", *"search"],
]


@st.composite
def turns(draw):
    """Tokens of a turn; tags come whole or spelled out in single characters."""
    whole = st.sampled_from(PIECES).map(lambda piece: [piece])
    pieces = draw(st.lists(whole | st.sampled_from(SPELLED), max_size=8))
    return sum(pieces, [])


@given(
    st.lists(st.tuples(turns(), st.integers(1, 40)), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_batch_of_turns_stops_where_each_must(tokenizer, chat, rows, pad_is_end):
    pad = chat.end_of_turn if pad_is_end else tokenizer.pad_token_id
    filler = tokenizer.convert_tokens_to_ids("x")
    prompt = [5, 6, 7]
    limits = [limit for _, limit in rows]
    longest = max(limits)
    ids = []
    for tokens, limit in rows:
        row = tokenizer.convert_tokens_to_ids(tokens)
        assert None not in row
        ids.append((row + [filler] * limit)[:longest])
    wanted = [
        turn_length(tokenizer, chat.end_of_turn, row, limit)
        for row, limit in zip(ids, limits, strict=True)
    ]
    turn_end = TurnEnd(tokenizer, chat.end_of_turn, limits, len(prompt))
    for step in range(1, longest + 1):
        # As in transformers, finished rows go on with padding.
        seen = []
        for row, length in zip(ids, wanted, strict=True):
            shown = row[: min(step, length)]
            seen.append(prompt + shown + [pad] * (step - len(shown)))
        finished = turn_end(torch.tensor(seen), None)
        assert finished.tolist() == [step >= length for length in wanted]
    assert turn_end.length == wanted


@pytest.mark.parametrize("last", [">", ">\n", "></", "><think>"])
def test_token_that_holds_more_than_the_end_of_a_tag_ends_the_turn(last):
    turn_end = TurnEnd(Words(["<|end|>", "x", "</search", last]), 0, [9], 0)
    assert turn_end(torch.tensor([[1]]), None).tolist() == [False]
    assert turn_end(torch.tensor([[1, 2]]), None).tolist() == [False]
    assert turn_end(torch.tensor([[1, 2, 3]]), None).tolist() == [True]
    assert turn_end.length == [3]


def test_id_past_the_tokenizers_ends_no_turn(tokenizer, chat):
    # Models may have more ids than their tokenizer.
    unknown = len(tokenizer) + 40
    turn_end = TurnEnd(tokenizer, chat.end_of_turn, [9], 0)
    assert turn_end(torch.tensor([[unknown]]), None).tolist() == [False]


# --- whole conversations ---


def converse(retriever, chat, questions, keep_cache, own_config=None, **more):
    """Trajectories of the trained adapter, and the engine that made them."""
    torch.manual_seed(0)
    adapter = REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint"
    model, tokenizer = load("data/tiny-lm", adapter)
    model.generation_config.update(**own_config or {})
    engine = TransformersEngine(
        model, tokenizer, chat.end_of_turn, keep_cache=keep_cache, **more
    )
    profile = PROFILES["tiny"]
    limits, system_prompt = profile.limits, profile.system_prompt
    trajectories = rollout(
        engine, tokenizer, retriever, questions, limits, system_prompt
    )
    return trajectories, engine


@pytest.mark.parametrize("batch_size", [256, 5])
def test_kept_keys_and_values_change_nothing_but_the_work(
    tiny, retriever, chat, questions, batch_size
):
    twice = questions["test"][:2]
    asked = questions["test"][:12] + twice
    options = {"temperature": 0.0, "batch_size": batch_size}
    kept, with_cache = converse(retriever, chat, asked, True, **options)
    fresh, without = converse(retriever, chat, asked, False, **options)
    searches = sum(t.searches for t in fresh)
    assert searches > len(asked), "there would be little to keep"
    assert_same_up_to_ties(
        tiny[0],
        [t.prompt_ids for t in fresh],
        [t.completion_ids for t in fresh],
        [t.completion_ids for t in kept],
    )
    assert with_cache.computed < without.computed
    if batch_size == 256:
        # Padding and finished rows included, no prompt is computed twice.
        tokens = sum(len(t.prompt_ids + t.completion_ids) for t in fresh)
        assert with_cache.computed < 1.5 * tokens < without.computed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_models_own_generation_config_changes_nothing(
    tokenizer, retriever, chat, questions, temperature
):
    """Qwen2.5's has a repetition penalty, others a second token that ends a turn."""
    words = protocol.encode(tokenizer, " I need to read about")
    own_config = {
        "repetition_penalty": 1.3,
        "top_p": 0.3,
        "top_k": 2,
        "temperature": 0.5,
        "do_sample": True,
        "eos_token_id": [chat.end_of_turn, *words],
    }

    def said(own_config):
        trajectories, _ = converse(
            retriever,
            chat,
            questions["test"][:8],
            True,
            own_config,
            temperature=temperature,
        )
        return [t.completion_ids for t in trajectories]

    assert said(own_config) == said({})


def test_a_prompt_that_is_known_to_its_last_token_is_continued(engine, prompts, greedy):
    whole = prompts[0] + greedy[0][:5]
    engine.kept = {}
    first = engine.generate([whole], [LIMIT])[0].ids
    (keys_and_values,) = engine.kept.values()
    engine.kept = {tuple(whole): keys_and_values}
    again = engine.generate([whole], [LIMIT])[0].ids
    assert again == first == greedy[0][5:]
