"""Owns the BM25 engines that are measured: each indexes a file, and searches it.

Each is a function of a file of passages and a folder for its index. It returns a
function that takes queries and returns the passages found for each.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import Stemmer

from kr1_utils.corpus import read_passages
from kr1_utils.extras import missing
from kr1_utils.retriever.manifest import BM25
from kr1_utils.retriever.search import Retriever

PASSAGES_PER_QUERY = 10

# Queries of one call that bm25s_one_by_one answers: all would take too long.
ONE_BY_ONE_QUERIES = 32

TANTIVY_HEAP = 512 * 2**20

Search = Callable[[list[str]], list[list[dict]]]


def ours(file: Path, folder: Path) -> Search:
    """The kit's own."""
    retriever = Retriever.build(file, folder)
    return lambda queries: retriever.search(queries, PASSAGES_PER_QUERY)


def bm25s_plain(file: Path, folder: Path, backend: str = "numba") -> Search:
    """bm25s, a batch of queries in one call (https://github.com/xhluca/bm25s)."""
    corpus = list(read_passages(file))
    stemmer = Stemmer.Stemmer("english")
    texts = [f"{p['title']} {p['text']}" for p in corpus]
    tokens = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
    index = bm25s.BM25(**BM25, backend=backend)
    index.index(tokens, show_progress=False)
    index.save(folder, corpus=corpus)
    threads = _cores()

    def search(queries: list[str]) -> list[list[dict]]:
        words = bm25s.tokenize(
            queries,
            stopwords="en",
            stemmer=stemmer,
            return_ids=False,
            show_progress=False,
        )
        return index.retrieve(
            words,
            corpus,
            PASSAGES_PER_QUERY,
            n_threads=threads if len(queries) > 1 else 0,
            show_progress=False,
            return_as="documents",
        )

    return search


def bm25s_one_by_one(file: Path, folder: Path) -> Search:
    """As the original called bm25s: in NumPy, one call per query, whatever the batch.

    It answers the first 32 queries of a batch.
    """
    search = bm25s_plain(file, folder, "numpy")
    return lambda queries: [
        search([query])[0] for query in queries[:ONE_BY_ONE_QUERIES]
    ]


def tantivy(file: Path, folder: Path) -> Search:
    """A search engine in Rust (https://github.com/quickwit-oss/tantivy); the constants
    of its BM25 are fixed."""
    # Not at the top, so that the other engines do not hold it while they are measured.
    try:
        import tantivy
    except ImportError:
        tantivy = missing("bench")
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw")
    builder.add_text_field("text", stored=True, tokenizer_name="en_stem")
    folder.mkdir()
    index = tantivy.Index(builder.build(), str(folder))
    writer = index.writer(heap_size=TANTIVY_HEAP, num_threads=_cores())
    for passage in read_passages(file):
        text = f"{passage['title']} {passage['text']}"
        writer.add_document(tantivy.Document(id=passage["id"], text=text))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()
    threads = ThreadPoolExecutor(_cores())

    def search_one(query: str) -> list[dict]:
        parsed = index.parse_query(query, ["text"])
        documents = [
            searcher.doc(address)
            for _, address in searcher.search(parsed, PASSAGES_PER_QUERY).hits
        ]
        return [{"id": d["id"][0], "text": d["text"][0]} for d in documents]

    def search(queries: list[str]) -> list[list[dict]]:
        if len(queries) == 1:
            return [search_one(queries[0])]
        return list(threads.map(search_one, queries))

    return search


def _cores() -> int:
    return len(os.sched_getaffinity(0))


ENGINES = {
    "bm25s_one_by_one": bm25s_one_by_one,
    "bm25s_plain": bm25s_plain,
    "ours": ours,
    "tantivy": tantivy,
}
