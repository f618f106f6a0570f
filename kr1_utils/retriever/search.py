"""Owns searching: a BM25 index over passages, a thousand or 21 million of them."""

import json
import math
import mmap
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import cpu_count

from kr1_utils.retriever.arrays import ShardArrays, map_arrays, run_starts
from kr1_utils.retriever.build import SHARD, fingerprint, write_index
from kr1_utils.retriever.kernels import best_passages, find_columns
from kr1_utils.retriever.manifest import STEMMER, STOP_WORDS, check_index
from kr1_utils.retriever.tokens import tokenize, word_hashes

# A batch of queries is searched in this many parts, unless they would be smaller.
PARTS = 8
SMALLEST_PART = 32

# The most searches (queries × shards) of a batch that the asking thread does itself:
# waiting for other threads would take longer.
FEW_SEARCHES = 8


class Retriever:
    """A BM25 index over passages `{"id", "title", "text"}`, for many queries at once.

    Tokens and scores are those of bm25s (Lù, 2024, arXiv 2407.03618) with its method
    "lucene", which is "Lucene (accurate)" in Kamphuis et al., 2020, "Which BM25 do you
    mean?". Files are memory-mapped, so several processes share one copy.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict,
        scratch: tempfile.TemporaryDirectory | None = None,
    ) -> None:
        """Open the index whose manifest was checked; see `build` and `open`.

        Args:
            scratch: what holds the index, if it goes when this object goes.
        """
        self._stemmer = manifest["stemmer"]
        self._stop_words = manifest["stop_words"]
        self._scratch = scratch
        self._shards = [Shard.open(folder, entry) for entry in manifest["shards"]]
        sizes = [entry["passages"] for entry in manifest["shards"]]
        # The row of each shard's first passage. A list, because `bisect_right` is slow
        # on arrays.
        self._starts = run_starts(sizes).tolist()
        self._threads = ThreadPoolExecutor(cpu_count())

    def __len__(self) -> int:
        """How many passages there are."""
        return self._starts[-1]

    def __str__(self) -> str:
        return f"{len(self)} passages"

    @classmethod
    def build(
        cls,
        passages: Iterable[dict] | str | os.PathLike,
        folder: str | os.PathLike | None = None,
        stemmer: str = STEMMER,
        stop_words: str = STOP_WORDS,
        shard_size: int = SHARD,
    ) -> "Retriever":
        """Index `passages` in `folder`, whole or not at all, and open the index.

        Args:
            passages, stemmer, stop_words, shard_size: see `build.write_index`.
            folder: None for an index that goes when the returned object goes.

        Raises:
            ValueError: if there are no passages, or none has a word to index, or
                `folder` holds something that is not an index of ours.
            OSError: if the disk has too little room, before anything is written.
        """
        scratch = None
        if folder is None:
            scratch = tempfile.TemporaryDirectory()
            folder = Path(scratch.name, "index")
        folder = Path(folder)
        write_index(passages, folder, stemmer, stop_words, shard_size)
        return cls(folder, check_index(folder, stemmer, stop_words), scratch)

    @classmethod
    def open_or_build(
        cls, passages: list[dict] | str | os.PathLike, folder: str | os.PathLike
    ) -> "Retriever":
        """Open the index in `folder`, or build it there if there is none.

        Args:
            passages: passages, a file or a data set of the hub, as in `build`.

        Raises:
            ValueError: if the index there is not ours, or is over other passages.
        """
        if Path(folder).exists():
            return cls.open(folder, corpus=fingerprint(passages))
        return cls.build(passages, folder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        stemmer: str = STEMMER,
        stop_words: str = STOP_WORDS,
        corpus: str | None = None,
    ) -> "Retriever":
        """Open an index without reading it.

        Args:
            stemmer, stop_words: refuse an index that was built with others.
            corpus: refuse an index over other passages than those with this
                `fingerprint`; None for any.

        Raises:
            FileNotFoundError: if there is no index.
            ValueError: if it is half-written, not ours, or made with other settings.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"No index at {folder}: run 01_build_index first.")
        return cls(folder, check_index(folder, stemmer, stop_words, corpus))

    def search(self, queries: list[str], k: int = 3) -> list[list[dict]]:
        """Find the best passages of each query.

        Args:
            queries: any texts; equal ones are searched once.
            k: how many passages at most, from 0. Those that share no word with the
                query are left out.

        Returns:
            For each query its passages, best first, each with its BM25 `score`.

        Raises:
            ValueError: if k is negative.
        """
        if k < 0:
            raise ValueError(f"k is a number of passages and cannot be {k}.")
        if k == 0:
            return [[] for _ in queries]
        distinct = list(dict.fromkeys(queries))
        stems = tokenize(distinct, self._stemmer, self._stop_words)
        words = [word_hashes(of_query) for of_query in stems]
        found: list[list[dict]] = []
        for shards in self._search_shards(words, k):
            rows, scores = self._merge(shards, k)
            for query_rows, query_scores in zip(rows, scores, strict=True):
                found.append(self._read(query_rows, query_scores))
        by_query = dict(zip(distinct, found, strict=True))
        return [by_query[query] for query in queries]

    def _search_shards(
        self, queries: list[np.ndarray], k: int
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """What `Shard.search` finds in all shards, for one part of the batch after the
        other."""
        parts = [Part.of(part) for part in _cut_into_parts(queries)]
        if len(queries) * len(self._shards) <= FEW_SEARCHES:
            for part in parts:
                yield [shard.search(part, k) for shard in self._shards]
            return
        # Threads search all parts one after the other, and meanwhile this one reads the
        # passages that were found for the parts before.
        started = [
            [self._threads.submit(shard.search, part, k) for shard in self._shards]
            for part in parts
        ]
        for searches in started:
            yield [search.result() for search in searches]

    def _merge(
        self, found: list[tuple[np.ndarray, np.ndarray]], k: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The best of what was found in each shard.

        Args:
            found: `Shard.search`'s rows and scores, in the order of the shards.

        Returns:
            For each query the rows of at most k passages, counted through all shards,
            best first; their scores.
        """
        shard_rows = []
        shard_scores = []
        for start, (rows, scores) in zip(self._starts, found):
            shard_rows.append(rows + start)
            shard_scores.append(scores)
        rows = np.concatenate(shard_rows, axis=1)
        scores = np.concatenate(shard_scores, axis=1)
        # Stable: of equal scores, those of an earlier shard stay in front.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_rows = np.take_along_axis(rows, order, axis=1)
        best_scores = np.take_along_axis(scores, order, axis=1)
        return best_rows.tolist(), best_scores.tolist()

    def _read(self, rows: list[int], scores: list[float]) -> list[dict]:
        """The passages in these rows that share a word with the query."""
        passages = []
        for row, score in zip(rows, scores, strict=True):
            if score > 0:
                number = bisect_right(self._starts, row) - 1
                passage = self._shards[number].read(row - self._starts[number])
                passage["score"] = score
                passages.append(passage)
        return passages


@dataclass(frozen=True)
class Part:
    """The words of a part of a batch.

    Attributes:
        hashes: (M,) uint64, `word_hashes`, one query after the other.
        starts: (Q + 1,) int64, where each query begins among them, and the end.
    """

    hashes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, queries: list[np.ndarray]) -> "Part":
        """The part of these queries, of each its hashes."""
        starts = run_starts([len(query) for query in queries])
        return cls(np.concatenate(queries), starts)


def _cut_into_parts(queries: list[np.ndarray]) -> list[list[np.ndarray]]:
    size = max(SMALLEST_PART, math.ceil(len(queries) / PARTS))
    return [queries[start : start + size] for start in range(0, len(queries), size)]


@dataclass(frozen=True)
class Shard:
    """A part of the passages: their scores and their lines, both memory-mapped."""

    arrays: ShardArrays
    text: mmap.mmap

    @classmethod
    def open(cls, folder: Path, entry: dict) -> "Shard":
        """Map a shard's two files.

        Args:
            entry: what the manifest says of the shard: names of its files, sizes of its
                arrays.
        """
        arrays = map_arrays(
            folder / entry["index"],
            entry["words"],
            entry["passages"],
            entry["postings"],
        )
        with (folder / entry["text"]).open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(arrays, text)

    def search(self, part: Part, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the best passages of this shard.

        Args:
            k: how many passages, from 1; all, where the shard has fewer.

        Returns:
            (Q, k) int64, the passages' rows in this shard, best first; (Q, k) float32,
            their scores, 0 for passages that share no word with the query.
        """
        return best_passages(
            find_columns(part.hashes, self.arrays.words),
            part.starts,
            self.arrays.column_starts,
            self.arrays.rows,
            self.arrays.scores,
            len(self.arrays.offsets) - 1,
            k,
        )

    def read(self, row: int) -> dict:
        """The passage in this row of the shard."""
        start = self.arrays.offsets[row]
        end = self.arrays.offsets[row + 1]
        # Decoded here, because `json.loads` would first look for the bytes' encoding.
        return json.loads(self.text[start:end].decode("utf-8", "surrogatepass"))
