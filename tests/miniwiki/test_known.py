"""Common knowledge: the same in every world, dealt to splits, read in passages."""

import json
from collections import Counter

from kr1_utils import miniwiki
from kr1_utils.miniwiki.known import FACTS, RELATIONS, split_known


def facts_of(questions):
    return {tuple(e) for q in questions if q["type"] == "known" for e in q["evidence"]}


def test_common_knowledge_is_the_same_in_every_world(world):
    other = miniwiki.make_world(12, families=20)
    for one in (world, other):
        passages = {p["title"]: p["text"] for p in one.passages}
        for title, facts in FACTS.items():
            assert title not in one.kind
            for value in facts.values():
                assert value in passages[title]


def test_countries_and_their_capitals_are_dealt_together():
    splits = split_known({"a": 0.5, "b": 0.5})
    assert not splits["a"] & splits["b"]
    assert splits["a"] | splits["b"] == set(FACTS)
    for titles in splits.values():
        for title in titles:
            assert FACTS[title].get("capital", title) in titles


def test_at_least_a_hundred_facts_are_asked_in_training_and_others_in_the_test(
    questions,
):
    train, test = facts_of(questions["train"]), facts_of(questions["test_known"])
    assert len(train) >= 100 and len(test) >= 100
    assert not train & test


def test_every_wording_is_also_asked_about_the_fictional_world(questions):
    asked = {"known": set(), "look_alike": set()}
    for split in ("train", "test_known"):
        for q in questions[split]:
            if q["type"] in asked:
                wording = q["question"].replace(q["evidence"][0][0], "{x}")
                asked[q["type"]].add(wording)
    wordings = {wording for relation in RELATIONS for wording in miniwiki.ASK[relation]}
    assert asked["known"] == asked["look_alike"] == wordings


def test_look_alikes_cannot_be_answered_from_memory(questions):
    look_alikes = [q for q in questions["test_known"] if q["type"] == "look_alike"]
    assert len(look_alikes) >= 50
    values = {value for facts in FACTS.values() for value in facts.values()}
    for q in look_alikes:
        assert q["evidence"][0][0] not in FACTS
        assert not set(q["golden_answers"]) & values


def test_facts_are_plain_and_most_values_belong_to_one_title():
    capitals = Counter(
        facts["capital"] for facts in FACTS.values() if "capital" in facts
    )
    assert max(capitals.values()) == 1
    assert all(
        " " not in word
        for word in json.dumps(FACTS, ensure_ascii=False).split('"')[1::2]
    )
