"""Owns the measurement of serving: one index, searched in process and over HTTP.

Clients are threads of this process, the server is a process of its own. So are the
trainings whose memory is measured:
`python -m kr1_utils.bench.serving FOLDER PASSAGES URL STEPS`.
"""

import contextlib
import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd

from kr1_utils.bench import busy, made_up
from kr1_utils.bench.bm25_engines import PASSAGES_PER_QUERY, Search, bm25s_plain
from kr1_utils.bench.machine import machine_name
from kr1_utils.bench.retrieval import MIB, make_queries, summed_mib, write_corpus
from kr1_utils.corpus import read_passages
from kr1_utils.extras import missing
from kr1_utils.files import shipped
from kr1_utils.retriever.client import RemoteRetriever
from kr1_utils.retriever.opening import open_retriever
from kr1_utils.retriever.search import Retriever

CLIENTS = (1, 8, 64)

# Queries of one request -> how many requests a round sends.
REQUESTS = {1: 512, 64: 16}

# How often each way is measured, in turn with the others; the best round counts.
ROUNDS = 3

# Of each training whose memory is measured.
STEPS = 3
TRAININGS = 2

# At the memory of processes.
SECONDS_BETWEEN_LOOKS = 0.2


def measure(arguments) -> pd.DataFrame:
    """The table of `kr1 bench serving`, see `measure_serving`."""
    return measure_serving(arguments.passages)


