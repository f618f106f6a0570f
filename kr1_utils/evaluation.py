"""Owns scores: exact match and F1 of answers, recall of retrieval, bootstrap intervals, summaries."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kr1_utils import protocol
from kr1_utils.agent import Trajectory, rollout
from kr1_utils.profiles import Limits
from kr1_utils.rewards import exact_match, format_score, normalize_answer

_CLOSED = {"yes", "no", "noanswer"}


def f1_score(prediction: str | None, golden_answers: list[str]) -> float:
    """Token F1, the best over the gold answers; 0 where one side is yes, no or noanswer and they differ.

    As in the 2WikiMultihopQA evaluation script (Ho et al., 2020); a missing prediction scores 0.
    """
    return max((_f1(prediction or "", g) for g in golden_answers), default=0.0)


def _f1(prediction: str, gold: str) -> float:
    p, g = normalize_answer(prediction), normalize_answer(gold)
    if p != g and (p in _CLOSED or g in _CLOSED):
        return 0.0
    common = sum((Counter(p.split()) & Counter(g.split())).values())
    if not common:
        return 0.0
    precision, recall = common / len(p.split()), common / len(g.split())
    return 2 * precision * recall / (precision + recall)


def score(t: Trajectory) -> dict:
    """One line of predictions.jsonl: the answer, what it scores, and what it cost."""
    q = t.question
    return {
        "id": q["id"], "type": q.get("type", ""), "prediction": t.answer,
        "golden_answers": q["golden_answers"], "em": exact_match(t.answer, q["golden_answers"]),
        "f1": f1_score(t.answer, q["golden_answers"]), "format": float(format_score(t.turns) > 0),
        "searches": t.searches, "sampled_length": t.sampled_length,
        "retrieved_length": t.retrieved_length, "stop": t.stop,
        "passage_ids": [[p["id"] for p in found] for found in t.passages],
    }


def evaluate(engine, tokenizer, retriever, questions: list[dict], limits: Limits,
             system_prompt: str = protocol.SYSTEM_PROMPT, on_turn=None) -> list[dict]:
    """Answer `questions` through the agent loop and score each answer (see `score`)."""
    return [score(t) for t in rollout(engine, tokenizer, retriever, questions, limits,
                                      system_prompt, on_turn)]


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
    groups = [(t, [p for p in predictions if p["type"] == t]) for t in types] + [("all", predictions)]
    keys = ("em", "f1", "format", "searches", "sampled_length", "retrieved_length")
    return [{"type": name, "questions": len(rows), **{k: mean(rows, k) for k in keys},
             "truncated": truncation(rows)[0]} for name, rows in groups]


def truncation(predictions: list[dict]) -> tuple[float, float]:
    """Share of conversations that a limit cut off, and the exact match of the others.

    A limit that is too tight looks like a model that is wrong; these two tell them apart.
    """
    whole = [p for p in predictions if p["stop"] not in ("truncated", "prompt_too_long")]
    cut = 1 - len(whole) / len(predictions) if predictions else float("nan")
    return cut, mean(whole, "em")


def mean(predictions: list[dict], key: str) -> float:
    """Mean of `key` over predictions; NaN if there are none."""
    return float(np.mean([p[key] for p in predictions])) if predictions else float("nan")


def answer_recall(found: list[list[dict]], questions: list[dict], ks=(1, 3, 5, 10)) -> dict[int, float]:
    """Share of questions with a gold answer standing in one of the first k passages.

    Questions whose answer is yes or no are left out: those words stand anywhere.
    """
    rows = []
    for passages, q in zip(found, questions, strict=True):
        golds = [normalize_answer(g) for g in q["golden_answers"]]
        if not set(golds) & _CLOSED:
            texts = [normalize_answer(f"{p['title']} {p['text']}") for p in passages]
            rows.append([any(g in t for g in golds for t in texts[:k]) for k in ks])
    return dict(zip(ks, np.mean(rows, axis=0).tolist())) if rows else {k: float("nan") for k in ks}


def title_recall(found: list[list[dict]], titles: list[str], ks=(1, 2, 3, 5)) -> dict[int, float]:
    """Share of searches that bring the passage with the wanted title among the first k."""
    hits = [[w in [p["title"] for p in passages[:k]] for k in ks]
            for passages, w in zip(found, titles, strict=True)]
    return dict(zip(ks, np.mean(hits, axis=0).tolist()))


def before_and_after(before: dict[str, list[dict]], after: dict[str, list[dict]]) -> dict:
    """The numbers of summary.json from predictions on "test" and "test_single".

    `em_*`, `f1_*`, `searches_*` and lengths are over "test"; `em_single_*` over "test_single".
    """
    out: dict = {}
    for when, sets in (("before", before), ("after", after)):
        test, single = sets["test"], sets["test_single"]
        out |= {f"em_{when}": mean(test, "em"), f"f1_{when}": mean(test, "f1"),
                f"em_single_{when}": mean(single, "em") if single else None,
                f"searches_{when}": mean(test, "searches"),
                f"searches_single_{when}": mean(single, "searches") if single else None,
                f"response_length_{when}": mean(test, "sampled_length"),
                f"retrieved_length_{when}": mean(test, "retrieved_length"),
                f"format_{when}": mean(test, "format"),
                f"truncated_{when}": truncation(test)[0],
                f"em_not_truncated_{when}": truncation(test)[1],
                f"by_type_{when}": by_type(test + single)}
    return out
