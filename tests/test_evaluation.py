"""Evaluation: evidence, ways to fail, recall, and the numbers of a summary."""

import math
import os

import pytest
from helpers import ANSWER, SEARCH, Shelf

from kr1_utils import corpus, evaluation, files, protocol
from kr1_utils.agent import ScriptedEngine, Trajectory
from kr1_utils.engines import TransformersEngine
from kr1_utils.evaluation import answer_rank, answer_recall, by_type
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits, resolve
from kr1_utils.retriever import Retriever

PACK = (REPO / os.environ.get("KR1_2WIKI", "../shared/data/2wiki")).resolve()


QUESTIONS = [
    {
        "id": "1",
        "question": "Two hops?",
        "golden_answers": ["Merano"],
        "type": "compositional",
    },
    {
        "id": "2",
        "question": "One hop?",
        "golden_answers": ["Merano city"],
        "type": "single",
    },
    {"id": "3", "question": "None?", "golden_answers": ["Merano"]},
]


SCRIPTS = {
    "Two hops?": [SEARCH, SEARCH, ANSWER],
    "One hop?": [SEARCH, ANSWER],
    "None?": ["", "", ""],
}


@pytest.fixture
def predictions(tokenizer):
    return evaluation.evaluate(
        ScriptedEngine(tokenizer, SCRIPTS),
        tokenizer,
        Shelf(),
        QUESTIONS,
        Limits(2, 2, 60, 120, 700),
        "S",
    )


def test_evaluation_scores_each_question_in_order(predictions):
    assert [p["id"] for p in predictions] == ["1", "2", "3"]
    assert [p["prediction"] for p in predictions] == ["Merano", "Merano", None]
    assert [p["em"] for p in predictions] == [1.0, 0.0, 0.0]
    assert [p["f1"] for p in predictions] == pytest.approx([1.0, 2 / 3, 0.0])
    assert [p["searches"] for p in predictions] == [2, 1, 0]
    assert [p["format"] for p in predictions] == [1.0, 1.0, 0.0]
    assert [p["stop"] for p in predictions] == ["answer", "answer", "no_answer"]
    assert [p["type"] for p in predictions] == ["compositional", "single", ""]
    assert predictions[0]["passage_ids"] == [["1", "2"], ["1", "2"]]
    assert predictions[2]["sampled_length"] == 0
    assert predictions[0]["sampled_length"] > 10


def test_lines_of_predictions_hold_what_was_said_and_read(predictions):
    assert [p["question"] for p in predictions] == [q["question"] for q in QUESTIONS]
    assert [p["turns"] for p in predictions] == list(SCRIPTS.values())
    for p in predictions:
        assert len(p["observations"]) == len(p["turns"]) - 1


def test_predictions_can_be_written_as_json_lines(predictions, tmp_path):
    files.write_jsonl(tmp_path / "p.jsonl", predictions)
    assert list(corpus.read_rows(tmp_path / "p.jsonl")) == predictions


def test_what_a_limit_cut_off_is_counted_apart():
    rows = [
        {"em": 1.0, "stop": "answer"},
        {"em": 0.0, "stop": "no_answer"},
        {"em": 0.0, "stop": "truncated"},
        {"em": 0.0, "stop": "prompt_too_long"},
    ]
    assert evaluation.truncation(rows) == (0.5, 0.5)
    assert all(math.isnan(x) for x in evaluation.truncation([]))


def test_by_type_has_a_row_a_type_and_one_of_all(predictions):
    rows = {r["type"]: r for r in by_type(predictions)}
    assert set(rows) == {"", "compositional", "single", "all"}
    assert rows["all"]["questions"] == 3 and rows["all"]["em"] == pytest.approx(1 / 3)
    assert rows["compositional"]["searches"] == 2 and rows["single"]["em"] == 0


def test_summary_counts_test_and_single_apart(predictions):
    before = {"test": predictions[2:], "test_single": predictions[1:2]}
    after = {"test": predictions[:1] + predictions[2:], "test_single": []}
    s = evaluation.before_and_after(before, after)
    assert (s["em_before"], s["em_after"], s["em_single_before"]) == (0.0, 0.5, 0.0)
    # There were no such questions, and JSON has no NaN.
    assert s["em_single_after"] is None
    assert s["searches_before"] == 0
    assert s["searches_after"] == 1
    assert s["searches_single_before"] == 1
    assert s["response_length_after"] == predictions[0]["sampled_length"] / 2
    assert {
        f"{k}_{w}"
        for k in ("em", "em_single", "f1", "searches", "response_length")
        for w in ("before", "after")
    } <= set(s)


