"""Owns the tables of results: made from data/reference, put between markers.

`python -m kr1_utils.tables` writes them into README.md (two of them) and
data/reference/README.md (all). A table stands there between two lines:

    <!-- table: NAME -->
    <!-- end -->
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from kr1_utils.corpus import read_rows
from kr1_utils.evaluation import OUTCOMES, mean
from kr1_utils.files import REPO, display_path, write_text
from kr1_utils.scoring import bootstrap, normalize_answer

REFERENCE = REPO / "data" / "reference"

# The seeds of the three runs of `tiny`, and one that was run when all was decided.
SEEDS = (42, 43, 44)
LAST_SEED = 45

# Type of a question that needs several passages -> its name in a table.
MULTI_HOP = {
    "compositional": "compositional",
    "comparison": "comparison",
    "inference": "inference",
    "bridge_comparison": "bridge comparison",
}

# Type of a question that needs one passage, or none -> its name in a table.
BESIDE = {
    "single": "single-hop",
    "known": "known",
    "look_alike": "look-alikes of known",
}

# Runs of `tiny` with other rewards -> their folder.
OTHER_REWARDS = {
    "as the profile says: a search of a right answer costs 0.05": "tiny",
    "searches cost nothing": "tiny_no_cost",
    "and 0.3 for the share of the evidence found": "tiny_evidence",
}

# Machines that ran seed 42 -> their folder.
MACHINES = {
    "one thread (the run of this page)": "tiny",
    "an AMD EPYC with AVX-512, two threads": "tiny_faster_machine",
    "an AMD EPYC without AVX-512, two threads": "tiny_other_machine",
}

# The stages of a pretrained model.
STAGES = ("untouched", "after the cold start", "after GRPO")

# What `kr1 bench gpu` measures -> its name in a table.
GPU_TASKS = {
    "small": "a training step",
    "memory": "a training step",
    "train": "a training step, of three",
    "generate": "one text written",
}

# Passages of Wikipedia 2018, the corpus of the original.
WIKIPEDIA_PASSAGES = 21_015_324


# --- markdown ---


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, without a line break at its end.

    Args:
        header: the names of the columns.
        rows: of cells, as many in each row as there are columns.
    """
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def replace_between_markers(text: str, name: str, table: str) -> str:
    """The text with `table` between the markers of `name`.

    Raises:
        ValueError: if the text does not have these markers exactly once.
    """
    begin = f"<!-- table: {name} -->\n"
    end = "<!-- end -->\n"
    if text.count(begin) != 1:
        raise ValueError(
            f"Found {text.count(begin)} times {begin.strip()}, wanted it once."
        )
    before, rest = text.split(begin)
    if end not in rest:
        raise ValueError(f"After {begin.strip()} there is no {end.strip()}.")
    _, after = rest.split(end, maxsplit=1)
    # GitHub needs the blank lines to see a table.
    return f"{before}{begin}\n{table}\n\n{end}{after}"


def write_between_markers(file: Path, name: str, table: str) -> None:
    """Put `table` between the markers of `name` in a file.

    Raises:
        ValueError: if the file does not have these markers exactly once.
        OSError: if it cannot be read or written.
    """
    text = file.read_text(encoding="utf-8")
    try:
        changed = replace_between_markers(text, name, table)
    except ValueError as error:
        raise ValueError(f"{display_path(file)}: {error}") from None
    write_text(file, changed)


# --- what lies in data/reference ---


def _lines(name: str) -> list[dict]:
    return list(read_rows(REFERENCE / name))


def _tiny_before() -> list[dict]:
    """Predictions before training; they are the same for every seed."""
    return _lines("tiny/seed42/predictions_before.jsonl")


def _tiny_after(seed: int, folder: str = "tiny") -> list[dict]:
    return _lines(f"{folder}/seed{seed}/predictions.jsonl")


def _of_type(predictions: list[dict], kind: str) -> list[dict]:
    return [p for p in predictions if p["type"] == kind]


def _multi_hop(predictions: list[dict]) -> list[dict]:
    return [p for p in predictions if p["type"] not in BESIDE]


