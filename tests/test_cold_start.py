"""The cold start: lessons of a corpus, apart from whatever the test names."""

import dataclasses
import json

import pytest

from kr1_utils import cold_start, corpus
from kr1_utils.profiles import resolve
from kr1_utils.retriever import Retriever

FIRST = ["Odo", "Ulf", "Mina", "Tessa", "Ivar", "Lene", "Arne", "Runa", "Egil", "Dagny"]
LAST = ["Harrow", "Velding", "Marsk", "Tornby"]
NAMES = [f"{first} {last}" for last in LAST for first in FIRST]


def corpus_of(names):
    """A director and a film for each name, in the style of an encyclopedia."""
    of_a_person = "was a Danish film director."
    passages = []
    for number, name in enumerate(names):
        born = 1890 + number
        film = f"The {name.split()[1]} {name.split()[0]} Affair"
        passages += [
            {
                "title": name,
                "text": f"{name} ({number % 27 + 1} May {born} – 7 June {born + 60})"
                f" {of_a_person}",
            },
            {
                "title": film,
                "text": f"{film} is a {born + 30} Danish film directed by {name}.",
            },
        ]
    return [{"id": str(i), **passage} for i, passage in enumerate(passages)]


@pytest.fixture(scope="module")
def profile():
    return resolve("tiny", {"cold_start_steps": 3, "cold_start_batch": 4})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of passages, a test question, and questions to train on beside."""
    folder = tmp_path_factory.mktemp("data")
    tested = {
        "id": "t",
        "question": f"When was {NAMES[0]} born?",
        "golden_answers": ["1 May 1890"],
    }
    names_the_same = {**tested, "id": "x", "question": f"Where did {NAMES[0]} die?"}
    of_another = {**tested, "id": "y", "question": f"When was {NAMES[1]} born?"}
    of_another["golden_answers"] = ["2 May 1891"]
    for name, rows in (
        ("passages", corpus_of(NAMES)),
        ("questions", [tested]),
        ("train_extra", [names_the_same, of_another]),
    ):
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def lessons(data, profile, tokenizer):
    where = corpus.locate_files(profile, str(data))
    passages = corpus.load_passages(where["passages"])
    retriever = Retriever.build(passages)
    return cold_start.from_corpus(
        where, passages, retriever, tokenizer, profile, seed=1
    )


def test_every_demonstration_ends_with_the_right_answer(lessons, profile):
    needed = profile.cold_start_steps * profile.cold_start_batch
    assert len(lessons.demonstrations) == needed
    for t in lessons.demonstrations:
        assert t.answer in t.question["golden_answers"]
        assert t.turns[-1].kind == "answer" and all(u.well_formed for u in t.turns)
        assert len(t.completion_ids) <= profile.limits.max_response_tokens


def test_nothing_in_the_lessons_names_what_the_test_names(lessons):
    shown = [t.question for t in lessons.demonstrations]
    for question in shown + lessons.to_train_on:
        assert NAMES[0] not in question["question"], question
        assert NAMES[0] not in question.get("supporting_titles", [])


def test_what_is_shown_is_not_trained_on(lessons):
    shown = {t.question["question"] for t in lessons.demonstrations}
    left = {q["question"] for q in lessons.to_train_on}
    assert left and not shown & left


def test_extra_questions_are_trained_on_unless_the_test_names_the_same(lessons):
    ids = {q["id"] for q in lessons.to_train_on}
    assert "y" in ids and "x" not in ids


def test_a_corpus_with_too_few_questions_is_refused(data, profile, tokenizer):
    greedy = dataclasses.replace(profile, cold_start_steps=10_000)
    where = corpus.locate_files(profile, str(data))
    passages = corpus.load_passages(where["passages"])
    with pytest.raises(ValueError, match="= 40000 are wanted: set fewer"):
        cold_start.from_corpus(
            where, passages, Retriever.build(passages), tokenizer, greedy, seed=1
        )


def test_without_a_corpus_the_worlds_are_fictional(profile, tokenizer):
    lessons = cold_start.from_miniwiki(tokenizer, profile, seed=1)
    assert len(lessons.demonstrations) == 12
    assert lessons.to_train_on == [] == lessons.statistics
