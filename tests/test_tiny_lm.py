"""The shipped model: small, takes any text, knows the format, reads, gives up early."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kr1_utils import corpus, decisions, evaluation, files, profiles
from kr1_utils.engines import TransformersEngine
from kr1_utils.protocol import TAGS, ChatFormat

FOLDER = files.REPO / "data" / "tiny-lm"


def test_tiny_lm_is_small(tiny):
    model, _ = tiny
    assert model.num_parameters() <= 2_000_000
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 12 * 2**20
    assert {f.suffix for f in FOLDER.iterdir()} <= {".json", ".safetensors", ".jinja"}


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    readable = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert tokenizer.decode(ids) == readable


def test_tags_do_not_end_a_sequence(tiny):
    model, tokenizer = tiny
    for tag in TAGS:
        ids = tokenizer(f"<{tag}></{tag}>", add_special_tokens=False)["input_ids"]
        assert not set(ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
        assert model.config.eos_token_id not in ids


def exam(model, tokenizer, retriever, split, temperature, limit=0):
    """Predictions for the shipped questions of a split."""
    profile = profiles.resolve("tiny")
    end_of_turn = ChatFormat.from_tokenizer(tokenizer).end_of_turn
    engine = TransformersEngine(model, tokenizer, end_of_turn, temperature)
    questions = corpus.load_split(corpus.locate_files(profile), split, limit)
    return evaluation.evaluate(
        engine, tokenizer, retriever, questions, profile.limits, profile.system_prompt
    )


def test_tiny_lm_reads_single_hop_questions(tiny, retriever):
    model, tokenizer = tiny
    predictions = exam(model, tokenizer, retriever, "test_single", 0.0, limit=60)
    assert evaluation.mean(predictions, "em") >= 0.85


@pytest.mark.slow
def test_tiny_lm_is_undecided_about_what_it_knows_and_has_read(tiny, retriever):
    """It can answer, and often searches where it need not."""
    model, tokenizer = tiny
    single = exam(model, tokenizer, retriever, "test_single", 0.0)
    assert evaluation.mean(single, "em") >= 0.90
    assert evaluation.mean(single, "searches") >= 1.2
    known = exam(model, tokenizer, retriever, "test_known", 0.0)
    known = [p for p in known if p["type"] == "known"]
    assert evaluation.mean(known, "em") >= 0.80
    assert evaluation.mean(known, "searches") >= 0.6


@pytest.mark.slow
def test_tiny_lm_is_what_grpo_can_start_from(tiny, retriever):
    torch.manual_seed(0)
    model, tokenizer = tiny
    greedy = exam(model, tokenizer, retriever, "test", 0.0)
    sampled = exam(model, tokenizer, retriever, "test", 1.0)
    single = exam(model, tokenizer, retriever, "test_single", 1.0)
    assert evaluation.mean(greedy, "em") <= 0.35
    assert evaluation.mean(sampled + single, "format") >= 0.95
    assert all(row["em"] >= 0.05 for row in evaluation.by_type(sampled))


@pytest.mark.slow
def test_tiny_lm_wavers_where_the_experts_differ(tiny, questions, retriever):
    model, tokenizer = tiny
    profile = profiles.resolve("tiny")
    points = decisions.decision_points(
        tokenizer,
        retriever,
        questions["test_single"] + questions["test"][:100],
        profile.limits,
        profile.system_prompt,
    )
    rows = decisions.weigh(model, points)
    again = [r["search"] for r in rows if r["type"] == "single" and r["searches"] == 1]
    assert 0.2 <= sum(again) / len(again) <= 0.6
    assert sum(p > 0.5 for p in again) >= len(again) / 5
    gives_up = [r["give up"] for r in rows if r["type"] != "single" and r["searches"]]
    assert max(gives_up) > 0.5 > min(gives_up)
