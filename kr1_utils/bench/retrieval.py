"""Owns the measurement of BM25 engines: building an index, and searching it.

Each engine runs in a process of its own, one after the other, and its memory is watched
from outside: `python -m kr1_utils.bench.retrieval ENGINE FILE FOLDER COUNT`.
`python -m kr1_utils.bench.retrieval index N …` prints the rows of index_memory.csv.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from kr1_utils.bench import made_up
from kr1_utils.bench.bm25_engines import ENGINES, Search
from kr1_utils.bench.machine import machine_name
from kr1_utils.corpus import read_passages
from kr1_utils.extras import missing

try:
    import psutil
except ImportError:
    psutil = missing("bench")

QUERIES = 512
BATCH_SIZES = (1, 64, 512)

# A batch size is measured for at most this long, and for one batch at least.
SECONDS_PER_BATCH_SIZE = 10

WORDS_PER_QUERY = 6

# Queries are words of passages among these first ones.
PASSAGES_TO_ASK_ABOUT = 20_000

# The engine that the others' results are compared with.
STANDARD = "bm25s_plain"

# At the memory of an engine's process.
SECONDS_BETWEEN_LOOKS = 0.05

MIB = 2**20
INDEX_COLUMNS = ("passages", "passages_per_second", "peak_mib", "disk_mib")


def measure(arguments):
    """The table of `kr1 bench retrieval`, see `measure_engines`."""
    return measure_engines(arguments.passages, arguments.corpus)


def measure_engines(count: int, file: Path | None = None):
    """Every engine on the same passages and queries.

    Args:
        count: how many passages at most.
        file: takes them from this file; None makes them up.

    Returns:
        a DataFrame, one row per engine: `passages`, `way`, `passages_per_second`
        (indexed), `disk_mib`, `peak_mib` (of memory), `top10_agreement` with bm25s,
        `queries_per_second_…` for each batch size, `machine`.

    Raises:
        ValueError: for no passages.
        ImportError: if a library of the extra [bench] is missing.
        RuntimeError: if an engine's process fails.
    """
    # Not at the top: it would be counted as every engine's memory.
    import pandas as pd

    if count < 1:
        raise ValueError(f"--passages must be at least 1, not {count}.")
    check_libraries()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "passages.jsonl")
        passages = read_passages(file) if file else made_up.passages(count)
        written = write_corpus(islice(passages, count), corpus)
        measured = {way: run_apart(way, corpus, written) for way in ENGINES}
    standard = measured[STANDARD]["top"]
    rows = []
    for way, result in measured.items():
        row = {
            "passages": written,
            "way": way,
            "passages_per_second": result["passages_per_second"],
            "disk_mib": result["disk_mib"],
            "peak_mib": result["peak_mib"],
            "top10_agreement": agreement(result["top"], standard),
        }
        for size, speed in result["queries_per_second"].items():
            row[f"queries_per_second_{size}"] = speed
        rows.append(row)
    return pd.DataFrame(rows).assign(machine=machine_name())


def check_libraries() -> None:
    """Refuse before the first engine what would stop at the last one."""
    for library in ("psutil", "tantivy"):
        if importlib.util.find_spec(library) is None:
            raise ImportError(missing("bench").sentence)


def index_memory(counts: list[int]) -> Iterator[dict]:
    """What our index of made-up passages takes, one row for each number of them."""
    check_libraries()
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder, "passages.jsonl")
            write_corpus(made_up.passages(count), corpus)
            yield {"passages": count, **run_apart("ours", corpus, count)}


def write_corpus(passages: Iterable[dict], file: Path) -> int:
    """Write passages with ids from "0"; returns how many."""
    count = 0
    with file.open("w") as out:
        for passage in passages:
            out.write(json.dumps({**passage, "id": str(count)}) + "\n")
            count += 1
    return count


def agreement(found: list[list[int]], standard: list[list[int]]) -> float:
    """The mean share of the standard's passages that were found too, over the queries
    that both answered."""
    shares = []
    for theirs, best in zip(found, standard):
        shares.append(len(set(theirs) & set(best)) / max(len(best), 1))
    return float(np.mean(shares))


def run_apart(engine: str, file: Path, count: int) -> dict:
    """`measure_engine` in a process of its own, with its `peak_mib`."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        index = Path(folder, "index")
        said = Path(folder, "measured.json")
        command = [sys.executable, "-m", "kr1_utils.bench.retrieval", engine]
        command += [str(file), str(index), str(count)]
        peak = 0.0
        with said.open("w") as out, subprocess.Popen(command, stdout=out) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_mib(process.pid))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            raise RuntimeError(f"{engine} ended with status {process.returncode}.")
        result = json.loads(said.read_text().splitlines()[-1])
    return result | {"peak_mib": peak}