def _rung(predictions: list[dict], rung: str, stage: str) -> list[dict]:
    """What was said on one rung of a ladder at one stage of training."""
    return [p for p in predictions if p["rung"] == rung and p["stage"] == stage]


def _interval(values: list[float], digits: int = 2) -> str:
    middle, low, high = bootstrap(values, samples=2000, seed=42)
    return f"{middle:.2f} ({low:.{digits}f} to {high:.{digits}f})"


def _interval_unless_equal(values: list[float], digits: int = 2) -> str:
    """Without an interval where all values are the same."""
    if min(values) == max(values):
        return f"{values[0]:.2f}"
    return _interval(values, digits)


# --- the tables: `tiny` ---


def tiny_exact_match() -> str:
    """Exact match of three runs, by type of question."""
    runs = [_tiny_before(), *(_tiny_after(seed) for seed in SEEDS)]
    multi_hop = [_multi_hop(run) for run in runs]
    label = f"**multi-hop, all {len(multi_hop[0])}**"
    *cells, total = _exact_match_row(label, multi_hop)
    rows = [[*cells, f"**{total}**"]]
    labels = MULTI_HOP | BESIDE
    for kind, label in labels.items():
        parts = [_of_type(run, kind) for run in runs]
        rows.append(_exact_match_row(f"{label} ({len(parts[0])})", parts))
    seeds = " / ".join(map(str, SEEDS))
    header = [
        "exact match, greedy, held-out questions",
        "before",
        f"after, seeds {seeds}",
        "mean",
    ]
    return markdown(header, rows)


def _exact_match_row(label: str, runs: list[list[dict]]) -> list[str]:
    before, *after = [mean(run, "em") for run in runs]
    each = " / ".join(f"{em:.3f}" for em in after)
    return [label, f"{before:.3f}", each, f"{np.mean(after):.3f}"]


def tiny_costs() -> str:
    """What an answer costs, and its form: the mean over three runs."""
    runs = [_tiny_before(), *(_tiny_after(seed) for seed in SEEDS)]
    multi_hop = [_multi_hop(run) for run in runs]
    rows = []
    for label, key, digits in (
        ("sampled tokens per conversation, multi-hop", "sampled_length", 1),
        ("F1, multi-hop", "f1", 3),
        ("format valid, multi-hop", "format", 3),
    ):
        rows.append(_before_after_row(label, multi_hop, key, digits))
    for kind, label in (MULTI_HOP | BESIDE).items():
        parts = [_of_type(run, kind) for run in runs]
        rows.append(_before_after_row(f"searches, {label}", parts, "searches", 2))
    return markdown(["mean over the three seeds", "before", "after"], rows)


def _before_after_row(
    label: str, runs: list[list[dict]], key: str, digits: int
) -> list[str]:
    before, *after = [mean(run, key) for run in runs]
    return [label, f"{before:.{digits}f}", f"{np.mean(after):.{digits}f}"]


def tiny_last_seed() -> str:
    """Exact match and searches of the seed that was run last, with intervals."""
    before, after = _tiny_before(), _tiny_after(LAST_SEED)
    groups = {f"multi-hop, all {len(_multi_hop(after))}": _multi_hop}
    for kind, label in (MULTI_HOP | BESIDE).items():
        groups[label] = lambda run, kind=kind: _of_type(run, kind)
    rows = []
    for label, part_of in groups.items():
        cells = [
            _interval([p[key] for p in part_of(run)], digits=2)
            for key in ("em", "searches")
            for run in (before, after)
        ]
        rows.append([label, *cells])
    header = [f"seed {LAST_SEED}", "exact match before", "after", "searches before"]
    return markdown([*header, "after"], rows)


def tiny_rewards() -> str:
    """What other rewards change: the mean over three runs each."""
    rows = []
    for label, folder in OTHER_REWARDS.items():
        runs = [_tiny_after(seed, folder) for seed in SEEDS]
        logs = [
            pd.read_csv(REFERENCE / folder / f"seed{seed}" / "train_log.csv")
            for seed in SEEDS
        ]
        cells = [np.mean([mean(_multi_hop(run), "em") for run in runs])]
        for kind in ("single", "known"):
            cells += [
                np.mean([mean(_of_type(run, kind), key) for run in runs])
                for key in ("em", "searches")
            ]
        steps = [str(_steps_to(log)) for log in logs]
        rows.append([label, *(f"{cell:.2f}" for cell in cells), " / ".join(steps)])
    header = ["mean over the three seeds", "multi-hop: EM", "single-hop: EM"]
    header += [
        "searches",
        "known: EM",
        "searches",
        "steps to 0.8 of the final accuracy",
    ]
    return markdown(header, rows)


