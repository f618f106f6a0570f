"""Owns scores: of answers as three papers define them, recall of retrieval, bootstrap
intervals, summaries.

`python -m kr1_utils.evaluation predictions.jsonl --questions questions.jsonl` scores
anyone's predictions; with two files it compares them question by question."""

import runpy
import string
import sys
from collections import Counter

import numpy as np
import pandas as pd

from kr1_utils import protocol
from kr1_utils.agent import Trajectory, rollout
from kr1_utils.data import progress
from kr1_utils.profiles import REPO, Limits
from kr1_utils.rewards import exact_match, format_score, normalize_answer

_CLOSED = {"yes", "no", "noanswer"}
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
_BLANKS = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def f1_score(
    prediction: str | None, golden_answers: list[str], normalize=normalize_answer
) -> float:
    """Token F1, the best over the gold answers; 0 where one side is yes, no or noanswer
    and they differ.

    As in the 2WikiMultihopQA evaluation script (Ho et al., 2020); a missing prediction
    scores 0."""
    p, best = normalize(prediction or ""), 0.0
    for g in map(normalize, golden_answers):
        common = sum((Counter(p.split()) & Counter(g.split())).values())
        if common and (p == g or not {p, g} & _CLOSED):
            precision, recall = common / len(p.split()), common / len(g.split())
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def sub_em(prediction: str | None, golden_answers: list[str]) -> float:
    """Search-R1's sub-string match: a normalized gold answer stands somewhere in the
    prediction."""
    text = normalize_answer(prediction or "")
    return float(
        prediction is not None
        and any(normalize_answer(g) in text for g in golden_answers)
    )


def normalize_r1(text: str) -> str:
    """R1-Searcher's: blanks for punctuation, and True and False are yes and no (Song et
    al., 2025, https://arxiv.org/abs/2503.05592, its evaluation script)."""
    return normalize_answer(
        {"True": "yes", "False": "no"}.get(text, text).translate(_BLANKS)
    )


def cover_em(prediction: str | None, golden_answers: list[str]) -> float:
    """R1-Searcher's cover match: every word of a gold answer is one of the
    prediction's, in any order."""
    words = set(normalize_r1(prediction or "").split(" "))
    return float(
        prediction is not None
        and any(words.issuperset(normalize_r1(g).split(" ")) for g in golden_answers)
    )


SCORERS = {  # as published: each of (prediction or None, gold answers)
    "2wiki": {"em": exact_match, "f1": f1_score},
    "search_r1": {"em": exact_match, "sub_em": sub_em},
    "r1_searcher": {
        "em": lambda p, g: float(
            p is not None and normalize_r1(p) in map(normalize_r1, g)
        ),
        "f1": lambda p, g: f1_score(p, g, normalize_r1),
        "cover_em": cover_em,
    },
}


def score_answers(predictions: list[dict], questions: list[dict]) -> pd.DataFrame:
    """Every published score of every question; where there is no prediction, all are 0.

    Args:
        predictions: `{"id", "prediction"}`; null or absent is missing. `searches` is
            kept.

    Returns:
        a row a question: `type`, `searches`, `missing`, and a column (scorer, metric)
        each.

    Raises:
        ValueError: for an id that no question has or that comes twice, or a prediction
            that is not text.
    """
    known, said = {str(q["id"]) for q in questions}, {}
    for number, p in enumerate(predictions, 1):
        name = str(p.get("id"))
        if name not in known or name in said:
            raise ValueError(
                f"Prediction {number} has the id {name!r}, which "
                f"{'comes twice' if name in known else 'no question has'}."
            )
        for key, kind, what in (
            ("prediction", str, "text"),
            ("searches", int, "a whole number"),
        ):
            if not isinstance(p.get(key), kind | None):
                raise ValueError(
                    f"Prediction {number}: {key!r} must be {what} or null, not"
                    f" {p[key]!r}."
                )
        said[name] = p
    rows = []
    for q in questions:
        p, golden = said.get(str(q["id"]), {}), q["golden_answers"]
        scores = {
            (name, metric): of(p.get("prediction"), golden)
            for name, metrics in SCORERS.items()
            for metric, of in metrics.items()
        }
        rows.append(
            {
                "type": q.get("type") or "all",
                "searches": p.get("searches"),
                "missing": p.get("prediction") is None,
                **scores,
            }
        )
    return pd.DataFrame(rows).astype({"searches": "Int64"})  # whole numbers, or unknown


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
    system_prompt: str = protocol.SYSTEM_PROMPT,
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


def bootstrap(values, samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile interval (Efron, 1979) of per-question scores.

    Args:
        values: (N,) numbers.
        samples: how many times N questions are drawn with replacement.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


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
        if not set(golds) & _CLOSED:
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


def main(argv: list[str] | None = None) -> int:
    """The command line, which data/reference/score.py holds."""
    return runpy.run_path(str(REPO / "data" / "reference" / "score.py"))["main"](argv)


if __name__ == "__main__":
    sys.exit(main())