def measure_serving(count: int, rounds: int = ROUNDS) -> pd.DataFrame:
    """Speed of searching in ways, and memory of two trainings.

    Args:
        count: how many passages: miniwiki's, and made-up ones beside them.
        rounds: of each way.

    Returns:
        one row per way: `passages`, `way`, `queries_per_second_…` for each size of a
        request, `milliseconds_50` and `milliseconds_99` of a request of one query
        (percentiles), `memory_mib` and `disk_mib` of two trainings with all that they
        search, `machine`.

    Raises:
        ValueError: for no passages.
        ImportError: if a library of the extra [bench] is missing.
        RuntimeError: if the server or a training fails.
    """
    if count < 1:
        raise ValueError(f"--passages must be at least 1, not {count}.")
    for library in ("psutil", "trl", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise ImportError(missing("bench").sentence)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "passages.jsonl"
        world = read_passages(shipped("data/miniwiki/passages.jsonl"))
        passages = chain(world, made_up.passages(count))
        write_corpus(islice(passages, count), corpus)
        Retriever.build(corpus, folder / "index")
        rows = [
            *measure_speeds(corpus, folder, rounds),
            *measure_memory(corpus, folder),
        ]
    table = pd.DataFrame(rows).assign(machine=machine_name())
    table.insert(0, "passages", count)
    return table


# --- speed ---


def measure_speeds(corpus: Path, folder: Path, rounds: int) -> list[dict]:
    """One row for each way of searching the index in `folder`."""
    queries = make_queries(corpus)
    ours = Retriever.open(folder / "index")
    with served(folder / "index") as (url, _):
        remote = RemoteRetriever(url)
        # Way -> how it searches, and how many clients do so at once.
        ways: dict[str, tuple[Search, int]] = {
            "bm25s": (bm25s_plain(corpus, folder / "bm25s"), 1),
            "in_process": (lambda texts: ours.search(texts, PASSAGES_PER_QUERY), 1),
        }
        for clients in CLIENTS:
            search = functools.partial(remote.search, k=PASSAGES_PER_QUERY)
            ways[f"served_{clients}"] = (search, clients)
        found: dict[str, list[dict]] = {way: [] for way in ways}
        # The first round compiles, and reads the index from the disk.
        for number in range(1 + rounds):
            for way, (search, clients) in ways.items():
                row = measure_round(search, queries, clients)
                if number:
                    found[way].append(row)
    return [{"way": way, **best(measured)} for way, measured in found.items()]


def measure_round(search: Search, queries: list[str], clients: int) -> dict:
    """Speeds and times of one round."""
    row = {}
    for size, count in REQUESTS.items():
        seconds, times = send(search, requests(queries, size, count), clients)
        row[f"queries_per_second_{size}"] = size * len(times) / seconds
        if size == 1:
            for percent in (50, 99):
                row[f"milliseconds_{percent}"] = 1000 * np.percentile(times, percent)
    return row


def requests(queries: list[str], size: int, count: int) -> list[list[str]]:
    """`count` requests of `size` queries each; after the last query comes the first."""
    return [
        [queries[(number * size + i) % len(queries)] for i in range(size)]
        for number in range(count)
    ]


def send(
    search: Search, batches: list[list[str]], clients: int
) -> tuple[float, list[float]]:
    """Search all batches, with `clients` at work at once.

    Returns:
        seconds that it took in all; those of each batch.
    """

    def search_timed(batch: list[str]) -> float:
        begin = time.perf_counter()
        search(batch)
        return time.perf_counter() - begin

    start = time.perf_counter()
    if clients == 1:
        times = [search_timed(batch) for batch in batches]
    else:
        with ThreadPoolExecutor(clients) as pool:
            times = list(pool.map(search_timed, batches))
    return time.perf_counter() - start, times


def best(rounds: list[dict]) -> dict:
    """The highest speeds and the shortest times of all rounds."""
    table = pd.DataFrame(rounds)
    speeds = [column for column in table if column.startswith("queries_per_second")]
    return {c: table[c].max() if c in speeds else table[c].min() for c in table}


@contextlib.contextmanager
def served(index: Path) -> Iterator[tuple[str, int]]:
    """Within it, `kr1 serve` serves this index: its URL, and the id of its process."""
    command = [sys.executable, "-m", "kr1_utils", "serve", "--index", str(index)]
    server = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        # "… passages at http://…/retrieve (…)"
        said = server.stdout.readline().split()
        if not said:
            raise RuntimeError(f"The server ended with status {server.wait()}.")
        yield said[said.index("at") + 1], server.pid
    finally:
        server.kill()
        server.wait()


# --- memory ---


def measure_memory(corpus: Path, folder: Path) -> list[dict]:
    """Two trainings, each with an index of its own as runs have, and with a served
    one."""
    size = sum(file.stat().st_size for file in (folder / "index").iterdir()) / MIB
    own = [folder / f"own_{number}" for number in range(TRAININGS)]
    for out in own:
        shutil.copytree(folder / "index", out / "index")
    rows = [
        {
            "way": "trainings",
            "memory_mib": peak_of_trainings(own, corpus, "", []),
            "disk_mib": TRAININGS * size,
        }
    ]
    without = [folder / f"served_{number}" for number in range(TRAININGS)]
    with served(folder / "index") as (url, server):
        peak = peak_of_trainings(without, corpus, url, [server])
    rows.append({"way": "trainings_served", "memory_mib": peak, "disk_mib": size})
    return rows


def peak_of_trainings(
    folders: list[Path], corpus: Path, url: str, others: list[int]
) -> float:
    """The most memory of trainings that run at once, one in each folder, in MiB.

    Args:
        url: of a served index; "" has each use the one in its folder.
        others: ids of processes whose memory is added.
    """
    trainings = []
    for folder in folders:
        command = [sys.executable, "-m", "kr1_utils.bench.serving", str(folder)]
        command += [str(corpus), url, str(STEPS)]
        trainings.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    peak = 0.0
    try:
        while any(training.poll() is None for training in trainings):
            watched = [training.pid for training in trainings] + others
            peak = max(peak, sum(map(proportional_mib, watched)))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        for training in trainings:
            training.kill()
    statuses = [training.wait() for training in trainings]
    if any(statuses):
        raise RuntimeError(f"Trainings ended with statuses {statuses}.")
    return peak


def proportional_mib(process_id: int) -> float:
    """Memory of a process and its children; of a page that n processes hold, each has
    an n-th (Linux's "Pss")."""
    return summed_mib(process_id, "smaps_rollup", "\nPss:")


def main(words: list[str]) -> None:
    """Train `tiny` for a few steps in this process."""
    folder, corpus, url, steps = words
    retriever = open_retriever(url, corpus, Path(folder) / "index")
    busy.train(Path(folder), int(steps), retriever)


if __name__ == "__main__":
    main(sys.argv[1:])
