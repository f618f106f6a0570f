"""Owns the scores of answers, as three papers define them, and bootstrap intervals."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from kr1_utils.corpus import load_questions
from kr1_utils.rows import read_rows

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

    If normalizing makes both empty, as it does "The The", "A" and "+", they are
    compared as they are written. A missing prediction (None) scores 0.0.
    """
    if prediction is None:
        return 0.0
    return float(any(_equal(prediction, g, normalize) for g in golden_answers))


def _equal(prediction: str, golden: str, normalize: Callable[[str], str]) -> bool:
    normalized = normalize(golden)
    if normalized:
        return normalize(prediction) == normalized
    # The published scorers find "" equal to "A" here, and "The The" to "+".
    return not normalize(prediction) and _as_written(prediction) == _as_written(golden)


def _as_written(text: str) -> str:
    """In lower case, with single blanks; nothing else is changed."""
    return " ".join(text.lower().split())


def f1_score(
    prediction: str | None,
    golden_answers: list[str],
    normalize: Callable[[str], str] = normalize_answer,
) -> float:
    """F1 of the words in common, the best over the gold answers.

    As in the 2WikiMultihopQA evaluation script (Ho et al., 2020): 0.0 where one side is
    yes, no or noanswer and the other differs. If normalizing makes both empty, 1.0 if
    they are written the same. A missing prediction (None) scores 0.0.
    """
    if prediction is None:
        return 0.0
    predicted = normalize(prediction)
    scores = []
    for golden in golden_answers:
        normalized = normalize(golden)
        if predicted or normalized:
            scores.append(_f1_of_normalized(predicted, normalized))
        else:
            scores.append(float(_equal(prediction, golden, normalize)))
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

    Search-R1's second score (Jin et al., 2025, https://arxiv.org/abs/2503.09516). A
    gold answer that normalizing makes empty must be in the prediction as it is
    written, as whole words.
    """
    if prediction is None:
        return 0.0
    text = normalize_answer(prediction)
    return float(any(_is_inside(g, prediction, text) for g in golden_answers))


def _is_inside(golden: str, prediction: str, normalized_prediction: str) -> bool:
    normalized = normalize_answer(golden)
    if normalized:
        return normalized in normalized_prediction
    return f" {_as_written(golden)} " in f" {_as_written(prediction)} "


def cover_em(prediction: str | None, golden_answers: list[str]) -> float:
    """1.0 if every word of a gold answer is in the prediction, in any order.

    R1-Searcher's cover match (Song et al., 2025). A gold answer that normalizing makes
    empty must be covered as it is written.
    """
    if prediction is None:
        return 0.0
    words = set(normalize_r1(prediction).split())
    # split(" "), as published: a gold answer without a word is covered only by an
    # empty prediction.
    words_as_written = set(_as_written(prediction).split(" "))
    return float(any(_is_covered(g, words, words_as_written) for g in golden_answers))


def _is_covered(golden: str, words: set[str], words_as_written: set[str]) -> bool:
    normalized = normalize_r1(golden)
    if normalized:
        return words.issuperset(normalized.split())
    return words_as_written.issuperset(_as_written(golden).split(" "))


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


def score_files(
    predictions: list[str], questions: str, keys: Sequence[str] = ("prediction",)
) -> dict:
    """The `report` of one file of predictions, or of two that are compared.

    Args:
        predictions: one or two files, see `score_answers` for their rows.
        questions: the file of questions.
        keys: where a row has its answer: one key for all files, or one per file.
            "output.pred" is the key "pred" of the object under "output".

    Raises:
        ValueError: for more than two files, files in which no row has the key, or rows
            that cannot be scored.
        OSError: if a file cannot be read.
    """
    if len(predictions) > 2:
        raise ValueError(
            f"One or two files of predictions can be scored, not {len(predictions)}."
        )
    if len(keys) not in (1, len(predictions)):
        raise ValueError(
            f"{len(keys)} keys for {len(predictions)} files: name one for all, or one"
            " for each."
        )
    asked = load_questions(questions)
    if len(keys) < len(predictions):
        keys = [*keys] * len(predictions)
    tables = []
    for file, key in zip(predictions, keys, strict=True):
        tables.append(score_answers(read_predictions(file, key), asked))
    return report(tables)


def read_predictions(file: str, key: str = "prediction") -> list[dict]:
    """The rows of a file, with their answer under "prediction".

    Args:
        file: see `read_rows`.
        key: where it is in the file, see `score_files`. A row without it has no answer.

    Raises:
        ValueError: if there is no row, none has the key, or an answer is not text.
    """
    rows = list(read_rows(file))
    if not rows:
        raise ValueError(f"{file} holds no predictions.")
    answers = [_value_at(row, key) for row in rows]
    if all(answer is _ABSENT for answer in answers):
        raise ValueError(_sentence_on_keys(file, key, rows))
    predictions = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        if answer is not _ABSENT:
            _check_field(number, {key: answer}, key, str, "text")
        row = {**row, "prediction": None if answer is _ABSENT else answer}
        if "id" not in row and "_id" in row:
            row["id"] = row["_id"]
        if isinstance(row.get("searches"), str):
            # A CSV holds nothing but text.
            row["searches"] = _number_of(row["searches"])
        predictions.append(row)
    return predictions


# In the place of a value that is not there; None may be one that is.
_ABSENT = object()


def _value_at(row: dict, key: str) -> object:
    """The value under a key, or along the keys between the dots of it."""
    if key in row:
        return row[key]
    value: object = row
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _number_of(text: str) -> int | str | None:
    """A whole number written as text; None for no text; other text as it is."""
    if not text.strip():
        return None
    return int(text) if text.strip().isdecimal() else text


def _sentence_on_keys(file: str, key: str, rows: list[dict]) -> str:
    seen = {}
    for row in rows:
        seen.update(_keys_of(row))
    answers = [name for name in seen if name.rpartition(".")[2] in _NAMES_OF_ANSWERS]
    example = answers[0] if answers else "output.pred"
    return (
        f"{file}: no row has {key!r}, the answer to score. The keys are"
        f" {', '.join(seen)}: name the right one, as in --key {example}."
    )


# What others call the answer that a model gave.
_NAMES_OF_ANSWERS = ("pred", "prediction", "predicted_answer", "output", "answer")


def _keys_of(row: dict, before: str = "") -> dict[str, None]:
    """Keys of a row; those of an object within it behind a dot."""
    keys: dict[str, None] = {}
    for key, value in row.items():
        if isinstance(value, dict) and value:
            keys.update(_keys_of(value, f"{before}{key}."))
        else:
            keys[f"{before}{key}"] = None
    return keys
