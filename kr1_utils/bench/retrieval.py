"""Owns the measurement of BM25 engines: building an index, and searching it."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import bm25s
import numpy as np
import psutil
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from kr1_utils.bench.made_up import passages
from kr1_utils.corpus import read_passages
from kr1_utils.retriever.manifest import BM25
from kr1_utils.retriever.search import Retriever

K, BATCHES, QUERIES = 10, (1, 64, 512), 512


def questions(file: Path) -> list[str]:
    """Some words of a passage, as many as a question has beside those of the stop
    list."""
    random = np.random.default_rng(1)
    texts = [
        text
        for p in islice(read_passages(file), 20_000)
        if len(
            text := [
                w for w in p["text"].split() if w.strip(",").lower() not in STOPWORDS_EN
            ]
        )
        > 6
    ]
    return [
        " ".join(random.choice(texts[i], 6))
        for i in random.choice(len(texts), QUERIES, replace=len(texts) < QUERIES)
    ]


def ours(file: Path, folder: Path):
    found = Retriever.build(file, folder)
    return lambda queries: found.search(queries, K)


def bm25s_plain(file: Path, folder: Path, backend: str = "numba"):
    corpus, stemmer = list(read_passages(file)), Stemmer.Stemmer("english")
    index, texts = (
        bm25s.BM25(**BM25, backend=backend),
        [f"{p['title']} {p['text']}" for p in corpus],
    )
    tokens = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
    index.index(tokens, show_progress=False)
    index.save(folder, corpus=corpus)
    threads = len(os.sched_getaffinity(0))

    def search(queries):
        asked = bm25s.tokenize(
            queries,
            stopwords="en",
            stemmer=stemmer,
            return_ids=False,
            show_progress=False,
        )
        return index.retrieve(
            asked,
            corpus,
            K,
            n_threads=threads if len(asked) > 1 else 0,
            show_progress=False,
            return_as="documents",
        )

    return search


def bm25s_one_by_one(file: Path, folder: Path):
    """As the original called it: plain NumPy, one call a query, whatever the batch."""
    search = bm25s_plain(file, folder, "numpy")
    return lambda queries: [
        search([q])[0] for q in queries[:32]
    ]  # it takes too long for more


def tantivy(file: Path, folder: Path):
    import tantivy

    schema = (
        tantivy.SchemaBuilder()
        .add_text_field("id", stored=True, tokenizer_name="raw")
        .add_text_field("text", stored=True, tokenizer_name="en_stem")
        .build()
    )
    folder.mkdir()
    index = tantivy.Index(schema, str(folder))
    writer = index.writer(
        heap_size=512 * 2**20, num_threads=len(os.sched_getaffinity(0))
    )
    for p in read_passages(file):
        writer.add_document(
            tantivy.Document(id=p["id"], text=f"{p['title']} {p['text']}")
        )
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher, threads = (
        index.searcher(),
        ThreadPoolExecutor(len(os.sched_getaffinity(0))),
    )

    def one(query: str) -> list[dict]:
        found = searcher.search(index.parse_query(query, ["text"]), K).hits
        return [
            {"id": (passage := searcher.doc(at))["id"][0], "text": passage["text"][0]}
            for _, at in found
        ]

    return lambda queries: (
        list(threads.map(one, queries)) if len(queries) > 1 else [one(queries[0])]
    )


ENGINES = {f.__name__: f for f in (bm25s_one_by_one, bm25s_plain, ours, tantivy)}


def measure(engine: str, file: Path, folder: Path, count: int) -> dict:
    """One engine, in this process."""
    asked, start = questions(file), time.perf_counter()
    search = ENGINES[engine](file, folder)
    result = {
        "passages_per_second": count / (time.perf_counter() - start),
        "queries_per_second": {},
    }
    search(asked[:8]), search(asked[:1])  # what compiles, compiles now
    for size in BATCHES:
        start, answered, top = time.perf_counter(), 0, []
        while answered < QUERIES and (
            answered == 0 or time.perf_counter() - start < 10
        ):
            found = search(asked[answered : answered + size])
            answered += len(found)
            top += [[int(p["id"]) for p in passages] for passages in found]
        result["queries_per_second"][str(size)] = answered / (
            time.perf_counter() - start
        )
    return result | {
        "top": top,
        "disk_mib": sum(f.stat().st_size for f in folder.rglob("*")) / 2**20,
    }


def anonymous_mib(process: psutil.Process) -> float:
    """Memory that is no file's, of a process and its children: index pages that are
    shared do not count."""
    total = 0.0
    for p in [process, *process.children(recursive=True)]:
        try:
            status = Path(f"/proc/{p.pid}/status").read_text()
            total += int(status.split("RssAnon:")[1].split()[0]) / 1024
        except (OSError, IndexError):  # it has just ended
            pass
    return total


def apart(engine: str, file: Path, count: int) -> dict:
    """One engine in a process of its own, with its peak memory."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        command = [
            sys.executable,
            __file__,
            engine,
            str(file),
            str(Path(folder, "index")),
            str(count),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak, watched = [0.0], psutil.Process(process.pid)

        def watch():
            while process.poll() is None:
                try:
                    peak[0] = max(peak[0], anonymous_mib(watched))
                except psutil.NoSuchProcess:
                    return
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        said = process.communicate()[0]
        watcher.join()
        if process.returncode:
            raise RuntimeError(f"{engine} ended with status {process.returncode}.")
        return json.loads(said.splitlines()[-1]) | {"peak_mib": peak[0]}


def main(args) -> tuple[dict, dict]:
    """What was run, and what came out, for the command line of kr1_utils.bench."""
    return retrieval(args.passages, args.corpus)


def retrieval(count: int, file: Path | None = None) -> tuple[dict, dict]:
    """How many passages, and {engine: what was measured}: of made-up ones, or the first
    of a file's."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "passages.jsonl")
        with corpus.open("w") as out:
            made = islice(read_passages(file), count) if file else passages(count)
            written = sum(
                bool(out.write(json.dumps({**p, "id": str(n)}) + "\n"))
                for n, p in enumerate(made)
            )
        engines = {name: apart(name, corpus, written) for name in ENGINES}
    best = engines["bm25s_plain"]["top"]
    for row in engines.values():
        same = [
            len({*ours} & {*theirs}) / max(len(theirs), 1)
            for ours, theirs in zip(row.pop("top"), best)
        ]
        row["top10_agreement"] = float(np.mean(same))
    return {"passages": written}, engines