def test_answer_recall_counts_gold_answers_in_the_first_k():
    found = [
        [{"title": "A", "text": "nothing"}, {"title": "The Merano", "text": ""}],
        [{"title": "B", "text": "was born in OSTBY."}],
        [],
    ]
    asked = [
        {"golden_answers": ["Merano"]},
        {"golden_answers": ["x", "Ostby"]},
        {"golden_answers": ["Dara"]},
    ]
    assert answer_recall(found, asked, (1, 2)) == pytest.approx({1: 1 / 3, 2: 2 / 3})


def test_answer_rank_is_that_of_the_first_passage_with_an_answer():
    passages = [
        {"title": "A", "text": "nothing"},
        {"title": "The Merano", "text": ""},
        {"title": "B", "text": "was born in OSTBY, near Merano."},
    ]
    assert answer_rank(passages, ["Merano"]) == 2
    assert answer_rank(passages, ["x", "Ostby"]) == 3
    assert answer_rank(passages, ["Dara"]) is None
    assert answer_rank([], ["Dara"]) is None


@pytest.mark.parametrize(
    "golden, text, rank",
    [
        ("Ann", "Hannah Annis", None),
        ("2", "It was in 2012.", None),
        ("Ann", "Hannah, sister of Ann.", 1),
        ("2", "She had 2.", 1),
        ("The Ann", "Ann Bo", 1),
        ("Ann Bo", "Ann Bodo", None),
        # Nothing is left of these, and nothing stands in every text.
        ("The The", "The The is a band.", None),
        ("+", "", None),
        ("", "", None),
    ],
)
def test_recall_counts_whole_words_as_evidence_does(golden, text, rank):
    found = [{"title": "", "text": text}]
    assert answer_rank(found, [golden]) == rank
    asked = [{"golden_answers": [golden]}]
    assert answer_recall([found], asked, (1,)) == {1: float(rank is not None)}
    whole = trajectory({"id": "1", "question": "?", **asked[0]})
    whole.passages = [found]
    assert evaluation.evidence(whole) == [int(rank is not None)]


def test_answer_recall_leaves_yes_and_no_out():
    found = [[{"title": "A", "text": "yes"}], [{"title": "A", "text": "Merano"}]]
    asked = [{"golden_answers": ["yes"]}, {"golden_answers": ["Ostby"]}]
    assert answer_recall(found, asked, (1,)) == {1: 0.0}
    assert math.isnan(answer_recall(found[:1], asked[:1], (1,))[1])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        answer_recall([[]], [])


@pytest.mark.skipif(
    not (PACK / "passages.jsonl").is_file(),
    reason="the 2WikiMultihopQA pack is not here: name its folder in KR1_2WIKI",
)
def test_answer_recall_on_real_questions_is_what_was_measured():
    asked = [
        q
        for q in corpus.load_questions(PACK / "questions.jsonl")
        if q["answer_in_corpus"]
    ]
    found = Retriever.build(corpus.load_passages(PACK / "passages.jsonl")).search(
        [q["question"] for q in asked], 10
    )
    recall = answer_recall(found, asked, (1, 3, 5, 10))
    for k, wanted in {1: 0.24, 3: 0.45, 5: 0.57, 10: 0.67}.items():
        assert recall[k] == pytest.approx(wanted, abs=0.005), recall


# --- where it fails ---


TITLED = {**QUESTIONS[0], "supporting_titles": ["Silent River", "Merano"]}


def trajectory(question, *turns, stop="answer", answer="x", found=()):
    """A conversation that has only what `outcome` looks at."""
    texts = [protocol.render_turn("t", "search", q) for q in turns]
    if answer is not None:
        texts.append(protocol.render_turn("t", "answer", answer))
    return Trajectory(
        question,
        [],
        turns=[protocol.parse_turn(t) for t in texts],
        answer=answer,
        stop=stop,
        passages=[
            [{"id": t, "title": t, "text": f"All about {t}."} for t in titles]
            for titles in found
        ],
    )


