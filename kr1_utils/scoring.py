"""Owns the scores of answers, as three papers define them, and bootstrap intervals."""

import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from kr1_utils.corpus import load_questions, read_rows

# Where one side is one of these and the other is not, words in common mean nothing.
CLOSED_ANSWERS = {"yes", "no", "noanswer"}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLANKS_FOR_PUNCTUATION = str.maketrans(
    dict.fromkeys(string.punctuation + "‘’´`", " "),
)


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks.

    From the 2WikiMultihopQA evaluation script (Ho et al., 2020), which follows SQuAD's.
    """
    without_punctuation = text.lower().translate(_NO_PUNCTUATION)
    without_articles = _ARTICLES.sub(" ", without_punctuation)
    return " ".join(without_articles.split())


def normalize_r1(text: str) -> str:
    """As `normalize_answer`, but blanks for punctuation, and yes and no for booleans.

    From R1-Searcher's evaluation script (Song et al., 2025,
    https://arxiv.org/abs/2503.05592), in which "True" is "yes" and "False" is "no".
    """
    if text == "True":
        text = "yes"
    elif text == "False":
        text = "no"
    return normalize_answer(text.translate(_BLANKS_FOR_PUNCTUATION))


def exact_match(
    prediction: str | None,
    golden_answers: list[str],
    normalize: Callable[[str], str] = normalize_answer,
) -> float:
    """1.0 if the prediction equals a gold answer, both normalized, else 0.0.

    A missing prediction (None) scores 0.0.
    """
    if prediction is None:
        return 0.0
    return float(normalize(prediction) in [normalize(g) for g in golden_answers])


def f1_score(
    prediction: str | None,
    golden_answers: list[str],
    normalize: Callable[[str], str] = normalize_answer,
) -> float:
    """F1 of the words in common, the best over the gold answers.

    As in the 2WikiMultihopQA evaluation script (Ho et al., 2020): 0.0 where one side is
    yes, no or noanswer and the other differs. A missing prediction (None) scores 0.0.
    """
    predicted = normalize(prediction or "")
    scores = [_f1_of_normalized(predicted, normalize(g)) for g in golden_answers]
    return max(scores, default=0.0)


def _f1_of_normalized(predicted: str, golden: str) -> float:
    closed = predicted in CLOSED_ANSWERS or golden in CLOSED_ANSWERS
    if closed and predicted != golden:
        return 0.0
    predicted_words = predicted.split()
    golden_words = golden.split()
    common = (Counter(predicted_words) & Counter(golden_words)).total()
    if common == 0:
        return 0.0
    precision = common / len(predicted_words)
    recall = common / len(golden_words)
    return 2 * precision * recall / (precision + recall)


def sub_em(prediction: str | None, golden_answers: list[str]) -> float:
    """1.0 if a gold answer is a sub-string of the prediction, both normalized.

    Search-R1's second score (Jin et al., 2025, https://arxiv.org/abs/2503.09516).
    """
    if prediction is None:
        return 0.0
    text = normalize_answer(prediction)
    return float(any(normalize_answer(g) in text for g in golden_answers))


def cover_em(prediction: str | None, golden_answers: list[str]) -> float:
    """1.0 if every word of a gold answer is in the prediction, in any order.

    R1-Searcher's cover match (Song et al., 2025).
    """
    if prediction is None:
        return 0.0
    # split(" "), as published: a gold answer without a word is covered only by an
    # empty prediction.
    words = set(normalize_r1(prediction).split(" "))
    return float(
        any(words.issuperset(normalize_r1(g).split(" ")) for g in golden_answers)
    )


def exact_match_r1(prediction: str | None, golden_answers: list[str]) -> float:
    """Exact match with R1-Searcher's normalization."""
    return exact_match(prediction, golden_answers, normalize_r1)


def f1_score_r1(prediction: str | None, golden_answers: list[str]) -> float:
    """F1 with R1-Searcher's normalization."""
    return f1_score(prediction, golden_answers, normalize_r1)


# Scorer -> metric -> function of (prediction or None, gold answers), as published.
SCORERS = {
    "2wiki": {"em": exact_match, "f1": f1_score},
    "search_r1": {"em": exact_match, "sub_em": sub_em},
    "r1_searcher": {"em": exact_match_r1, "f1": f1_score_r1, "cover_em": cover_em},
}

# The columns of `score_answers` that hold scores.
SCORE_COLUMNS = [
    (scorer, metric) for scorer, metrics in SCORERS.items() for metric in metrics
]


def score_answers(predictions: list[dict], questions: list[dict]) -> pd.DataFrame:
    """Every published score of every question, all 0 where there is no prediction.

    Args:
        predictions: `{"id", "prediction"}`; null or absent is missing. `searches`, how
            many searches it took, is kept.
        questions: `{"id", "golden_answers"}` and, where known, `type`.

    Returns:
        One row per question with `type`, `searches`, `missing`, and one column
        (scorer, metric) for each of `SCORE_COLUMNS`.

    Raises:
        ValueError: for an id that no question has or that comes twice, a prediction
            that is not text, or searches that are not a whole number.
    """
    by_id = _predictions_by_id(predictions, questions)
    rows = [_score_question(q, by_id.get(str(q["id"]), {})) for q in questions]
    # Int64 holds whole numbers and, unlike int, unknown ones.
    return pd.DataFrame(rows).astype({"searches": "Int64"})


