"""What makes generation fast on a CPU changes no number."""

import copy

import pytest
import torch
from helpers import assert_same_up_to_ties
from transformers import AttentionInterface, DynamicCache, LlamaForCausalLM

from kr1_utils.engines import TransformersEngine
from kr1_utils.engines.cpu import (
    PreallocatedLayer,
    contiguous_at_head,
    register_grouped_attention,
    starting_cache,
)


@pytest.fixture(scope="module")
def grouped_model(tiny):
    """A model whose query heads share keys and values, as in SmolLM2 and Qwen2.5."""
    config = copy.deepcopy(tiny[0].config)
    config.num_key_value_heads = 2
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def test_grouped_attention_gives_the_logits_of_sdpa(tiny, grouped_model, prompts):
    padded = tiny[1].pad(
        {"input_ids": prompts}, padding_side="left", return_tensors="pt"
    )
    with torch.no_grad():
        with_mask = grouped_model(**padded).logits
        without_mask = grouped_model(padded["input_ids"]).logits
        grouped_model.set_attn_implementation(register_grouped_attention())
        try:
            assert torch.equal(grouped_model(**padded).logits, with_mask)
            assert torch.equal(grouped_model(padded["input_ids"]).logits, without_mask)
        finally:
            grouped_model.set_attn_implementation("sdpa")


def test_engine_uses_grouped_attention_while_it_generates(
    tiny, chat, grouped_model, prompts
):
    engine = TransformersEngine(grouped_model, tiny[1], chat.end_of_turn, temperature=0)
    seen = set()
    hook = grouped_model.model.register_forward_pre_hook(
        lambda *_: seen.add(grouped_model.config._attn_implementation)
    )
    ones = [engine.generate([prompt], [12])[0].ids for prompt in prompts]
    batch = engine.generate(prompts, [12] * len(prompts))
    hook.remove()
    assert_same_up_to_ties(grouped_model, prompts, ones, [g.ids for g in batch])
    assert seen == {register_grouped_attention()}
    assert grouped_model.config._attn_implementation == "sdpa"


def test_registering_again_changes_nothing():
    name = register_grouped_attention()
    registered = AttentionInterface()[name]
    assert register_grouped_attention() == name
    assert AttentionInterface()[name] is registered


def test_head_gets_the_last_positions_without_gaps(
    grouped_model, prompts, tiny, monkeypatch
):
    head = grouped_model.get_output_embeddings()
    forward = head.forward
    seen = []

    def noting(hidden):
        seen.append((hidden.shape[1], hidden.is_contiguous()))
        return forward(hidden)

    monkeypatch.setattr(head, "forward", noting)
    engine = TransformersEngine(grouped_model, tiny[1], 2, temperature=0.0)
    engine.generate(prompts, [3] * len(prompts))
    assert set(seen) == {(1, True)}
    assert not head._forward_pre_hooks


def test_a_model_without_a_head_is_left_as_it_is():
    class Headless:
        def get_output_embeddings(self):
            return None

    with contiguous_at_head(Headless()):
        pass


def test_preallocated_layer_holds_what_a_plain_one_holds():
    torch.manual_seed(0)
    ours = DynamicCache()
    ours.layers = [PreallocatedLayer(room=20)]
    plain = DynamicCache()
    for new in (5, 1, 1, 7):
        keys = torch.randn(3, 2, new, 4)
        values = torch.randn(3, 2, new, 4)
        got = ours.update(keys, values, 0)
        wanted = plain.update(keys, values, 0)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
        assert ours.get_seq_length() == plain.get_seq_length()


def test_starting_cache_lays_each_row_to_the_right():
    def known(length, fill):
        layers = []
        for layer in range(2):
            keys = torch.full((1, length, 3), fill + layer)
            layers.append((keys, -keys))
        return layers

    rows = [known(2, 10.0), None, known(3, 20.0)]
    cache = starting_cache(layers=2, room=8, rows=rows, length=3)
    assert cache.get_seq_length() == 3
    for layer in range(2):
        keys = cache.layers[layer].keys
        assert keys.shape == (3, 1, 3, 3)
        assert keys[:, 0, :, 0].tolist() == [
            [0, 10 + layer, 10 + layer],
            [0, 0, 0],
            [20 + layer] * 3,
        ]
        assert torch.equal(cache.layers[layer].values, -keys)


def test_cache_of_rows_that_are_not_known_starts_empty():
    cache = starting_cache(layers=2, room=8, rows=[None, None], length=0)
    assert cache.get_seq_length() == 0 and len(cache.layers) == 2