CASES = {
    "right": trajectory(TITLED, answer="the Merano"),
    "misread": trajectory(
        TITLED, "a", "b", found=[["Silent River"], ["Merano", "Ostby"]]
    ),
    "not retrieved": trajectory(TITLED, "a", "b", found=[["Silent River"], ["Ostby"]]),
    "gave up": trajectory(TITLED, "a", found=[["Silent River"]]),
    "in circles": trajectory(
        TITLED, "a", "the A.", found=[["Silent River"], ["Silent River"]]
    ),
    "format": trajectory(
        TITLED, "a", answer=None, stop="no_answer", found=[["Merano"]]
    ),
    "budget": trajectory(
        TITLED, "a", answer=None, stop="truncated", found=[["Merano"]]
    ),
}


CASES["format"].turns.append(protocol.parse_turn("neither"))


@pytest.mark.parametrize("name", CASES)
def test_every_conversation_has_its_outcome(name):
    assert evaluation.outcome(CASES[name]) == name
    assert set(CASES) == set(evaluation.OUTCOMES)


@pytest.mark.parametrize(
    "name, t",
    [
        # It wanted to search on.
        ("budget", trajectory(TITLED, "a", "b", answer=None, stop="no_answer")),
        ("budget", trajectory(TITLED, answer=None, stop="prompt_too_long")),
        (
            "gave up",
            trajectory(
                TITLED, "a", "b", answer="No answer.", found=[["Ostby"], ["Ostby"]]
            ),
        ),
        # No titles are known, and no search was made.
        ("gave up", trajectory(QUESTIONS[2])),
        ("not retrieved", trajectory(QUESTIONS[2], "a", found=[["Ostby"]])),
        ("misread", trajectory(QUESTIONS[2], "a", found=[["Merano"]])),
    ],
)
def test_outcome_of_harder_cases(name, t):
    assert evaluation.outcome(t) == name


def test_evidence_is_found_by_hop_or_by_the_answer():
    found = [["Silent River", "Ostby"], ["Ostby"]]
    assert evaluation.evidence(trajectory(TITLED, "a", "b", found=found)) == [1, 0]
    assert evaluation.evidence(
        trajectory(QUESTIONS[2], "a", found=[["Ostby", "Merano"]])
    ) == [1]
    assert evaluation.evidence(trajectory(QUESTIONS[2], "a", found=[["Ostby"]])) == [0]


@pytest.mark.parametrize(
    "golden, found", [("no", "Norway"), ("19", "1952"), ("the", "Thebes")]
)
def test_an_answer_is_found_as_whole_words(golden, found):
    asked = {**QUESTIONS[2], "golden_answers": [golden]}
    assert evaluation.evidence(trajectory(asked, "a", found=[[found]])) == [0]
    assert evaluation.evidence(trajectory(asked, "a", found=[[f"a {golden} b"]])) == [
        int(golden != "the")
    ]


def test_lines_of_predictions_say_how_they_came_about(predictions):
    assert [p["outcome"] for p in predictions] == ["right", "not retrieved", "format"]
    assert all(set(p["evidence"]) <= {0, 1} for p in predictions)


def test_bar_of_an_evaluation_moves_after_each_batch(
    tiny, chat, questions, retriever, monkeypatch
):
    states = []

    class Bar:
        n = 0

        def __init__(self, total, *_, **__):
            self.total = total

        def __enter__(self):
            return self

        def __exit__(self, *_):
            states.append(self.n)

        def update(self, turns):
            self.n += turns
            states.append(self.n)

        def refresh(self):
            states.append(self.n)

    monkeypatch.setattr(evaluation, "progress", Bar)
    engine = TransformersEngine(*tiny, chat.end_of_turn, temperature=0, batch_size=2)
    profile = resolve("tiny")
    evaluation.evaluate(
        engine,
        tiny[1],
        retriever,
        questions["test"][:6],
        profile.limits,
        profile.system_prompt,
    )
    # Three batches in the first turn alone, and all turns in the end.
    assert states[:3] == [2, 4, 6]
    assert states == sorted(states)
    assert states[-1] == 6 * (profile.limits.max_turns + 1)
    assert engine.on_batch is None
