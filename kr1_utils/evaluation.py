"""Owns evaluation: answers scored, evidence found, ways to fail, recall, summaries."""

import numpy as np

from kr1_utils import profiles
from kr1_utils.agent import Trajectory, rollout
from kr1_utils.notebook import progress
from kr1_utils.profiles import Limits
from kr1_utils.rewards import format_score
from kr1_utils.scoring import CLOSED_ANSWERS, exact_match, f1_score, normalize_answer

_SURRENDERS = {
    "no answer",
    "noanswer",
    "unknown",
    "none",
    "not found",
    "i do not know",
    "i dont know",
}

OUTCOMES = (
    "right",
    "misread",
    "not retrieved",
    "gave up",
    "in circles",
    "format",
    "budget",
)


def evidence(t: Trajectory) -> list[int]:
    """Of each hop, whether its passage was found; one number where `supporting_titles`
    are not known: whether a gold answer stands in a passage that was found."""
    found, titles = (
        [p for passages in t.passages for p in passages],
        t.question.get("supporting_titles"),
    )
    if titles:
        return [int(title in {p["title"] for p in found}) for title in titles]
    golden = [normalize_answer(g) for g in t.question["golden_answers"]]
    texts = [
        f" {normalize_answer(p['title'] + ' ' + p['text'])} " for p in found
    ]  # "no" is not in "north"
    return [int(any(f" {g} " in text for g in golden for text in texts))]


def outcome(t: Trajectory) -> str:
    """The one of `OUTCOMES` that a trajectory is, the first of these that applies:
    right; cut off by a limit; no answer to read; all evidence found; a query made
    twice; fewer searches than hops, or a surrender; else other passages were found."""
    read = evidence(t)
    if exact_match(t.answer, t.question["golden_answers"]):
        return "right"
    if t.stop in ("truncated", "prompt_too_long") or (
        t.stop == "no_answer" and t.turns[-1].kind == "search"
    ):
        return "budget"
    if t.answer is None:
        return "format"
    if all(read):
        return "misread"
    queries = [
        normalize_answer(turn.content) for turn in t.turns if turn.kind == "search"
    ]
    if len(set(queries)) < len(queries):
        return "in circles"
    gave_up = t.searches < len(read) or normalize_answer(t.answer) in _SURRENDERS
    return "gave up" if gave_up else "not retrieved"


def score(t: Trajectory) -> dict:
    """One line of predictions.jsonl: the answer, what it scores, what it cost, how it
    came about."""
    q = t.question
    return {
        "id": q["id"],
        "type": q.get("type", ""),
        "prediction": t.answer,
        "outcome": outcome(t),
        "evidence": evidence(t),
        "golden_answers": q["golden_answers"],
        "em": exact_match(t.answer, q["golden_answers"]),
        "f1": f1_score(t.answer, q["golden_answers"]),
        "format": float(format_score(t.turns) > 0),
        "searches": t.searches,
        "sampled_length": t.sampled_length,
        "retrieved_length": t.retrieved_length,
        "stop": t.stop,
        "passage_ids": [[p["id"] for p in found] for found in t.passages],
    }


def evaluate(
    engine,
    tokenizer,
    retriever,
    questions: list[dict],
    limits: Limits,
    system_prompt: str = profiles.SYSTEM_PROMPT,
) -> list[dict]:
    """Answer `questions` through the agent loop and score each answer (see `score`)."""
    with progress(len(questions), "answered", unit=" questions", leave=False) as bar:
        return [
            score(t)
            for t in rollout(
                engine,
                tokenizer,
                retriever,
                questions,
                limits,
                system_prompt,
                lambda _, todo: bar.update(len(questions) - len(todo) - bar.n),
            )
        ]


def by_type(predictions: list[dict]) -> list[dict]:
    """Mean scores of each question type, and of all, with how many there are."""
    types = sorted({p["type"] for p in predictions})
    groups = [(t, [p for p in predictions if p["type"] == t]) for t in types] + [
        ("all", predictions)
    ]
    keys = ("em", "f1", "format", "searches", "sampled_length", "retrieved_length")
    return [
        {
            "type": name,
            "questions": len(rows),
            **{k: mean(rows, k) for k in keys},
            "truncated": truncation(rows)[0],
        }
        for name, rows in groups
    ]


def truncation(predictions: list[dict]) -> tuple[float, float]:
    """Share of conversations that a limit cut off, and the exact match of the others.

    A limit that is too tight looks like a model that is wrong; these two tell them
    apart."""
    whole = [
        p for p in predictions if p["stop"] not in ("truncated", "prompt_too_long")
    ]
    cut = 1 - len(whole) / len(predictions) if predictions else float("nan")
    return cut, mean(whole, "em")


def mean(predictions: list[dict], key: str) -> float:
    """Mean of `key` over predictions; NaN if there are none."""
    return (
        float(np.mean([p[key] for p in predictions])) if predictions else float("nan")
    )


def answer_recall(
    found: list[list[dict]], questions: list[dict], ks=(1, 3, 5, 10)
) -> dict[int, float]:
    """Share of questions with a gold answer standing in one of the first k passages.

    Questions whose answer is yes or no are left out: those words stand anywhere.
    """
    rows = []
    for passages, q in zip(found, questions, strict=True):
        golds = [normalize_answer(g) for g in q["golden_answers"]]
        if not set(golds) & CLOSED_ANSWERS:
            texts = [normalize_answer(f"{p['title']} {p['text']}") for p in passages]
            rows.append([any(g in t for g in golds for t in texts[:k]) for k in ks])
    return (
        dict(zip(ks, np.mean(rows, axis=0).tolist()))
        if rows
        else {k: float("nan") for k in ks}
    )


def before_and_after(
    before: dict[str, list[dict]], after: dict[str, list[dict]]
) -> dict:
    """The numbers of summary.json from predictions on "test" and "test_single".

    `em_*`, `f1_*`, `searches_*` and lengths are over "test"; `em_single_*` over
    "test_single"."""
    keys = {
        "em": "em",
        "f1": "f1",
        "searches": "searches",
        "response_length": "sampled_length",
        "retrieved_length": "retrieved_length",
        "format": "format",
    }
    out: dict = {}
    for when, sets in (("before", before), ("after", after)):
        test, single = sets["test"], sets["test_single"]
        cut, others = truncation(test)
        out |= {f"{name}_{when}": mean(test, key) for name, key in keys.items()}
        out |= {
            f"{key}_single_{when}": mean(single, key) if single else None
            for key in ("em", "searches")
        }
        out |= {
            f"truncated_{when}": cut,
            f"em_not_truncated_{when}": others,
            f"by_type_{when}": by_type(test + single),
        }
    return out


if __name__ == "__main__":
    import sys

    from kr1_utils.cli import main

    sys.exit(main(["score", *sys.argv[1:]]))
