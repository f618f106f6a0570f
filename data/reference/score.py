"""Scores predictions of any system as three papers define it; two files are compared
question by question.

`python -m kr1_utils.evaluation predictions.jsonl --questions questions.jsonl` calls it.
"""

import argparse
import json
import sys

import pandas as pd

from kr1_utils.data import load_questions, read_rows
from kr1_utils.evaluation import SCORERS, bootstrap, score_answers


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kr1_utils.evaluation", description=__doc__
    )
    parser.add_argument(
        "predictions", nargs="+", help="one JSONL file, or two to compare"
    )
    parser.add_argument(
        "--questions", required=True, help="JSONL with id, question, golden_answers"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        if len(args.predictions) > 2:
            raise ValueError(
                "One or two files of predictions can be scored, not"
                f" {len(args.predictions)}."
            )
        questions = load_questions(args.questions)
        result = report(
            [score_answers(list(read_rows(f)), questions) for f in args.predictions]
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result) if args.json else show(result))
    return 0