def anonymous_mib(process_id: int) -> float:
    """Memory that is no file's, of a process and its children: pages of an index that
    processes share do not count."""
    return summed_mib(process_id, "status", "RssAnon:")


def summed_mib(process_id: int, file: str, mark: str) -> float:
    """What a file in /proc says after `mark`, in MiB, of a process and its children."""
    try:
        process = psutil.Process(process_id)
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0.0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/{file}").read_text()
            total += int(text.split(mark)[1].split()[0]) / 1024
        except (OSError, IndexError):
            # It has just ended.
            continue
    return total


def measure_engine(engine: str, file: Path, folder: Path, count: int) -> dict:
    """One engine, in this process.

    Args:
        file: `count` passages.
        folder: for the index; it must not exist yet.

    Returns:
        `passages_per_second`, `disk_mib`, `queries_per_second` by batch size, and
        `top`: the ids found for each query.
    """
    queries = make_queries(file)
    start = time.perf_counter()
    search = ENGINES[engine](file, folder)
    seconds = time.perf_counter() - start
    # What compiles at its first call compiles now.
    search(queries[:8])
    search(queries[:1])
    speeds = {}
    top = []
    for size in BATCH_SIZES:
        speeds[str(size)], top = measure_search(search, queries, size)
    return {
        "passages_per_second": count / seconds,
        "queries_per_second": speeds,
        "top": top,
        "disk_mib": sum(f.stat().st_size for f in folder.rglob("*")) / MIB,
    }


def measure_search(
    search: Search, queries: list[str], size: int
) -> tuple[float, list[list[int]]]:
    """Queries per second in batches of `size`, and the ids found for each query."""
    top: list[list[int]] = []
    start = time.perf_counter()
    while len(top) < len(queries):
        found = search(queries[len(top) : len(top) + size])
        for passages in found:
            top.append([int(passage["id"]) for passage in passages])
        if time.perf_counter() - start >= SECONDS_PER_BATCH_SIZE:
            break
    return len(top) / (time.perf_counter() - start), top


def make_queries(file: Path) -> list[str]:
    """Queries of some words of one passage each, about as many as a question has."""
    random = np.random.default_rng(1)
    texts = []
    for passage in islice(read_passages(file), PASSAGES_TO_ASK_ABOUT):
        words = [
            word
            for word in passage["text"].split()
            if word.strip(",").lower() not in STOPWORDS_EN
        ]
        if len(words) > WORDS_PER_QUERY:
            texts.append(words)
    numbers = random.choice(len(texts), QUERIES, replace=len(texts) < QUERIES)
    return [" ".join(random.choice(texts[n], WORDS_PER_QUERY)) for n in numbers]


def main(words: list[str]) -> None:
    """Measure one engine and print JSON; or index made-up passages and print CSV."""
    if words[0] == "index":
        print(*INDEX_COLUMNS, sep=",")
        for row in index_memory([int(count) for count in words[1:]]):
            rounded = [round(row[column]) for column in INDEX_COLUMNS]
            print(*rounded, sep=",", flush=True)
        return
    engine, file, folder, count = words
    print(json.dumps(measure_engine(engine, Path(file), Path(folder), int(count))))


if __name__ == "__main__":
    main(sys.argv[1:])
