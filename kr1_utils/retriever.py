"""Owns retrieval: build, open and search a BM25 index over passages, a thousand or 21
million of them.

Tokens and scores are those of bm25s (Lù, 2024, https://arxiv.org/abs/2407.03618). What
is added: passages lie in shards, made by all cores and opened memory-mapped, which
score with the statistics of the whole corpus."""

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import bm25s
import numba
import numpy as np
import Stemmer
from bm25s.numba.selection import heap_push, sift_up
from joblib import Parallel, cpu_count, delayed

from kr1_utils.data import (
    end_with_parent,
    progress,
    read_passages,
    replace,
    write_whole,
)

STEMMER, STOP_WORDS = "english", "en"
BM25 = {"k1": 0.9, "b": 0.4}  # Anserini's defaults
MANIFEST = "manifest.json"
SHARD, PROCESSES = (
    100_000,
    6,
)  # passages, and processes at most: each takes some 500 MB for its shard
# bytes on disk, at most, for each of the passages' own: they, the index, and what is
# removed
DISK = 2.5
# All but letters, digits and "_" of ASCII is no part of a word, for bm25s's pattern
# \b\w\w+\b.
_BLANKS = bytes(
    b if b > 127 or chr(b).isalnum() or chr(b) == "_" else 32 for b in range(256)
)
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it lets every debug line through


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
            _manifest(folder)  # refuses to replace what is not an index of ours
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
                replace(folder, part)
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
            manifest = _fill(
                part, chain(first, rows), stemmer, stop_words, processes, bar
            )
        manifest["corpus"] = corpus or manifest["corpus"]
        write_whole(
            part / MANIFEST, lambda f: f.write(json.dumps(manifest, indent=1).encode())
        )
        replace(folder, part)
        return cls(folder, manifest, scratch)

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
        manifest = _manifest(folder)
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
            _hashes(t)
            for t in _tokenize(distinct, self._stemmer, self._stop_words, False)
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
        return _best(
            at[known], ends, self.indptr, self.rows, self.data, len(self.offsets) - 1, k
        )


@numba.njit(cache=True, nogil=True)
def _best(words, ends, indptr, rows, data, passages, k):
    """The k best passages of each query: bm25s's `retrieve`, with its heap, so that of
    equal scores the same come first; but blocks of passages are skipped in which none
    is good enough."""
    k = min(k, passages)
    best_rows, best_scores = (
        np.zeros((len(ends) - 1, k), np.int64),
        np.zeros((len(ends) - 1, k), np.float32),
    )
    for query in range(len(ends) - 1):
        scores, best, at = (
            np.zeros(passages, np.float32),
            np.zeros(k, np.float32),
            np.zeros(k, np.int64),
        )
        for word in words[ends[query] : ends[query + 1]]:
            for j in range(indptr[word], indptr[word + 1]):
                scores[rows[j]] += data[j]
        for row in range(k):
            heap_push(best, at, scores[row], row, row)
        bits = scores.view(
            np.int32
        )  # in the same order, as no score is negative, and faster to compare
        for start in range(k, passages, 128):
            most = 0
            for bit in bits[start : start + 128]:
                most = max(most, bit)
            if most > best[:1].view(np.int32)[0]:
                for row in range(start, min(start + 128, passages)):
                    if scores[row] > best[0]:
                        best[0], at[0] = scores[row], row
                        sift_up(best, at, 0, k)
        order = np.flip(np.argsort(best))
        best_rows[query], best_scores[query] = at[order], best[order]
    return best_rows, best_scores