def _score_question(question: dict, prediction: dict) -> dict:
    answer = prediction.get("prediction")
    row = {
        "type": question.get("type") or "all",
        "searches": prediction.get("searches"),
        "missing": answer is None,
    }
    for scorer, metric in SCORE_COLUMNS:
        function = SCORERS[scorer][metric]
        row[(scorer, metric)] = function(answer, question["golden_answers"])
    return row


def _predictions_by_id(
    predictions: list[dict], questions: list[dict]
) -> dict[str, dict]:
    known = {str(q["id"]) for q in questions}
    by_id: dict[str, dict] = {}
    for number, prediction in enumerate(predictions, 1):
        name = str(prediction.get("id"))
        if name not in known:
            raise ValueError(
                f"Prediction {number} has the id {name!r}, which no question has."
            )
        if name in by_id:
            raise ValueError(
                f"Prediction {number} has the id {name!r}, which comes twice."
            )
        _check_field(number, prediction, "prediction", str, "text")
        _check_field(number, prediction, "searches", int, "a whole number")
        by_id[name] = prediction
    return by_id


def _check_field(number: int, prediction: dict, key: str, kind: type, what: str):
    value = prediction.get(key)
    if value is not None and not isinstance(value, kind):
        raise ValueError(
            f"Prediction {number}: {key!r} must be {what} or null, not {value!r}."
        )


def bootstrap(values, samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile interval (Efron, 1979) of per-question scores.

    Args:
        values: (N,) numbers.
        samples: how many times N questions are drawn with replacement.
        seed: of the draws.

    Returns:
        mean, lower end, upper end; three NaN if there are no values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    shape = (samples, len(values))
    draws = np.random.default_rng(seed).integers(0, len(values), shape)
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def report(tables: list[pd.DataFrame]) -> dict:
    """Means with 95 % intervals, overall, by type and by number of searches.

    Args:
        tables: one or two tables of `score_answers` for the same questions. The last is
            reported; of two, also the first, and what the last gains on it (paired
            bootstrap).
    """
    table = tables[-1]
    result = {
        "questions": len(table),
        "missing": int(table["missing"].sum()),
        "scorers": _means(table),
        "by_type": _means_by(table, "type"),
        "by_searches": _means_by(table, "searches"),
    }
    if len(tables) == 2:
        first = tables[0]
        result["first"] = _means(first)
        result["gain"] = _means(table[SCORE_COLUMNS] - first[SCORE_COLUMNS])
    return result


def _means(table: pd.DataFrame) -> dict[str, dict]:
    """Scorer -> metric -> mean, and metric_interval -> [low, high]."""
    means: dict[str, dict] = {scorer: {} for scorer in SCORERS}
    for scorer, metric in SCORE_COLUMNS:
        middle, low, high = bootstrap(table[(scorer, metric)])
        means[scorer][metric] = middle
        means[scorer][f"{metric}_interval"] = [low, high]
    return means


def _means_by(table: pd.DataFrame, column: str) -> dict[str, dict]:
    """The means of each group of questions, with their number."""
    return {
        str(value): {"questions": len(part), **_means(part)}
        for value, part in table.groupby(column)
    }


def show(result: dict) -> str:
    """A `report` as text: one row per group of questions, one column per score."""
    rows = {"all": _cells(result["scorers"])}
    for group in ("type", "searches"):
        for value, means in result[f"by_{group}"].items():
            rows[f"{group} {value} ({means['questions']})"] = _cells(means)
    if "gain" in result:
        rows["all, first file"] = _cells(result["first"])
        rows["second less first"] = _cells(result["gain"])
    return (
        f"{result['questions']} questions, {result['missing']} without a prediction;"
        " 95 % intervals\n" + pd.DataFrame(rows).T.to_string()
    )


def _cells(means: dict[str, dict]) -> dict[str, str]:
    """One row of the text: "scorer metric" -> mean and interval."""
    cells = {}
    for scorer, metric in SCORE_COLUMNS:
        middle = means[scorer][metric]
        low, high = means[scorer][f"{metric}_interval"]
        cells[f"{scorer} {metric}"] = f"{middle:.3f} ({low:.2f} to {high:.2f})"
    return cells


def score_files(predictions: list[str], questions: str) -> dict:
    """The `report` of one file of predictions, or of two that are compared.

    Args:
        predictions: one or two files, see `score_answers` for their rows.
        questions: the file of questions.

    Raises:
        ValueError: for more than two files, or rows that cannot be scored.
        OSError: if a file cannot be read.
    """
    if len(predictions) > 2:
        raise ValueError(
            f"One or two files of predictions can be scored, not {len(predictions)}."
        )
    asked = load_questions(questions)
    tables = [score_answers(list(read_rows(file)), asked) for file in predictions]
    return report(tables)
