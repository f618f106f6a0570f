"""Owns the scores of answers, as three papers define them, and bootstrap intervals."""

import re
import string
from collections import Counter

import numpy as np
import pandas as pd

from kr1_utils.corpus import load_questions, read_rows

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks.

    From the 2WikiMultihopQA evaluation script (Ho et al., 2020), which follows SQuAD's.
    """
    text = _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION))
    return " ".join(text.split())


def exact_match(prediction: str | None, golden_answers: list[str]) -> float:
    """1.0 if the normalized prediction equals any normalized gold answer; missing is
    0.0."""
    if prediction is None:
        return 0.0
    return float(
        normalize_answer(prediction) in [normalize_answer(g) for g in golden_answers]
    )


CLOSED_ANSWERS = {"yes", "no", "noanswer"}
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
        if common and (p == g or not {p, g} & CLOSED_ANSWERS):
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


def report(tables: list[pd.DataFrame]) -> dict:
    """Means with 95 % intervals of what `score_answers` gave, by type and number of
    searches, of the last table; of two also the first's, and what the second gains on
    it (paired bootstrap)."""

    def of(table: pd.DataFrame) -> dict:
        out: dict = {name: {} for name in SCORERS}
        for name, metric in [c for c in table if isinstance(c, tuple)]:
            middle, low, high = bootstrap(table[(name, metric)])
            out[name] |= {metric: middle, f"{metric}_interval": [low, high]}
        return out

    one = tables[-1]
    result = {
        "questions": len(one),
        "missing": int(one["missing"].sum()),
        "scorers": of(one),
    }
    for by in ("type", "searches"):
        result[f"by_{by}"] = {
            str(k): {"questions": len(t), **of(t)} for k, t in one.groupby(by)
        }
    if len(tables) == 2:
        scores = [t[[c for c in t if isinstance(c, tuple)]] for t in tables]
        result |= {"first": of(tables[0]), "gain": of(scores[1] - scores[0])}
    return result


def show(result: dict) -> str:
    """A report as text: a row a group of questions, a column a score."""
    groups = {"all": result["scorers"]} | {
        f"{by[3:]} {key} ({part['questions']})": part
        for by in ("by_type", "by_searches")
        for key, part in result[by].items()
    }
    if "gain" in result:
        groups |= {
            "all, first file": result["first"],
            "second less first": result["gain"],
        }
    table = {
        label: {
            f"{name} {metric}": "{:.3f} ({:.2f} to {:.2f})".format(
                part[name][metric], *part[name][f"{metric}_interval"]
            )
            for name, metrics in SCORERS.items()
            for metric in metrics
        }
        for label, part in groups.items()
    }
    return (
        f"{result['questions']} questions, {result['missing']} without a prediction; 95"
        " % intervals\n" + pd.DataFrame(table).T.to_string()
    )


def score_files(predictions: list[str], questions: str) -> dict:
    """The `report` of one file of predictions, or of two that are compared.

    Raises:
        ValueError: for more than two files, or rows that can not be scored.
        OSError: if a file can not be read.
    """
    if len(predictions) > 2:
        raise ValueError(
            f"One or two files of predictions can be scored, not {len(predictions)}."
        )
    asked = load_questions(questions)
    return report([score_answers(list(read_rows(f)), asked) for f in predictions])
