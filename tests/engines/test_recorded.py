"""Recorded steps say what `model.generate` says. Here they run one by one; with a GPU
they are a CUDA graph."""

import pytest
import torch
from helpers import assert_same_up_to_ties
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from kr1_utils.engines import TransformersEngine
from kr1_utils.engines.recorded import can_be_recorded, folded_attention
from kr1_utils.models import lora_config
from kr1_utils.profiles import PROFILES

LIMIT = 48


@pytest.fixture(scope="module", params=["as shipped", "shared heads", "adapter"])
def model(request, tiny):
    """A model, one whose query heads share keys and values, and one of PEFT."""
    if request.param == "as shipped":
        return tiny[0]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny[1]),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    made = AutoModelForCausalLM.from_config(config).eval()
    if request.param == "adapter":
        made = get_peft_model(made, lora_config(PROFILES["tiny"])).eval()
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1)
    return made


def ids_of(engine, prompts, limits=None):
    made = engine.generate(prompts, limits or [LIMIT] * len(prompts))
    return [generation.ids for generation in made]


@pytest.fixture
def engine(model, tiny, chat):
    def make(**changes):
        arguments = {"temperature": 0, "record": True, **changes}
        return TransformersEngine(model, tiny[1], chat.end_of_turn, **arguments)

    return make


@pytest.mark.parametrize("keep_cache", [True, False])
def test_recorded_steps_say_what_generate_says(model, engine, prompts, keep_cache):
    plain = ids_of(engine(record=False, keep_cache=keep_cache), prompts)
    steps = ids_of(engine(keep_cache=keep_cache), prompts)
    assert_same_up_to_ties(model, prompts, plain, steps)


def test_a_conversation_goes_on_from_its_keys_and_values(model, engine, prompts):
    keeps, forgets = engine(), engine(keep_cache=False)
    for _ in range(3):
        turns = ids_of(keeps, prompts)
        assert_same_up_to_ties(model, prompts, ids_of(forgets, prompts), turns)
        # Something is read after each turn: here, the end of the prompt again.
        prompts = [p + turn + p[-5:] for p, turn in zip(prompts, turns, strict=True)]
    assert keeps.computed < 0.8 * forgets.computed


def test_each_row_keeps_its_own_limit(engine, prompts):
    limits = [1 + 3 * row for row in range(len(prompts))]
    whole = ids_of(engine(), prompts)
    cut = ids_of(engine(), prompts, limits)
    for ids, limit, turn in zip(cut, limits, whole, strict=True):
        assert len(ids) <= limit and ids == turn[: len(ids)]


def test_long_prompts_are_read_part_by_part(model, engine, prompts, monkeypatch):
    whole = ids_of(engine(), prompts)
    monkeypatch.setattr("kr1_utils.engines.recorded.PREFILL_TOKENS", len(prompts) * 3)
    assert_same_up_to_ties(model, prompts, whole, ids_of(engine(), prompts))


def test_samples_are_as_frequent_as_probable(tiny, chat):
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=0.7, record=True)
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    torch.manual_seed(0)
    drawn = engine._choose(logits.expand(20_000, 4))
    share = drawn.bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, (logits[0] / 0.7).softmax(-1), atol=0.015, rtol=0)


def test_sampling_follows_the_seed(engine, prompts):
    def sample(seed):
        torch.manual_seed(seed)
        return ids_of(engine(temperature=1.0), prompts)

    assert sample(1) == sample(1) != sample(2)


def test_folded_heads_attend_as_repeated_ones():
    torch.manual_seed(0)
    query = torch.randn(3, 6, 1, 8)
    key, value = torch.randn(2, 3, 2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 1]]).bool()
    mask = mask[:, None, None]
    folded, _ = folded_attention(None, query, key, value, mask, scaling=0.3)
    repeated = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(3, 1),
        value.repeat_interleave(3, 1),
        attn_mask=mask,
        scale=0.3,
    )
    torch.testing.assert_close(folded, repeated.transpose(1, 2))


def test_what_cannot_be_recorded_is_not(tiny):
    assert can_be_recorded(tiny[0]) == torch.cuda.is_available()
    experts = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    assert not can_be_recorded(AutoModelForCausalLM.from_config(experts))