def _steps_to(log: pd.DataFrame, share: float = 0.8) -> int:
    """The first step at which the accuracy reward, averaged over five steps, has that
    share of its mean over the last ten."""
    wanted = share * log["accuracy_reward"].tail(10).mean()
    smooth = log["accuracy_reward"].rolling(5).mean()
    return int(log["step"][smooth >= wanted].iloc[0])


def tiny_decisions() -> str:
    """What the model would do at every fork, before training and after it."""
    table = pd.read_csv(REFERENCE / "tiny/seed42/decisions.csv")
    table = table.set_index(["type", "searches", "when"])
    names = MULTI_HOP | BESIDE
    rows = []
    for kind, searches in table.index.droplevel("when").unique():
        cells = [
            f"{table.loc[(kind, searches, when), choice]:.2f}"
            for choice in ("answer", "search", "give up")
            for when in ("before", "after")
        ]
        rows.append([names[kind], str(searches), *cells])
    header = ["type of question", "searches made"]
    for choice in ("answer", "search", "give up"):
        header += [f"{choice}, before", "after"]
    return markdown(header, rows)


def tiny_before_grpo() -> str:
    """`tiny-lm` before GRPO, greedy and sampled."""
    exam = pd.read_csv(REFERENCE / "tiny_lm_exam.csv")
    rows = []
    for row in exam.to_dict("records"):
        kind = row["type"].replace("_", " ")
        rows.append(
            [
                f"{row['examination']}: {kind} ({row['questions']})",
                f"{row['em']:.3f}",
                f"{row['f1']:.3f}",
                f"{row['format']:.3f}",
                f"{row['searches']:.2f}",
            ]
        )
    return markdown(["", "exact match", "F1", "format valid", "searches"], rows)


def tiny_machines() -> str:
    """The same run of `tiny` on three machines."""
    first_log = pd.read_csv(REFERENCE / "tiny/seed42/train_log.csv")
    first_answers = {row["id"]: row["prediction"] for row in _tiny_after(42)}
    rows = []
    for machine, folder in MACHINES.items():
        log = pd.read_csv(REFERENCE / folder / "seed42" / "train_log.csv")
        answers = _tiny_after(42, folder)
        other_steps = log["step"][log["loss"] != first_log["loss"]].tolist()
        other_answers = sum(
            row["prediction"] != first_answers[row["id"]] for row in answers
        )
        rows.append(
            [
                machine,
                _em(_multi_hop(answers)),
                _em(_of_type(answers, "single")),
                ", ".join(map(str, other_steps)) or "none",
                f"{other_answers} of {len(answers)}",
            ]
        )
    header = ["seed 42", "multi-hop: EM", "single-hop: EM"]
    header += ["steps with another loss", "other answers"]
    return markdown(header, rows)


def _em(predictions: list[dict]) -> str:
    return f"{mean(predictions, 'em'):.3f}"


def tiny_comparisons() -> str:
    """Which of two names is answered after training, in three runs."""
    picked = {"the right one": 0, "the other one": 0, "neither": 0}
    yes_or_no = []
    questions = {q["id"]: q for q in read_rows(REPO / "data/miniwiki/test.jsonl")}
    for seed in SEEDS:
        for prediction in _comparisons(_tiny_after(seed)):
            if {"yes", "no"} & set(prediction["golden_answers"]):
                yes_or_no.append(prediction["em"])
            else:
                picked[_picked(prediction, questions[prediction["id"]])] += 1
    total = sum(picked.values())
    rows = [
        [f"which of two: answers {what}", f"{count} of {total}", f"{count / total:.2f}"]
        for what, count in picked.items()
    ]
    rows.append(
        [
            "yes or no: answers right",
            f"{sum(yes_or_no):.0f} of {len(yes_or_no)}",
            f"{np.mean(yes_or_no):.2f}",
        ]
    )
    wrong = [p for p in _comparisons(_tiny_after(42)) if not p["em"]]
    misread = [p for p in wrong if p["outcome"] == "misread"]
    rows.append(
        [
            "wrong with all evidence found, of the wrong ones of seed 42",
            f"{len(misread)} of {len(wrong)}",
            f"{len(misread) / len(wrong):.2f}",
        ]
    )
    return markdown(["comparisons and bridge comparisons", "answers", "share"], rows)


