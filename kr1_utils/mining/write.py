"""Owns `kr1 mine`: from a corpus to a folder of questions, statistics and licence."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kr1_utils import corpus
from kr1_utils.files import display_path, replace_folder, write_jsonl, write_text
from kr1_utils.mining.facts import Facts, find_facts
from kr1_utils.mining.questions import make_questions
from kr1_utils.mining.without import NamedTitles
from kr1_utils.retriever import Retriever

# How many passages the expert reads for each search.
TOP_K = 2

# The share of the titles that only dev may ask about.
DEV_SHARE = 0.08

# With fewer questions than this a corpus is likely to be of another kind.
FEW = 100

_OURS = ("train.jsonl", "dev.jsonl", "statistics.csv", "statistics.json", "LICENCE.md")

LICENCE = """# Where these questions come from

They were made by rule from the passages of `{corpus}`. Names, dates and places in them
are taken from those passages.

If the passages are Wikipedia's, their text is available under the Creative Commons
Attribution-ShareAlike licence (CC BY-SA 4.0; older dumps 3.0;
https://creativecommons.org/licenses/by-sa/4.0/), and so is what was taken from it:
share these files only under that licence, and name Wikipedia and its authors as the
source. `supporting_titles` names the articles behind a question: the history of
https://en.wikipedia.org/wiki/TITLE lists the authors. What was changed: facts were
taken out of the text and put into sentences of our own.

The kinds of questions follow 2WikiMultihopQA (Ho et al., 2020, Apache-2.0). None of its
questions is in these files.
"""


@dataclass(frozen=True)
class Mined:
    """The questions of a corpus, and how many there were on the way."""

    train: list[dict]
    dev: list[dict]
    # One row for each type and kind: before, after, found, train, dev.
    statistics: list[dict]
    passages: int

    @property
    def totals(self) -> dict[str, int]:
        """The sums of the statistics."""
        columns = ("before", "after", "found", "train", "dev")
        return {name: sum(row[name] for row in self.statistics) for name in columns}


def mine(
    source: str | Path,
    out: str | Path,
    without: list[str | Path] = (),
    seed: int = 42,
) -> str:
    """Write questions that are mined from a corpus into the folder `out`.

    Args:
        source: passages in any form that `corpus.read_passages` knows.
        out: gets train.jsonl, dev.jsonl, statistics.csv, statistics.json and
            LICENCE.md, all or none of them.
        without: question sets; whatever names a title that one of them names is left
            out.

    Returns:
        What was written, in a sentence or two.

    Raises:
        ValueError: if `out` is not empty and not an earlier output, if a file is in no
            known form, or if no question could be made.
        OSError: if something cannot be read or written.
    """
    out = Path(out)
    _check_folder(out)
    others = [question for file in without for question in corpus.load_questions(file)]
    passages = corpus.load_passages(source)
    mined = mine_questions(passages, others, seed)
    if not mined.train:
        raise ValueError(_found_little(mined))
    _write(out, mined, Path(source).name, seed)
    totals = mined.totals
    said = (
        f"{totals['before']} questions from {mined.passages} passages;"
        f" {totals['after']} that name nothing of the other questions;"
        f" {totals['found']} whose evidence the searches find:"
        f" {totals['train']} to train on and {totals['dev']} for dev in"
        f" {display_path(out)}"
    )
    return f"{said}\n{_found_little(mined)}" if totals["found"] < FEW else said


def _found_little(mined: Mined) -> str:
    return (
        f"The rules found {mined.totals['found']} questions in {mined.passages}"
        " passages: they read passages in the style of the first paragraphs of English"
        " Wikipedia, about persons and films."
    )


def _check_folder(out: Path) -> None:
    """Refuse to replace anything but an earlier output."""
    if not out.exists():
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        return
    strangers = [f.name for f in out.iterdir() if f.name not in _OURS]
    if strangers:
        raise ValueError(
            f"{display_path(out)} holds {sorted(strangers)[0]}, which is not an output"
            " of kr1 mine: name another folder in --out."
        )


def mine_questions(
    passages: list[dict], others: list[dict] = (), seed: int = 42
) -> Mined:
    """Questions about a corpus that a search can answer.

    Args:
        passages: `{"id", "title", "text"}`.
        others: questions whose titles may not be named.
    """
    facts = find_facts(passages)
    named = NamedTitles(others, (passage["title"] for passage in passages))
    free = set(facts.by_title) - named.titles
    dev_titles = _deal_dev(facts, free, seed)
    before = make_questions(facts, seed=seed)
    after = make_questions(facts, free, dev_titles, seed)
    after = [q for q in after if not named.in_question(q)]
    found = _found(passages, after)
    kept = [q for q in after if q["id"] in found]
    dev = [q for q in kept if not dev_titles.isdisjoint(q["supporting_titles"])]
    in_dev = {q["id"] for q in dev}
    train = [q for q in kept if q["id"] not in in_dev]
    stages = {"before": before, "after": after, "found": kept}
    statistics = _statistics({**stages, "train": train, "dev": dev})
    return Mined(train, dev, statistics, len(passages))


def _deal_dev(facts: Facts, free: set[str], seed: int) -> set[str]:
    """The titles that only dev may ask about; what is linked stays together."""
    leader = {title: title for title in free}

    def find(title: str) -> str:
        while leader[title] != title:
            title = leader[title]
        return title

    for title in sorted(free):
        for fact in facts.by_title[title].values():
            if fact.names in free:
                leader[find(title)] = find(fact.names)
    groups: dict[str, list[str]] = {}
    for title in sorted(free):
        groups.setdefault(find(title), []).append(title)
    # A royal family would fill dev alone.
    largest = max(2, len(free) * DEV_SHARE / 8)
    small = [group for group in groups.values() if len(group) <= largest]
    random.Random(f"dev-{seed}").shuffle(small)
    dev: set[str] = set()
    for group in small:
        if len(dev) >= len(free) * DEV_SHARE:
            break
        dev.update(group)
    return dev


def _found(passages: list[dict], questions: list[dict]) -> set[str]:
    """Ids of the questions for which every search finds a passage with its fact."""
    if not questions:
        return set()
    queries = sorted({query for q in questions for query in q["queries"]})
    results = Retriever.build(passages).search(queries, TOP_K)
    ids = {
        query: {passage["id"] for passage in result}
        for query, result in zip(queries, results, strict=True)
    }
    return {
        q["id"]
        for q in questions
        if all(
            ids[query] & set(passage_ids)
            for query, passage_ids in zip(q["queries"], q["passage_ids"], strict=True)
        )
    }


def _statistics(questions: dict[str, list[dict]]) -> list[dict]:
    """How many questions there are of each type and kind, at each stage."""
    counts = {
        stage: Counter((q["type"], q["kind"]) for q in made)
        for stage, made in questions.items()
    }
    kinds = sorted(set().union(*counts.values()))
    return [
        {"type": type_, "kind": kind}
        | {stage: counted[type_, kind] for stage, counted in counts.items()}
        for type_, kind in kinds
    ]


def _write(out: Path, mined: Mined, source: str, seed: int) -> None:
    part = out.with_name(f".{out.name}.part")
    part.mkdir(exist_ok=True)
    write_jsonl(part / "train.jsonl", mined.train)
    write_jsonl(part / "dev.jsonl", mined.dev)
    columns = list(mined.statistics[0])
    lines = [columns, *([str(row[c]) for c in columns] for row in mined.statistics)]
    text = "".join(",".join(line) + "\n" for line in lines)
    write_text(part / "statistics.csv", text)
    summary = {
        "corpus": source,
        "seed": seed,
        "passages": mined.passages,
        "top_k": TOP_K,
        **mined.totals,
    }
    write_text(part / "statistics.json", json.dumps(summary, indent=1) + "\n")
    write_text(part / "LICENCE.md", LICENCE.format(corpus=source))
    replace_folder(out, part)
