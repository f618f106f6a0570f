"""The questions: answers follow from what passages state, and none is given away."""

import re
from collections import Counter

import pytest

from kr1_utils import miniwiki


def states(passage, relation, value):
    """Does a sentence of the passage say `value`, in one of the patterns of
    `relation`?"""
    for pattern in miniwiki.SENTENCES[relation]:
        wanted = re.escape(pattern).replace(r"\{s\}", ".+?").replace(r"\{p\}", ".+?")
        if re.search(wanted.replace(r"\{o\}", re.escape(value)), passage["text"]):
            return True
    return False


def year(value):
    return int(re.search(r"\d{4}$", value).group())


def test_every_question_names_what_it_asks_about(questions):
    for split in questions.values():
        for q in split:
            if q["type"] == "comparison":
                firsts = q["evidence"]
            elif q["type"] == "bridge_comparison":
                firsts = q["evidence"][::2]
            else:
                firsts = q["evidence"][:1]
            for title, _, _ in firsts:
                assert title in q["question"], q


def test_passages_state_every_piece_of_evidence(world, questions):
    passages = {p["title"]: p for p in world.passages}
    for split in questions.values():
        for q in split:
            assert q["supporting_titles"] == [title for title, _, _ in q["evidence"]]
            for title, relation, value in q["evidence"]:
                assert value in passages[title]["text"], (q, passages[title])
                assert states(passages[title], relation, value), (q, passages[title])


def test_answers_of_chains_follow_from_the_evidence(questions):
    for split in questions.values():
        for q in split:
            e = q["evidence"]
            if q["type"] == "single":
                assert len(e) == 1 and q["golden_answers"] == [e[0][2]], q
            if q["type"] in ("compositional", "inference"):
                assert (
                    len(e) == 2
                    and e[0][2] == e[1][0]
                    and q["golden_answers"] == [e[1][2]]
                ), q
            if q["type"] == "inference":
                kin = [k for k in miniwiki.KIN if k in q["question"]]
                assert (e[0][1], e[1][1]) in [miniwiki.KIN[k] for k in kin], q


def test_answers_of_comparisons_follow_from_the_evidence(questions):
    seen = Counter()
    for split in questions.values():
        for q in split:
            if q["type"] not in ("comparison", "bridge_comparison"):
                continue
            e = q["evidence"]
            if q["type"] == "comparison":
                (a, r1, x), (b, r2, y) = e
            else:
                (a, via1, c), (d1, r1, x), (b, via2, d), (d2, r2, y) = e
                assert (via1, c, via2, d) == ("director", d1, "director", d2), q
            assert r1 == r2 and a != b, q
            if "nationalit" in q["question"]:
                answer = "yes" if x == y else "no"
            else:
                first = "first" in q["question"]
                assert first != bool(re.search("younger|later", q["question"])), q
                assert year(x) != year(y), q
                answer = a if (year(x) < year(y)) == first else b
            assert q["golden_answers"] == [answer], q
            seen[q["type"], answer if answer in ("yes", "no") else "title"] += 1
    assert seen["comparison", "yes"] >= 10 and seen["comparison", "no"] >= 10, seen
    assert (
        seen["comparison", "title"] >= 100 and seen["bridge_comparison", "title"] >= 100
    ), seen


def test_answers_do_not_stand_in_questions_about_one_thing(questions):
    for split in questions.values():
        for q in split:
            if q["type"] in ("single", "compositional", "inference"):
                assert q["golden_answers"][0] not in q["question"], q


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("kind", ["comparison", "bridge_comparison"])
def test_some_comparisons_ask_for_yes_or_no(questions, name, kind):
    answers = Counter(
        q["golden_answers"][0] for q in questions[name] if q["type"] == kind
    )
    assert answers["yes"] and answers["no"]
    assert 0.1 < (answers["yes"] + answers["no"]) / answers.total() < 0.5


def test_too_small_a_world_is_refused_instead_of_looping():
    world = miniwiki.make_world(5, families=20)
    with pytest.raises(ValueError, match="make the world larger"):
        miniwiki.make_questions(world, {"single": 10}, {world.of("country")[0]}, 0, "q")
