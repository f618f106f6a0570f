"""Decisions: the probabilities are the model's own, at the places they claim to be."""

import pytest
import torch

from kr1_utils import corpus, decisions, expert, profiles, protocol
from kr1_utils.expert import demonstration

TINY = profiles.resolve("tiny")


@pytest.fixture(scope="module")
def asked(questions):
    sets = questions["test"] + questions["test_known"]
    return corpus.some_of_each_type(sets, 3)


@pytest.fixture(scope="module")
def points(asked, tokenizer, retriever):
    return decisions.decision_points(
        tokenizer, retriever, asked, TINY.limits, TINY.system_prompt
    )


def test_every_turn_of_the_expert_is_a_place_to_decide(points, asked):
    made = [(p.type, p.searches) for p in points]
    wanted = [
        (q["type"], searches)
        for q in asked
        for searches in range(len(demonstration(q)))
    ]
    assert made == wanted


def test_context_and_phrase_spell_what_would_be_said(points, asked, tokenizer):
    first, second = points[:2]
    text = tokenizer.decode(first.context)
    assert asked[0]["question"] in text
    assert text.endswith("<think>")
    begun = {choice: tokenizer.decode(ids) for choice, ids in first.phrases}
    assert begun == {
        "answer": f" {expert.KNOWS}",
        "search": f" {expert.READS}",
        "give up": f" {expert.GIVES_UP}",
    }
    noted = demonstration(asked[0])[1][0]
    text = tokenizer.decode(second.context)
    begun = [text + tokenizer.decode(ids) for _, ids in second.phrases]
    assert all(noted in b for b in begun)
    assert {choice for choice, _ in second.phrases} == set(decisions.CHOICES)


def test_phrases_differ_from_their_first_token_on(points):
    for point in points:
        assert len({ids[0] for _, ids in point.phrases}) > 1


def by_hand(model, point):
    """The same probabilities, one phrase at a time and without padding."""
    sums = dict.fromkeys(decisions.CHOICES, 0.0)
    for choice, ids in point.phrases:
        whole = torch.tensor([point.context + ids])
        with torch.no_grad():
            logp = model(input_ids=whole).logits[0, :-1].log_softmax(-1)
        start = len(point.context) - 1
        chosen = logp[start:].gather(-1, whole[0, start + 1 :, None])
        sums[choice] += chosen.sum().exp().item()
    return sums


def test_probabilities_are_those_of_one_phrase_at_a_time(tiny, points):
    model, _ = tiny
    rows = decisions.weigh(model, points, batch_size=7)
    for point, row in zip(points, rows):
        for choice, probability in by_hand(model, point).items():
            assert row[choice] == pytest.approx(probability, abs=1e-5)
        assert sum(row[choice] for choice in decisions.CHOICES) <= 1 + 1e-5


def test_a_model_in_training_is_left_in_training(tiny, points):
    model, _ = tiny
    model.train()
    try:
        decisions.weigh(model, points[:3])
        assert model.training
    finally:
        model.eval()


def test_means_are_taken_by_type_and_searches(points, tiny):
    rows = decisions.weigh(tiny[0], points)
    means = decisions.by_type(rows)
    assert sum(row["points"] for row in means) == len(points)
    single = [r for r in rows if r["type"] == "compositional" and r["searches"] == 1]
    [mean] = [r for r in means if (r["type"], r["searches"]) == ("compositional", 1)]
    wanted = sum(row["search"] for row in single) / len(single)
    assert mean["search"] == pytest.approx(wanted)


def test_a_template_that_opens_the_thought_is_not_said_twice(
    tokenizer, retriever, asked
):
    """The `<think>` of a generation prompt is part of the context."""
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n<think>{% endif %}",
    )
    try:
        assert protocol.ChatFormat.from_tokenizer(tokenizer).opened == "<think>"
        points = decisions.decision_points(
            tokenizer, retriever, asked[:1], TINY.limits, TINY.system_prompt
        )
        assert tokenizer.decode(points[0].context).count("<think>") == 1
    finally:
        tokenizer.chat_template = template
