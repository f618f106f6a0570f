"""Owns searching: a BM25 index over passages, a thousand or 21 million of them.

Tokens and scores are those of bm25s (Lù, 2024, https://arxiv.org/abs/2407.03618).
"""

import json
import mmap
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from joblib import Parallel, cpu_count

from kr1_utils.corpus import read_passages
from kr1_utils.files import atomic_write, replace_folder
from kr1_utils.notebook import progress
from kr1_utils.processes import end_with_parent
from kr1_utils.retriever.build import (
    DISK,
    PROCESSES,
    SHARD,
    _line,
    fingerprint,
    write_shards,
)
from kr1_utils.retriever.kernels import best_passages
from kr1_utils.retriever.manifest import (
    BM25,
    MANIFEST,
    STEMMER,
    STOP_WORDS,
    read_manifest,
)
from kr1_utils.retriever.tokens import tokenize, word_hashes


class Retriever:
    """A BM25 index over passages `{"id", "title", "text"}`; `search` takes many queries
    at once."""

    def __init__(self, folder: Path, manifest: dict, scratch=None) -> None:
        self._stemmer, self._stop_words, self._scratch = (
            manifest["stemmer"],
            manifest["stop_words"],
            scratch,
        )
        self._shards = [_Shard.open(folder, shard) for shard in manifest["shards"]]
        sizes = [shard["passages"] for shard in manifest["shards"]]
        self._starts = np.cumsum(
            [0, *sizes]
        ).tolist()  # row of each shard's first passage
        self._threads = ThreadPoolExecutor(cpu_count())

    def __len__(self) -> int:
        return self._starts[-1]

    @classmethod
    def build(
        cls,
        passages: Iterable[dict] | str | os.PathLike,
        folder: str | os.PathLike | None = None,
        stemmer: str = STEMMER,
        stop_words: str = STOP_WORDS,
    ) -> "Retriever":
        """Index `passages` in `folder`, whole or not at all; without a folder, for this
        process alone.

        Memory is bounded, for each core holds one shard at a time. What a build that
        was killed had done is kept beside `folder`, and the next one takes it over.

        Args:
            passages: any iterable, or a file (or data set of the hub) as
                `data.read_passages` reads it.

        Raises:
            ValueError: if there are no passages, or none has a word to index.
            OSError: if the disk has too little room, before anything is written.
        """
        scratch = tempfile.TemporaryDirectory() if folder is None else None
        folder = Path(scratch.name, "index") if scratch else Path(folder)
        if folder.is_dir() and any(folder.iterdir()):
            read_manifest(folder)  # refuses to replace what is not an index of ours
        corpus, size = (
            fingerprint(passages)
            if isinstance(passages, list | str | os.PathLike)
            else None,
            0,
        )
        if isinstance(passages, str | os.PathLike):
            if (file := Path(passages)).is_file():
                size = file.stat().st_size * (3 if file.suffix == ".gz" else 1)
            passages = read_passages(passages)
        rows = iter(passages)
        first = list(islice(rows, SHARD))
        if not first:
            raise ValueError("The corpus is empty: there is no passage to index.")
        a_row = sum(len(_line(row)) for row in first) / len(first)
        total = (
            len(passages)
            if isinstance(passages, list)
            else max(len(first), int(size / a_row))
        )
        part = folder.with_name(folder.name + ".part")
        if corpus and part.is_dir():
            with suppress(
                ValueError
            ):  # unless all was made, and only the renaming was cut off
                cls.open(part, stemmer, stop_words, corpus)
                replace_folder(folder, part)
                return cls.open(folder, stemmer, stop_words)
        (part / MANIFEST).unlink(missing_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        need, before = DISK * a_row * total, part.iterdir() if part.is_dir() else ()
        free = shutil.disk_usage(folder.parent).free + sum(
            f.stat().st_size for f in before
        )
        if need > free:
            raise OSError(
                f"The index takes up to {need / 2**30:.1f} GiB while it is made,"
                f" {part.parent} has {free / 2**30:.1f}: make room, or choose another"
                " folder."
            )
        part.mkdir(exist_ok=True)
        with (
            progress(total, "index", " passages", disable=total < SHARD) as bar,
            Parallel(
                min(cpu_count(), PROCESSES) if len(first) == SHARD else 1,
                return_as="generator",
                pre_dispatch="n_jobs",
                initializer=end_with_parent,
            ) as processes,
        ):
            manifest = write_shards(
                part, chain(first, rows), stemmer, stop_words, processes, bar
            )
        manifest["corpus"] = corpus or manifest["corpus"]
        atomic_write(
            part / MANIFEST, lambda f: f.write(json.dumps(manifest, indent=1).encode())
        )
        replace_folder(folder, part)
        return cls(folder, manifest, scratch)

    @classmethod
    def open_or_build(
        cls, passages: list[dict] | str | os.PathLike, folder: str | os.PathLike
    ) -> "Retriever":
        """Open the index in `folder`, or build it there if there is none.

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
        """Open an index without reading it: memory-mapped, so that several processes
        share one copy.

        Args:
            corpus: refuse an index over other passages than those with this
                `fingerprint`.

        Raises:
            FileNotFoundError: if there is no index.
            ValueError: if it is half-written, not ours, or made with other settings.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"No index at {folder}: run 01_build_index first.")
        manifest = read_manifest(folder)
        settings = {
            "format": 2,
            "stemmer": stemmer,
            "stop_words": stop_words,
            "bm25": BM25,
            "corpus": corpus,
        }
        for what, wanted in settings.items():
            if wanted is not None and manifest.get(what) != wanted:
                raise ValueError(
                    f"The index in {folder} was built with {what}"
                    f" {manifest.get(what)!r}, not {wanted!r}: build it again."
                )
        for name, size in manifest["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise ValueError(
                    f"The index in {folder} is incomplete ({name}): "
                    "remove it and run 01_build_index."
                )
        return cls(folder, manifest)

    def search(self, queries: list[str], k: int = 3) -> list[list[dict]]:
        """The best passages of each query, best first, each with its `score`.

        Args:
            queries: any texts; equal ones are searched once.
            k: how many at most; passages that share no word with the query are left
                out.
        """
        distinct = list(dict.fromkeys(queries))
        words = [
            word_hashes(t)
            for t in tokenize(distinct, self._stemmer, self._stop_words, False)
        ]
        # Threads search part after part in every shard, while the passages found for
        # earlier parts are read.
        step = max(32, -(-len(words) // 8))
        jobs = [
            [
                self._threads.submit(shard.search, words[at : at + step], k)
                for shard in self._shards
            ]
            for at in range(0, len(words), step)
        ]
        best: list[list[dict]] = []
        for job in jobs:
            found = [shard.result() for shard in job]
            rows = np.concatenate(
                [r + start for (r, _), start in zip(found, self._starts)], axis=1
            )
            scores = np.concatenate([s for _, s in found], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows, scores = (
                np.take_along_axis(a, order, axis=1).tolist() for a in (rows, scores)
            )
            best += [
                [
                    {**self._passage(row), "score": score}
                    for row, score in zip(*of)
                    if score > 0
                ]
                for of in zip(rows, scores)
            ]
        of = dict(zip(distinct, best))
        return [of[q] for q in queries]

    def _passage(self, row: int) -> dict:
        number = bisect_right(self._starts, row) - 1
        shard, row = self._shards[number], row - self._starts[number]
        line = shard.text[shard.offsets[row] : shard.offsets[row + 1]]
        return json.loads(
            line.decode("utf-8", "surrogatepass")
        )  # bytes would be looked at for an encoding


@dataclass
class _Shard:
    """A part of the passages: their lines, and the sparse matrix of their scores, all
    memory-mapped."""

    words: np.ndarray  # (V,) hashes of stems, sorted; word i is column i of the matrix
    offsets: np.ndarray  # (N + 1,) where each passage begins in `text`
    indptr: np.ndarray  # (V + 1,) where each column begins in
    rows: np.ndarray  # passages, and
    data: np.ndarray  # their scores
    text: mmap.mmap

    @classmethod
    def open(cls, folder: Path, shard: dict) -> "_Shard":
        # One file, for each takes a descriptor; a plain view, for looking into a memmap
        # is slow.
        whole = np.load(
            folder / shard["index"], mmap_mode="r", allow_pickle=False
        ).view(np.ndarray)
        sizes = (
            2 * shard["words"],
            2 * shard["passages"] + 2,
            shard["words"] + 1,
            shard["postings"],
        )
        words, offsets, indptr, rows, data = np.split(whole, np.cumsum(sizes))
        with (folder / shard["text"]).open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(
            words.view(np.uint64),
            offsets.view(np.int64),
            indptr,
            rows,
            data.view(np.float32),
            text,
        )

    def search(
        self, queries: list[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores (queries, k) of the best passages of this shard; those that
        miss score 0."""
        flat = np.concatenate(queries)
        at = np.searchsorted(
            self.words[:-1], flat
        )  # the last one is where unknown words end up
        known = self.words[at] == flat if len(self.words) else np.zeros(len(flat), bool)
        ends = np.concatenate([[0], np.cumsum(known)])[
            np.cumsum([0, *map(len, queries)])
        ]
        return best_passages(
            at[known], ends, self.indptr, self.rows, self.data, len(self.offsets) - 1, k
        )