def fingerprint(passages: list[dict] | str | os.PathLike) -> str:
    """A short name for exactly these passages in this order, or for this file; of one
    of more than 64 MiB, its size and 64 pieces of a MiB count."""
    digest = hashlib.sha256()
    if isinstance(passages, list):
        for p in passages:
            digest.update(json.dumps([p["id"], p["title"], p["text"]]).encode())
    elif (file := Path(passages)).is_file():
        size, mib = file.stat().st_size, 2**20
        digest.update(str(size).encode())
        with file.open("rb") as data:
            for i in range(64):
                data.seek(
                    max(i * mib, (size - mib) * i // 63 if size > 64 * mib else 0)
                )
                digest.update(data.read(mib))
    else:
        digest.update(str(passages).encode())  # a data set of the hub
    return digest.hexdigest()[:16]


def _fill(
    part: Path,
    rows: Iterator[dict],
    stemmer: str,
    stop_words: str,
    processes: Parallel,
    bar,
) -> dict:
    """Write all shards into `part`: first their tokens, then, with the statistics of
    all, their scores."""
    shards = enumerate(iter(lambda: list(islice(rows, SHARD)), []))
    known, digests, passages, length = [], [], 0, 0
    for shard in processes(
        delayed(_cut)(part, n, some, stemmer, stop_words) for n, some in shards
    ):
        known.append((shard["words"], shard["counts"]))
        if len(known) == 16:  # not each time: it sorts all words there are so far
            known = [_merged(known)]
        length, passages = (
            length + int(shard["length"]),
            passages + int(shard["passages"]),
        )
        digests.append(str(shard["digest"]))
        bar.update(int(shard["passages"]))
    words, counts = _merged(known)
    if not length:
        shutil.rmtree(part)
        raise ValueError("No passage holds a word that can be indexed.")
    corpus = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    idf = np.log(1 + (passages - counts + 0.5) / (counts + 0.5)).astype(
        np.float32
    )  # as Lucene has it
    write_whole(part / "all.words.npy", lambda f: np.save(f, words))
    write_whole(part / "all.idf.npy", lambda f: np.save(f, idf))
    bar.set_postfix_str("scoring")
    made = list(
        processes(
            delayed(_score)(part, n, length / passages, corpus)
            for n in range(len(digests))
        )
    )
    files = [shard[kind] for shard in made for kind in ("text", "index")]
    for file in part.iterdir():
        if file.name not in files:
            file.unlink()
    return {
        "made_by": "kr1_utils",
        "format": 2,
        "passages": passages,
        "stemmer": stemmer,
        "stop_words": stop_words,
        "bm25": BM25,
        "corpus": corpus,
        "shards": made,
        "files": {name: (part / name).stat().st_size for name in files},
    }


def _cut(
    part: Path, number: int, rows: list[dict], stemmer: str, stop_words: str
) -> dict:
    """Write one shard's passages and tokens, unless they are there; return their
    statistics."""
    lines = [_line(row) for row in rows]
    settings = json.dumps([stemmer, stop_words, BM25]).encode()
    digest = hashlib.sha256(b"".join([settings, *lines])).hexdigest()
    file, kept = (
        part / f"{number:05d}.npz",
        ("digest", "words", "counts", "length", "passages"),
    )
    if file.exists():
        with np.load(file, allow_pickle=False) as before:
            if before["digest"] == digest:
                return {key: before[key] for key in kept}
    # bm25s tokenizes every distinct piece between blanks once; most are one word.
    numbers: defaultdict[bytes, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # the next number for each new piece
    pieces, ends = array("i"), [0]
    for row in rows:
        text = f"{row['title']} {row['text']}".lower().encode("utf-8", "surrogatepass")
        pieces.extend(map(numbers.__getitem__, text.translate(_BLANKS).split()))
        ends.append(len(pieces))
    found = _tokenize(
        [p.decode("utf-8", "surrogatepass") for p in numbers], stemmer, stop_words, True
    )
    words, rank = np.unique(_hashes(found.vocab), return_inverse=True)
    ids = rank.astype(np.int32)[np.fromiter(chain.from_iterable(found.ids), np.int64)]
    sizes = np.array([len(t) for t in found.ids], np.int64)
    # The pieces of all passages, each replaced by its tokens: token j is at the piece's
    # start + j.
    pieces = np.frombuffer(pieces, np.int32)
    after = np.concatenate([[0], np.cumsum(sizes[pieces])])
    starts = (np.cumsum(sizes) - sizes)[pieces] - after[:-1]
    tokens = ids[np.repeat(starts, sizes[pieces]) + np.arange(after[-1])]
    lengths = np.diff(after[ends]).astype(np.int32)
    shard = {
        "digest": digest,
        "tokens": tokens,
        "lengths": lengths,
        "words": words,
        "counts": _document_counts(tokens, lengths, len(words)),
        "length": len(tokens),
        "passages": len(rows),
        "offsets": np.cumsum([0, *map(len, lines)]),
    }
    file.unlink(
        missing_ok=True
    )  # another corpus's tokens must not stand beside these lines
    write_whole(file.with_suffix(".jsonl"), lambda f: f.writelines(lines))
    write_whole(file, lambda f: np.savez(f, **shard))
    return {key: shard[key] for key in kept}


def _score(part: Path, number: int, mean_length: float, corpus: str) -> dict:
    """Write one shard's matrix of scores, unless it is there; return what `_Shard.open`
    wants to know."""
    name, text = f"{number:05d}.{corpus}.npy", f"{number:05d}.jsonl"
    with np.load(part / f"{number:05d}.npz", allow_pickle=False) as shard:
        words, counts, lengths = shard["words"], shard["counts"], shard["lengths"]
        if not (part / name).exists():
            at = np.searchsorted(
                np.load(part / "all.words.npy", mmap_mode="r", allow_pickle=False),
                words,
            )
            idf = np.load(part / "all.idf.npy", mmap_mode="r", allow_pickle=False)[at]
            indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            indices, data = _postings(
                shard["tokens"], lengths, indptr, idf, mean_length, *BM25.values()
            )
            arrays = words, shard["offsets"], indptr, indices, data
            write_whole(
                part / name,
                lambda f: np.save(
                    f, np.concatenate([a.view(np.int32) for a in arrays])
                ),
            )
    return {
        "text": text,
        "index": name,
        "passages": len(lengths),
        "words": len(words),
        "postings": int(counts.sum()),
    }


@numba.njit(cache=True)
def _document_counts(tokens, lengths, words):
    """(V,) how many passages hold each word."""
    counts, seen, at = np.zeros(words, np.int64), np.full(words, -1, np.int32), 0
    for row in range(len(lengths)):
        for token in tokens[at : at + lengths[row]]:
            if seen[token] != row:
                seen[token] = row
                counts[token] += 1
        at += lengths[row]
    return counts


@numba.njit(cache=True)
def _postings(tokens, lengths, indptr, idf, mean_length, k1, b):
    """Rows and scores of the passages that hold each word, word after word: BM25 as
    Lucene computes it."""
    rows, scores = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    free, times, at = indptr[:-1].copy(), np.zeros(len(idf), np.int32), 0
    for row in range(len(lengths)):
        passage = tokens[at : at + lengths[row]]
        saturation = k1 * ((1 - b) + b * lengths[row] / mean_length)
        at += lengths[row]
        for token in passage:
            times[token] += 1
        for token in passage:
            if times[token]:
                tf = times[token]
                rows[free[token]] = row
                scores[free[token]] = idf[token] * (tf / (saturation + tf))
                free[token] += 1
                times[token] = 0
    return rows, scores


def _merged(
    parts: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """All words of several shards, sorted, and how many passages hold each."""
    words, at = np.unique(np.concatenate([w for w, _ in parts]), return_inverse=True)
    return words, np.bincount(at, np.concatenate([c for _, c in parts])).astype(
        np.int64
    )


def _tokenize(texts: list[str], stemmer: str, stop_words: str, return_ids: bool):
    return bm25s.tokenize(
        texts,
        stopwords=stop_words,
        stemmer=Stemmer.Stemmer(stemmer),
        return_ids=return_ids,
        show_progress=False,
    )


def _hashes(words: Iterable[str]) -> np.ndarray:
    """Words as numbers of 64 bits: among ten million, two are taken for one with a
    chance of 3e-6."""
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest())
            for w in words
        ],
        np.uint64,
    )


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _manifest(folder: Path) -> dict:
    """What the index in `folder` says of itself; a ValueError if it is not one of
    ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} is not a complete index of kr1_utils (no readable {MANIFEST}): "
            "remove it, or choose another folder, and run 01_build_index."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("made_by") != "kr1_utils":
        raise ValueError(
            f"{folder} holds another program's index: choose another folder."
        )
    return manifest