def _comparisons(predictions: list[dict]) -> list[dict]:
    return [p for p in predictions if "comparison" in p["type"]]


def _picked(prediction: dict, question: dict) -> str:
    """Which of the two titles that a question names is the answer given."""
    if prediction["em"]:
        return "the right one"
    titles = [t for t in question["supporting_titles"] if t in question["question"]]
    names = [normalize_answer(title) for title in titles]
    answer = normalize_answer(prediction["prediction"] or "")
    return "the other one" if answer in names else "neither"


# --- the tables: SmolLM2 ---


def smol_stages() -> str:
    """SmolLM2 untouched, after the cold start, after GRPO."""
    stages = [
        _lines(f"smol_2wiki_{stage}.jsonl")
        for stage in ("untouched", "cold_start", "grpo")
    ]
    rows = _rows_of_stages(stages)
    _, cold_start, grpo = stages
    gains = [b["em"] - a["em"] for a, b in zip(cold_start, grpo, strict=True)]
    gain = _interval(gains)
    rows.append(["exact match gained by GRPO, paired", "–", "–", gain])
    return markdown(["", *STAGES], rows)


def half_stages() -> str:
    """`half` untouched and after the cold start."""
    stages = [
        _lines(f"half_2wiki_{stage}.jsonl") for stage in ("untouched", "cold_start")
    ]
    return markdown(["", *STAGES[:2]], _rows_of_stages(stages))


def real_text() -> str:
    """Both models that read Wikipedia, on the same questions, at each stage."""
    stages = ("untouched", "cold_start", "grpo")
    rows = []
    for name, profile in (("SmolLM2-135M", "smol"), ("Qwen2.5-Coder-0.5B", "half")):
        files = [REFERENCE / f"{profile}_2wiki_{stage}.jsonl" for stage in stages]
        answers = [_lines(file.name) if file.exists() else None for file in files]
        for label, key in (("exact match", "em"), ("searches", "searches")):
            rows.append([f"{name}: {label}"] + [_cell(run, key) for run in answers])
    header = ["100 questions of 2WikiMultihopQA", *STAGES]
    return markdown(header, rows)


def _cell(predictions: list[dict] | None, key: str) -> str:
    """The mean with its interval, or that there is no such run."""
    if predictions is None:
        return "not run"
    return _interval_unless_equal([row[key] for row in predictions])


def _rows_of_stages(stages: list[list[dict]]) -> list[list[str]]:
    """A row for each measure, with a cell for the answers of each stage."""
    return [
        [label]
        + [_interval_unless_equal([p[key] for p in stage], digits) for stage in stages]
        for label, key, digits in (
            ("format valid", "format", 2),
            ("exact match", "em", 2),
            ("F1", "f1", 2),
            ("searches", "searches", 2),
            ("sampled tokens per conversation", "sampled_length", 0),
        )
    ]


# --- the tables: the ladder, and where it fails ---


def tiny_ladder() -> str:
    """The ladder of `tiny`."""
    stages = {"before": "before", "after": "after"}
    return _ladder("`tiny`, 500 multi-hop questions", "tiny/seed42/ladder", stages)


def smol_ladder() -> str:
    """The ladder of SmolLM2."""
    stages = {
        "as it came": "as it came",
        "before": "after the cold start",
        "after": "after GRPO",
    }
    title = "SmolLM2, 100 questions of 2WikiMultihopQA"
    return _ladder(title, "smol_2wiki_ladder", stages)


