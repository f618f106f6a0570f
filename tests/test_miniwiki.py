"""The shipped world: the same on every run, honest, and with no way round the
reading."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from kr1_utils import corpus, expert, miniwiki
from kr1_utils.files import REPO

SHIPPED = REPO / "data" / "miniwiki"
FILES = ("passages", "train", "dev", "test", "test_single")


def asked_about(question):
    """Titles of the evidence that the question names itself."""
    return {
        title for title, _, _ in question["evidence"] if title in question["question"]
    }


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


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_generator_writes_the_committed_bytes_on_every_run(tmp_path, hash_seed):
    subprocess.run(
        [sys.executable, "-m", "kr1_utils.miniwiki", "--out", str(tmp_path)],
        check=True,
        cwd=REPO,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.DEVNULL,
    )
    assert {f.name for f in tmp_path.iterdir()} == {f"{n}.jsonl" for n in FILES}
    for name in FILES:
        made, shipped = tmp_path / f"{name}.jsonl", SHIPPED / f"{name}.jsonl"
        assert made.read_bytes() == shipped.read_bytes(), (
            f"{name}.jsonl differs: write it again"
        )


def test_other_seeds_make_other_worlds():
    one, other = (
        miniwiki.make_world(11, families=20),
        miniwiki.make_world(12, families=20),
    )
    assert one.passages != other.passages
    assert one.passages == miniwiki.make_world(11, families=20).passages


def test_world_is_large_enough(world):
    assert len(world.passages) >= 1500
    assert len({p["title"] for p in world.passages}) == len(world.passages)
    assert len({p["id"] for p in world.passages}) == len(world.passages)


def test_passages_have_one_to_four_sentences(world):
    for p in world.passages:
        assert 1 <= len(re.findall(r"\.(?: |$)", p["text"])) <= 4, p


def test_splits_have_the_promised_sizes(questions):
    assert len(questions["train"]) == 4000
    assert len(questions["dev"]) == 300
    assert len(questions["test"]) == 500
    assert len(questions["test_single"]) == 200


def test_splits_hold_the_promised_types(questions):
    multi = {"compositional", "comparison", "inference", "bridge_comparison"}
    assert {q["type"] for q in questions["test"]} == multi
    assert {q["type"] for q in questions["test_single"]} == {"single"}
    assert {q["type"] for q in questions["train"]} == multi | {"single"}
    assert {q["type"] for q in questions["dev"]} == multi | {"single"}


def test_no_question_comes_twice(questions):
    seen = Counter(q["question"] for split in questions.values() for q in split)
    assert max(seen.values()) == 1
    ids = Counter(q["id"] for split in questions.values() for q in split)
    assert max(ids.values()) == 1


@pytest.mark.parametrize("held_out", ["test", "test_single", "dev"])
def test_no_entity_asked_about_when_testing_is_asked_about_in_train(
    questions, held_out
):
    train = set().union(*map(asked_about, questions["train"]))
    test = set().union(*map(asked_about, questions[held_out]))
    assert len(test) > 50
    assert not train & test


def test_every_question_names_what_it_asks_about(questions):
    for split in questions.values():
        for q in split:
            firsts = (
                q["evidence"][:1]
                if q["type"] in ("single", "compositional", "inference")
                else (
                    q["evidence"] if q["type"] == "comparison" else q["evidence"][::2]
                )
            )
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


def test_there_are_namesakes_as_hard_negatives(world):
    names = Counter(miniwiki.base_name(t) for t in world.of("person"))
    assert sum(n > 1 for n in names.values()) >= 5


def test_there_are_remakes_with_one_title_and_two_years(world):
    films = Counter(
        miniwiki.base_name(t) for t in world.of("film") if t.endswith(" film)")
    )
    remakes = [t for t, n in films.items() if n > 1]
    assert len(remakes) >= 5
    for title in remakes:
        years = [
            world.facts[t]["release_year"]
            for t in world.of("film")
            if miniwiki.base_name(t) == title
        ]
        assert len(set(years)) == len(years)


def test_relatives_share_surnames(world):
    def surname(title):
        return miniwiki.base_name(title).split()[-1]

    children = [p for p in world.of("person") if "father" in world.facts[p]]
    assert len(children) > 100
    shared = [surname(p) == surname(world.facts[p]["father"]) for p in children]
    assert sum(shared) >= 0.9 * len(
        children
    )  # a father may have become somebody's namesake


def test_shipped_files_are_small(questions):
    assert sum((SHIPPED / f"{n}.jsonl").stat().st_size for n in FILES) <= 3_000_000


def test_shipped_files_are_read_by_our_own_reader(world):
    assert corpus.load_passages(SHIPPED / "passages.jsonl") == world.passages


def test_demonstrations_search_the_evidence_and_end_with_the_answer(questions):
    for q in questions["dev"]:
        turns = expert.demonstration(q)
        assert [t[1] for t in turns] == ["search"] * len(q["evidence"]) + ["answer"]
        assert [t[2] for t in turns] == [
            *q["supporting_titles"],
            q["golden_answers"][0],
        ]


def test_too_small_a_world_is_refused_instead_of_looping():
    world = miniwiki.make_world(5, families=20)
    with pytest.raises(ValueError, match="make the world larger"):
        miniwiki.make_questions(world, {"single": 10}, {world.of("country")[0]}, 0, "q")


def test_children_bear_the_surname_of_their_father(world):
    children = [t for t, facts in world.facts.items() if "father" in facts]
    surname = lambda title: miniwiki.base_name(title).split()[-1]  # noqa: E731
    assert len(children) > 300
    assert all(surname(t) == surname(world.facts[t]["father"]) for t in children)


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("kind", ["comparison", "bridge_comparison"])
def test_some_comparisons_ask_for_yes_or_no(questions, name, kind):
    answers = Counter(
        q["golden_answers"][0] for q in questions[name] if q["type"] == kind
    )
    assert answers["yes"] and answers["no"]
    assert 0.1 < (answers["yes"] + answers["no"]) / answers.total() < 0.5


@pytest.mark.parametrize(
    "earlier, says",
    [
        (True, "The earlier is 1889: B."),
        (False, "The later is 1963: A."),
        (None, "1963 and 1889 are different."),
    ],
)
def test_verdict_names_the_right_one(earlier, says):
    assert expert.verdict("A", "1963", "B", "1889", earlier) == says
    assert (
        expert.verdict("A", "Istria", "B", "Istria", None)
        == "Istria and Istria are the same."
    )
