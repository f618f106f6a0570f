"""Owns building an index: passages in shards, made by all cores."""

import hashlib
import json
import os
import shutil
from array import array
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from kr1_utils.files import atomic_write
from kr1_utils.retriever.kernels import document_counts, score_postings
from kr1_utils.retriever.manifest import BM25
from kr1_utils.retriever.tokens import tokenize, word_hashes

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


def write_shards(
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
    atomic_write(part / "all.words.npy", lambda f: np.save(f, words))
    atomic_write(part / "all.idf.npy", lambda f: np.save(f, idf))
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
    found = tokenize(
        [p.decode("utf-8", "surrogatepass") for p in numbers], stemmer, stop_words, True
    )
    words, rank = np.unique(word_hashes(found.vocab), return_inverse=True)
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
        "counts": document_counts(tokens, lengths, len(words)),
        "length": len(tokens),
        "passages": len(rows),
        "offsets": np.cumsum([0, *map(len, lines)]),
    }
    file.unlink(
        missing_ok=True
    )  # another corpus's tokens must not stand beside these lines
    atomic_write(file.with_suffix(".jsonl"), lambda f: f.writelines(lines))
    atomic_write(file, lambda f: np.savez(f, **shard))
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
            indices, data = score_postings(
                shard["tokens"], lengths, indptr, idf, mean_length, *BM25.values()
            )
            arrays = words, shard["offsets"], indptr, indices, data
            atomic_write(
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


def _merged(
    parts: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """All words of several shards, sorted, and how many passages hold each."""
    words, at = np.unique(np.concatenate([w for w, _ in parts]), return_inverse=True)
    return words, np.bincount(at, np.concatenate([c for _, c in parts])).astype(
        np.int64
    )


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