def _ladder(title: str, name: str, stages: dict[str, str]) -> str:
    """Exact match on each rung at each stage, and what a question costs at the end.

    Args:
        title: of the first column.
        name: of a CSV and a file of predictions.
        stages: stage -> title of its column.
    """
    table = pd.read_csv(REFERENCE / f"{name}.csv").set_index(["rung", "stage"])
    said = _lines(f"{name}.jsonl.gz")
    rows = []
    for rung in table.index.unique("rung"):
        cells = [
            _interval([p["em"] for p in _rung(said, rung, stage)]) for stage in stages
        ]
        answers = _rung(said, rung, "after")
        seconds = table.loc[(rung, "after"), "seconds_a_question"]
        costs = [
            f"{mean(answers, 'searches'):.2f}",
            f"{mean(answers, 'sampled_length'):.1f}",
            f"{mean(answers, 'retrieved_length'):.1f}",
            f"{seconds:.3f}",
        ]
        rows.append([rung, *cells, *costs])
    cost_names = ["searches", "sampled tokens", "other tokens", "seconds"]
    return markdown([title, *stages.values(), *cost_names], rows)


def tiny_habits() -> str:
    """What `tiny` does on the rungs where it does not lead a conversation."""
    said = _lines("tiny/seed42/ladder.jsonl.gz")
    once_before = _rung(said, "one search", "before")
    once_after = _rung(said, "one search", "after")
    oracle = _rung(said, "oracle", "after")
    agent = _rung(said, "agent", "after")
    gave_up = [p for p in once_before if p["prediction"] == "no answer"]
    unanswered = [p for p in once_after if p["prediction"] is None]
    searched_again = [p for p in oracle if p["searches"] > 1]
    ahead = [a["em"] - o["em"] for a, o in zip(agent, oracle, strict=True)]
    bridges = {p["id"] for p in _of_type(_tiny_after(42), "bridge_comparison")}
    oracle_on_bridges = mean([p for p in oracle if p["id"] in bridges], "em")
    agent_on_bridges = mean([p for p in agent if p["id"] in bridges], "em")
    rows = [
        ["one search, before: gives up", f"{len(gave_up)} of {len(once_before)}"],
        [
            "one search, after: asks for another instead of answering",
            f"{len(unanswered)} of {len(once_after)}",
        ],
        [
            "oracle, after: searches again",
            f"{len(searched_again)} of {len(oracle)}",
        ],
        ["agent less oracle, after: exact match, paired", _interval(ahead)],
        ["oracle, after: exact match, bridge comparison", f"{oracle_on_bridges:.2f}"],
        ["agent, after: exact match, bridge comparison", f"{agent_on_bridges:.2f}"],
    ]
    return markdown(["`tiny` on the ladder, before and after training", ""], rows)


def outcomes() -> str:
    """How many conversations are in each class of `evaluation.OUTCOMES`."""
    files = {
        "`tiny`, before": "tiny/seed42/predictions_before",
        "`tiny`, after": "tiny/seed42/predictions",
        "SmolLM2, after the cold start": "smol_2wiki_cold_start",
        "SmolLM2, after GRPO": "smol_2wiki_grpo",
    }
    rows = []
    for label, name in files.items():
        told = [p["outcome"] for p in _multi_hop(_lines(f"{name}.jsonl"))]
        counts = [str(told.count(outcome)) for outcome in OUTCOMES]
        rows.append([f"{label} ({len(told)})", *counts])
    return markdown(["", *OUTCOMES], rows)


# --- the tables: retrieval ---


def recall() -> str:
    """How often an answer is in the first passages found with the question itself."""
    rows = [row for row in _lines("pack_retrieval.jsonl") if row["counts"]]
    ranks = [row["rank"] for row in rows]
    ks = (1, 3, 5, 10)
    shares = [np.mean([r is not None and r <= k for r in ranks]) for k in ks]
    header = ["a gold answer is in the first …", *map(str, ks)]
    label = f"share of {len(rows)} answerable questions that are not yes/no"
    return markdown(header, [[label, *(f"{share:.2f}" for share in shares)]])


