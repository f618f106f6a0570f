"""The README's numbers, computed once more from what lies in data/reference:
predictions, logs and tables."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from kr1_utils.evaluation import OUTCOMES, mean
from kr1_utils.files import REPO
from kr1_utils.scoring import bootstrap, normalize_answer, score_answers

REFERENCE = REPO / "data" / "reference"
README = (REPO / "README.md").read_text(encoding="utf-8")


def lines(name):
    file = REFERENCE / name
    with (gzip.open if file.suffix == ".gz" else open)(
        file, "rt", encoding="utf-8"
    ) as rows:
        return [json.loads(row) for row in rows]


def interval(values, seed=42):
    middle, low, high = bootstrap(values, 2000, seed)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def three_seeds():
    """Rows of the tables of three runs."""
    after = [lines(f"tiny/seed{seed}/predictions.jsonl") for seed in (42, 43, 44)]
    before = lines("tiny/seed42/predictions_before.jsonl")
    names = {
        "compositional": "compositional",
        "comparison": "comparison",
        "inference": "inference",
        "bridge_comparison": "bridge comparison",
    }
    groups = {
        "**multi-hop, all": lambda p: p["type"] != "single",
        **{
            label: lambda p, kind=kind: p["type"] == kind
            for kind, label in names.items()
        },
        "single-hop, beside them": lambda p: p["type"] == "single",
    }
    for label, belongs in groups.items():
        runs = [[p for p in run if belongs(p)] for run in (before, *after)]
        em = [mean(run, "em") for run in runs]
        total = f"{np.mean(em[1:]):.3f}"
        bold = label.startswith("**")
        yield (
            f"| {label}{' ' if bold else ' ('}{len(runs[0])}{'**' if bold else ')'} |"
            f" {em[0]:.3f} | {' / '.join(f'{e:.3f}' for e in em[1:])} |"
            f" {f'**{total}**' if bold else total} |"
        )
    multi = [[p for p in run if p["type"] != "single"] for run in (before, *after)]
    for label, key, digits in (
        ("sampled tokens a conversation, multi-hop", "sampled_length", 1),
        ("F1, multi-hop", "f1", 3),
        ("format valid, multi-hop", "format", 3),
    ):
        values = [mean(run, key) for run in multi]
        yield f"| {label} | {values[0]:.{digits}f} | {np.mean(values[1:]):.{digits}f} |"
    for kind, label in [*names.items(), ("single", "single")]:
        values = [
            mean([p for p in run if p["type"] == kind], "searches")
            for run in (before, *after)
        ]
        yield f"| searches, {label} | {values[0]:.2f} | {np.mean(values[1:]):.2f} |"


def smol_stages():
    """Rows of the table of SmolLM2."""
    stages = [
        lines(f"smol_2wiki_{stage}.jsonl")
        for stage in ("untouched", "cold_start", "grpo")
    ]
    keys = {
        "format valid": "format",
        "exact match": "em",
        "F1": "f1",
        "searches": "searches",
    }
    for label, key in keys.items():
        cells = [interval([p[key] for p in stage]) for stage in stages]
        yield (
            f"| {label} | "
            + " | ".join(
                c
                if c.split(" ")[0] != c.split("(")[1].split(" ")[0]
                else c.split(" ")[0]
                for c in cells
            )
            + " |"
        )


def ladder(name, stages):
    """Rows of a ladder: exact match of each stage with its interval, and a question's
    cost after training."""
    table, said = pd.read_csv(REFERENCE / f"{name}.csv"), lines(f"{name}.jsonl.gz")
    for rung in dict.fromkeys(table["rung"]):
        cells = [
            interval(
                [p["em"] for p in said if (p["rung"], p["stage"]) == (rung, stage)]
            )
            for stage in stages
        ]
        last = [p for p in said if (p["rung"], p["stage"]) == (rung, stages[-1])]
        seconds = table[(table["rung"] == rung) & (table["stage"] == stages[-1])][
            "seconds_a_question"
        ].item()
        cost = [
            f"{mean(last, key):.{digits}f}"
            for key, digits in (
                ("searches", 2),
                ("sampled_length", 1),
                ("retrieved_length", 1),
            )
        ]
        yield f"| {rung} | " + " | ".join([*cells, *cost, f"{seconds:.3f}"]) + " |"


def engines():
    """Rows of the BM25 engines, side by side."""
    names = {
        "bm25s_one_by_one": "bm25s, one call a query",
        "bm25s_plain": "bm25s, in batches",
        "ours": "ours",
        "tantivy": "tantivy",
    }
    for row in pd.read_csv(REFERENCE / "bench_retrieval.csv").to_dict("records"):
        speeds = [f"{row[f'queries_per_second_{n}']:,.0f}" for n in (1, 64, 512)]
        yield (
            f"| {names[row['way']]} | {row['passages_per_second']:,.0f} |"
            f" {row['peak_mib']:,.0f} | {row['disk_mib']:,.0f} | {' | '.join(speeds)} |"
            f" {row['top10_agreement']:.2f} |"
        )


def index_sizes():
    """Rows of what an index takes, and of what 21 million passages would."""
    table = pd.read_csv(REFERENCE / "index_memory.csv")
    whole = {
        "passages": 21_015_324,
        "passages_per_second": table["passages_per_second"].iloc[-1],
        **{
            c: np.polyval(
                np.polyfit(table["passages"].tail(2), table[c].tail(2), 1), 21_015_324
            )
            for c in ("peak_mib", "disk_mib")
        },
    }
    for row in [*table.to_dict("records"), whole]:
        minutes = row["passages"] / row["passages_per_second"] / 60
        yield (
            f"| {row['passages']:,} | {row['passages_per_second']:,.0f} | {minutes:.1f}"
            f" | {row['peak_mib'] / 1024:.1f} | {row['disk_mib'] / 1024:.1f} |"
        )


def agent_loop():
    """Rows of the ways to run the loop."""
    table = pd.read_csv(REFERENCE / "bench_agent.csv")
    for _, part in table.groupby("profile", sort=False):
        speed = part["questions_per_second"]
        yield " | ".join(f"{s:.2f} ({s / speed.iloc[0]:.1f} ×)" for s in speed) + " |"
        yield (
            "| tokens computed, times the floor | "
            + " | ".join(f"{r:.2f} ×" for r in part["floor_ratio"])
            + " |"
        )


def outcomes():
    """Rows of where it fails."""
    for label, name in (
        ("`tiny`, before", "tiny/seed42/predictions_before"),
        ("`tiny`, after", "tiny/seed42/predictions"),
        ("SmolLM2, after the cold start", "smol_2wiki_cold_start"),
        ("SmolLM2, after GRPO", "smol_2wiki_grpo"),
    ):
        told = [p["outcome"] for p in lines(f"{name}.jsonl") if p["type"] != "single"]
        yield (
            f"| {label} ({len(told)}) | "
            + " | ".join(str(told.count(o)) for o in OUTCOMES)
            + " |"
        )


def pack_recall():
    """How often the answer stands in the first passages for the question itself."""
    rows = [r for r in lines("pack_retrieval.jsonl") if r["counts"]]
    shares = [
        np.mean([r["rank"] is not None and r["rank"] <= k for r in rows])
        for k in (1, 3, 5, 10)
    ]
    yield (
        " / ".join(f"{s:.2f}" for s in shares)
        + f" of the {len(rows)} answerable questions"
    )


def comparisons():
    """Which of two names is answered; and how many comparisons end wrong although all
    evidence was found."""
    asked = {
        q["id"]: q
        for q in map(
            json.loads, (REPO / "data/miniwiki/test.jsonl").open(encoding="utf-8")
        )
    }
    picked, closed, wrong = {"right": 0, "other": 0, "neither": 0}, [], []
    for seed in (42, 43, 44):
        for p in lines(f"tiny/seed{seed}/predictions.jsonl"):
            if "comparison" not in p["type"]:
                continue
            said = normalize_answer(p["prediction"] or "")
            titles = asked[p["id"]]["supporting_titles"]
            named = [
                normalize_answer(t) for t in titles if t in asked[p["id"]]["question"]
            ]
            wrong += [p["outcome"]] if seed == 42 and not p["em"] else []
            if {"yes", "no"} & set(p["golden_answers"]):
                closed.append(p["em"])
            else:
                assert len(named) == 2
                picked[
                    "right" if p["em"] else "other" if said in named else "neither"
                ] += 1
    total = sum(picked.values())
    yield (
        f"{picked['right'] / total:.2f} are right: of {total} such answers in three"
        f" runs, {picked['right']} name the right one, {picked['other']} the other one,"
        f" and {picked['neither']} neither"
    )
    yield (
        "Where the answer is yes or no (are these two the same?),"
        f" {np.mean(closed):.2f} are right"
    )
    yield (
        f"in {wrong.count('misread')} of the {len(wrong)} comparisons that seed 42 gets"
        " wrong"
    )


def habits():
    """What becomes of the rungs on which `tiny` does not answer, and of the oracle."""
    rungs = {}
    for p in lines("tiny/seed42/ladder.jsonl.gz"):
        rungs.setdefault((p["rung"], p["stage"]), []).append(p)
    gave_up = sum(p["prediction"] == "no answer" for p in rungs["one search", "before"])
    silent = sum(p["prediction"] is None for p in rungs["one search", "after"])
    oracle, agent = rungs["oracle", "after"], rungs["agent", "after"]
    yield (
        f"it gives up ({gave_up} of 500), after it, it asks for another search"
        f" ({silent} of 500)"
    )
    yield f"in {sum(p['searches'] > 1 for p in oracle)} of 500 conversations"
    middle, low, high = bootstrap(
        [a["em"] - o["em"] for a, o in zip(agent, oracle, strict=True)], 2000, 42
    )
    yield f"scores {middle:.2f} lower than the agent (paired, {low:.2f} to {high:.2f})"
    bridges = {
        p["id"]
        for p in lines("tiny/seed42/predictions.jsonl")
        if p["type"] == "bridge_comparison"
    }
    scores = [
        np.mean([p["em"] for p in part if p["id"] in bridges])
        for part in (oracle, agent)
    ]
    yield f"({scores[0]:.2f} against {scores[1]:.2f})"


def kills():
    """How many moments, in how many places; all of them ended equal."""
    table = pd.read_csv(REFERENCE / "kills.csv")
    assert table["equal"].equals(table["kills"]) and table["kills"].nunique() == 1
    yield (
        f"SIGKILL at {table['kills'].sum()} random moments, {table['kills'][0]} in each"
    )


TOLD = {
    "three seeds": three_seeds,
    "SmolLM2": smol_stages,
    "BM25 engines": engines,
    "index": index_sizes,
    "agent loop": agent_loop,
    "recall": pack_recall,
    "outcomes": outcomes,
    "kills": kills,
    "comparisons": comparisons,
    "habits": habits,
    "ladder, tiny": lambda: ladder("tiny/seed42/ladder", ("before", "after")),
    "ladder, SmolLM2": lambda: ladder(
        "smol_2wiki_ladder", ("as it came", "before", "after")
    ),
}


@pytest.mark.parametrize("what", TOLD)
def test_readme_tells_what_was_measured(what):
    text = " ".join(README.split())
    rows = list(TOLD[what]())
    assert rows
    for row in rows:
        assert " ".join(row.split()) in text, row


@pytest.mark.parametrize("name", ["tiny/seed42/ladder", "smol_2wiki_ladder"])
def test_ladder_is_of_the_same_questions_and_its_table_of_its_lines(name):
    table, said = pd.read_csv(REFERENCE / f"{name}.csv"), lines(f"{name}.jsonl.gz")
    asked = {}
    for p in said:
        asked.setdefault((p["rung"], p["stage"]), []).append(p["id"])
    assert len(asked) == len(table) and len({tuple(ids) for ids in asked.values()}) == 1
    for row in table.to_dict("records"):
        part = [
            p for p in said if (p["rung"], p["stage"]) == (row["rung"], row["stage"])
        ]
        scores = score_answers(
            part, [{"id": p["id"], "golden_answers": p["golden_answers"]} for p in part]
        )
        assert scores[("2wiki", "em")].mean() == pytest.approx(row["em"], abs=1e-4)
        assert scores[("2wiki", "f1")].mean() == pytest.approx(row["f1"], abs=1e-4)
        for key in ("searches", "sampled_length", "retrieved_length"):
            assert mean(part, key) == pytest.approx(row[key], abs=1e-3)


def test_no_text_of_a_passage_lies_in_the_reference_of_real_data():
    for file in REFERENCE.glob("*.jsonl*"):
        for row in lines(file.name):
            assert not {"text", "passages", "turns"} & set(row), file.name


def test_agent_is_ahead_of_every_rung_that_searches_once_on_miniwiki():
    after = (
        pd.read_csv(REFERENCE / "tiny/seed42/ladder.csv")
        .query("stage == 'after'")
        .set_index("rung")
    )
    assert after["em_low"]["agent"] > after.drop(["agent", "oracle"])["em_high"].max()