def index_sizes() -> str:
    """What an index takes, and what that of Wikipedia would, by extrapolation."""
    table = pd.read_csv(REFERENCE / "index_memory.csv")
    rows = [_index_row(row) for row in table.to_dict("records")]
    wikipedia = {
        "passages": WIKIPEDIA_PASSAGES,
        "passages_per_second": table["passages_per_second"].iloc[-1],
    }
    for column in ("peak_mib", "disk_mib"):
        line = np.polyfit(table["passages"].tail(2), table[column].tail(2), deg=1)
        wikipedia[column] = np.polyval(line, WIKIPEDIA_PASSAGES)
    rows.append(_index_row(wikipedia))
    header = ["passages", "per second", "minutes", "peak memory, GiB", "disk, GiB"]
    return markdown(header, rows)


def _index_row(row: dict) -> list[str]:
    minutes = row["passages"] / row["passages_per_second"] / 60
    return [
        f"{row['passages']:,}",
        f"{row['passages_per_second']:,.0f}",
        f"{minutes:.1f}",
        f"{row['peak_mib'] / 1024:.1f}",
        f"{row['disk_mib'] / 1024:.1f}",
    ]


def bm25_engines() -> str:
    """BM25 engines side by side."""
    names = {
        "bm25s_one_by_one": "bm25s, one call per query",
        "bm25s_plain": "bm25s, in batches",
        "ours": "ours",
        "tantivy": "tantivy",
    }
    rows = []
    for row in pd.read_csv(REFERENCE / "bench_retrieval.csv").to_dict("records"):
        speeds = [f"{row[f'queries_per_second_{n}']:,.0f}" for n in (1, 64, 512)]
        rows.append(
            [
                names[row["way"]],
                f"{row['passages_per_second']:,.0f}",
                f"{row['peak_mib']:,.0f}",
                f"{row['disk_mib']:,.0f}",
                *speeds,
                f"{row['top10_agreement']:.2f}",
            ]
        )
    header = [
        "",
        "passages per second",
        "peak memory, MiB",
        "disk, MiB",
        "queries per second, 1 at a time",
        "64",
        "512",
        "agreement",
    ]
    return markdown(header, rows)


def served_index() -> str:
    """An index in process and over HTTP, beside bm25s."""
    names = {
        "bm25s": "bm25s, in process",
        "in_process": "ours, in process",
        "served_1": "ours, served, 1 client",
        "served_8": "8 clients",
        "served_64": "64 clients",
    }
    table = pd.read_csv(REFERENCE / "bench_serving.csv").set_index("way")
    rows = []
    for way, name in names.items():
        row = table.loc[way]
        speeds = [f"{row[f'queries_per_second_{size}']:,.0f}" for size in (1, 64)]
        times = [f"{row[f'milliseconds_{percent}']:.1f}" for percent in (50, 99)]
        rows.append([name, *speeds, *times])
    header = [
        f"an index of {table['passages'].iloc[0]:,} passages",
        "queries per second, 1 per request",
        "64 a request",
        "milliseconds for 1: median",
        "99th percentile",
    ]
    return markdown(header, rows)


def served_index_memory() -> str:
    """Two trainings at once, with indexes of their own and with a served one."""
    names = {"trainings": "an index each", "trainings_served": "one served index"}
    table = pd.read_csv(REFERENCE / "bench_serving.csv").set_index("way")
    rows = []
    for way, name in names.items():
        row = table.loc[way]
        rows.append([name, f"{row['memory_mib']:,.0f}", f"{row['disk_mib']:,.0f}"])
    return markdown(["two trainings at once", "memory, MiB", "disk, MiB"], rows)


# --- the tables: mined questions ---


def mining_counts() -> str:
    """Questions mined from the passages of 2WikiMultihopQA, by type and kind.

    Chains are summed over the fact that they end in.
    """
    table = pd.read_csv(REFERENCE / "mining_counts.csv")
    is_chain = table["type"] == "compositional"
    table.loc[is_chain, "kind"] = table["kind"].str.split().str[0] + " → …"
    columns = ["before", "after", "found", "train", "dev"]
    grouped = table.groupby(["type", "kind"])[columns].sum()
    rows = [_count_row(f"**{kind}**", part) for kind, part in _by_type(grouped)]
    for kind, row in grouped.iterrows():
        if kind[0] != "single":
            rows.append([" ".join(kind).replace("_", " "), *map(str, row)])
    rows.append(_count_row("**all**", grouped))
    header = [
        "questions",
        "from all passages",
        "without the titles of the 345",
        "whose evidence is found",
        "train",
        "dev",
    ]
    return markdown(header, rows)


def _by_type(grouped: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for kind, part in grouped.groupby(level="type"):
        yield kind.replace("_", " "), part


def _count_row(label: str, part: pd.DataFrame) -> list[str]:
    return [label, *(f"{count:,}" for count in part.sum())]


def mining_verdicts() -> str:
    """How many of the mined questions that were read are right."""
    table = pd.read_csv(REFERENCE / "mining_verdicts.csv")
    table["is_right"] = table["verdict"] == "right"
    rows = [
        [kind.replace("_", " "), *_right_of(part)]
        for kind, part in table.groupby("type", sort=False)
    ]
    rows.append(["all", *_right_of(table)])
    return markdown(["read against their passages", "questions", "right", ""], rows)


def _right_of(part: pd.DataFrame) -> list[str]:
    return [
        str(len(part)),
        str(part["is_right"].sum()),
        f"{part['is_right'].mean():.3f}",
    ]


# --- the tables: speed, memory, robustness ---


def agent_loop() -> str:
    """Ways to run the loop: their speed, and how much they compute."""
    table = pd.read_csv(REFERENCE / "bench_agent.csv")
    rows = []
    for profile, part in table.groupby("profile", sort=False):
        speeds = part["questions_per_second"]
        slowest = speeds.iloc[0]
        label = f"`{profile}`, {part['questions'].iloc[0]} questions"
        per_second = [f"{s:.2f} ({s / slowest:.1f} ×)" for s in speeds]
        computed = [f"{ratio:.2f} ×" for ratio in part["floor_ratio"]]
        rows.append([f"{label}: questions per second", *per_second])
        rows.append([f"{label}: tokens computed, times the floor", *computed])
    ways = ["one at a time", "batched", "TRL's tool loop", "vLLM (CPU build)"]
    return markdown(["", *ways], rows)


def asking() -> str:
    """Seconds of `kr1 ask`: to its first answer, and to each next one."""
    labels = {
        "first": "from the command to the first answer",
        "next": "to each next answer",
    }
    processors = {
        "with AVX-512": "bench_ask.csv",
        "without it, and slower": "bench_ask_without_avx512.csv",
    }
    rows = []
    for processor, file in processors.items():
        for row in pd.read_csv(REFERENCE / file).to_dict("records"):
            rows.append(
                [
                    processor,
                    f"`{row['profile']}`, {labels[row['answer']]}",
                    str(row["measured"]),
                    f"{row['seconds']:.2f}",
                    f"{row['slowest']:.2f}",
                    f"{row['cpu_seconds']:.2f}",
                ]
            )
    header = ["processor", "", "answers", "median, seconds", "slowest"]
    header += ["seconds of CPU"]
    return markdown(header, rows)


def busy_machine() -> str:
    """A training step on a quiet machine and beside a busy process."""
    table = pd.read_csv(REFERENCE / "bench_busy.csv")
    first = table["seconds"].iloc[0]
    rows = []
    for spinning, part in table.groupby("spinning", sort=False):
        cells = [f"{s:.1f} s ({s / first:.2f} ×)" for s in part["seconds"]]
        rows.append([spinning, *cells])
    return markdown(["GOMP_SPINCOUNT", "nothing else runs", "one process busy"], rows)


def micro_batches() -> str:
    """A batch in one pass beside parts of it: time and memory."""
    table = pd.read_csv(REFERENCE / "bench_training.csv")
    both = table.pivot(
        index=["lengths", "mean_tokens"], columns="way", values=["seconds", "peak_mib"]
    )
    rows = []
    for (lengths, tokens), row in both.iterrows():
        seconds = row["seconds"]
        memory = row["peak_mib"]
        rows.append(
            [
                f"{lengths}, {tokens} tokens on average",
                f"{seconds['trl']:.2f}",
                f"{seconds['parts']:.2f}",
                f"{seconds['parts'] / seconds['trl']:.2f}",
                f"{memory['trl']:,.0f}",
                f"{memory['parts']:,.0f}",
            ]
        )
    header = [
        "lengths of 64 responses",
        "one pass, seconds",
        "parts, seconds",
        "ratio",
        "one pass, MiB",
        "parts, MiB",
    ]
    return markdown(header, rows)


def gpu_memory() -> str:
    """Simulated GPU memory of 7B runs over the length of a response."""
    rows = []
    for row in pd.read_csv(REFERENCE / "forecasts.csv").to_dict("records"):
        samples_here = not np.isnan(row["sampling_gib"])
        rows.append(
            [
                row["run"],
                f"{row['gpu_gib']}",
                f"{row['response_tokens']:,}",
                f"{row['training_gib']:.1f}",
                f"{row['sampling_gib']:.1f}" if samples_here else "–",
            ]
        )
    header = ["run", "GPU, GiB", "response tokens", "a step, GiB", "sampling, GiB"]
    return markdown(header, rows)


def gpu_memory_measured() -> str:
    """GPU memory and time of training steps, measured, beside the forecast."""
    rows = []
    for row in pd.read_csv(REFERENCE / "bench_gpu.csv").to_dict("records"):
        way = row["log_probabilities"]
        rows.append(
            [
                GPU_TASKS[row["what"]],
                row["model"].removeprefix("Qwen/").removesuffix("-Instruct"),
                f"{row['rows']} × {row['tokens']:,}",
                "–" if pd.isna(way) else way,
                f"{row['measured_gib']:.1f}",
                f"{row['simulated_gib']:.1f}",
                f"{row['measured_gib'] / row['simulated_gib']:.2f}",
                f"{row['seconds']:.2f}",
            ]
        )
    header = [
        "what",
        "shape of",
        "rows × tokens",
        "log-probabilities",
        "measured, GiB",
        "simulated, GiB",
        "ratio",
        "seconds",
    ]
    return markdown(header, rows)


def kills() -> str:
    """Runs that were killed at random moments, and how many ended as others do."""
    table = pd.read_csv(REFERENCE / "kills.csv")
    rows = [
        [row["place"], str(row["kills"]), str(row["resumed"]), str(row["equal"])]
        for row in table.to_dict("records")
    ]
    totals = [str(table[column].sum()) for column in ("kills", "resumed", "equal")]
    rows.append(["all", *totals])
    return markdown(["killed during", "times", "went on", "ended equal"], rows)


# --- all of them ---


TABLES: dict[str, Callable[[], str]] = {
    "tiny, exact match": tiny_exact_match,
    "tiny, costs": tiny_costs,
    "tiny, before GRPO": tiny_before_grpo,
    "tiny, last seed": tiny_last_seed,
    "tiny, rewards": tiny_rewards,
    "tiny, decisions": tiny_decisions,
    "tiny, comparisons": tiny_comparisons,
    "tiny, machines": tiny_machines,
    "tiny, ladder": tiny_ladder,
    "tiny, habits": tiny_habits,
    "SmolLM2, stages": smol_stages,
    "SmolLM2, ladder": smol_ladder,
    "half, stages": half_stages,
    "real text": real_text,
    "outcomes": outcomes,
    "recall": recall,
    "mined questions": mining_counts,
    "mined questions, read": mining_verdicts,
    "index sizes": index_sizes,
    "BM25 engines": bm25_engines,
    "served index": served_index,
    "served index, memory": served_index_memory,
    "agent loop": agent_loop,
    "asking": asking,
    "busy machine": busy_machine,
    "micro-batches": micro_batches,
    "GPU memory": gpu_memory,
    "GPU memory, measured": gpu_memory_measured,
    "kills": kills,
}

# What README.md has too.
README_TABLES = ("tiny, exact match", "real text")


def write_tables(readme: Path, reference_readme: Path) -> None:
    """Put the README's tables into one file, and all tables into another.

    Raises:
        ValueError: if markers are missing.
        OSError: if a file cannot be read or written.
    """
    made = {name: make() for name, make in TABLES.items()}
    for name in README_TABLES:
        write_between_markers(readme, name, made[name])
    for name, table in made.items():
        write_between_markers(reference_readme, name, table)


def main() -> None:
    """Write the tables of README.md and data/reference/README.md anew."""
    write_tables(REPO / "README.md", REFERENCE / "README.md")


if __name__ == "__main__":
    main()
