"""Owns writing an index: passages in shards, made by all cores, whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from kr1_utils.corpus import read_passages
from kr1_utils.files import atomic_write, replace_folder
from kr1_utils.notebook import progress
from kr1_utils.processes import end_with_parent
from kr1_utils.retriever.arrays import ShardArrays, run_starts, write_arrays
from kr1_utils.retriever.kernels import document_counts, score_postings
from kr1_utils.retriever.manifest import (
    BM25,
    FORMAT,
    MADE_BY,
    MANIFEST,
    STEMMER,
    STOP_WORDS,
    check_index,
    read_manifest,
    write_manifest,
)
from kr1_utils.retriever.tokens import tokenize_corpus

# Passages.
SHARD = 100_000

# Each process takes some 500 MB for its shard.
MOST_PROCESSES = 6

# Bytes on disk while an index is made, at most, for each byte of the passages: they
# themselves, the index, and the tokens that are removed in the end.
DISK = 2.5

# How much longer text is than its .gz, as a guess: Wikipedia's passages 2.8 times.
UNCOMPRESSED = 3

# Shards whose counts of words are kept apart before they are merged.
SHARDS_PER_MERGE = 16

MIB = 2**20

# Of a file above 64 MiB, `fingerprint` reads this many pieces of 1 MiB.
PIECES = 64

WORDS_FILE = "all.words.npy"
IDF_FILE = "all.idf.npy"


def fingerprint(passages: list[dict] | str | os.PathLike) -> str:
    """A short name for exactly these passages in this order, or for this file.

    Args:
        passages: passages, a file, or a data set of the hub, which only its name tells
            from others. Of a file above 64 MiB, its size and 64 pieces of 1 MiB count.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if isinstance(passages, list):
        for passage in passages:
            parts = [passage["id"], passage["title"], passage["text"]]
            digest.update(json.dumps(parts).encode())
    elif Path(passages).is_file():
        for piece in _file_pieces(Path(passages)):
            digest.update(piece)
    else:
        digest.update(str(passages).encode())
    return digest.hexdigest()[:16]


def _file_pieces(file: Path) -> Iterator[bytes]:
    """What tells a file from others: its size, and all of it or pieces of it."""
    size = file.stat().st_size
    yield str(size).encode()
    with file.open("rb") as data:
        if size <= PIECES * MIB:
            yield data.read()
            return
        for number in range(PIECES):
            # From the first MiB to the last one.
            data.seek((size - MIB) * number // (PIECES - 1))
            yield data.read(MIB)


def write_index(
    passages: Iterable[dict] | str | os.PathLike,
    folder: str | os.PathLike,
    stemmer: str = STEMMER,
    stop_words: str = STOP_WORDS,
    shard_size: int = SHARD,
) -> None:
    """Index passages in `folder`, whole or not at all.

    Memory is bounded: each process holds one shard at a time. What a build that was
    killed had done stays beside `folder`, in `<folder>.part`, and the next build takes
    over what is of the same passages.

    Args:
        passages: `{"id", "title", "text"}` each: any iterable, or a file (or data set
            of the hub) as `corpus.read_passages` reads it.
        folder: where to write the index; an index of ours that is there is replaced.
        stemmer: one of Snowball's, for example "english".
        stop_words: one of bm25s's lists, for example "en".
        shard_size: passages per shard.

    Raises:
        ValueError: if there are no passages, or none has a word to index, if `folder`
            holds something that is not an index of ours, or for a shard_size below 1.
        OSError: if the disk has too little room, before anything is written.
    """
    if shard_size < 1:
        raise ValueError(f"A shard holds at least one passage, not {shard_size}.")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        # Refuses to replace what is not an index of ours.
        read_manifest(folder)
    source = _open_source(passages, shard_size)
    part = folder.with_name(folder.name + ".part")
    if not _is_whole(part, stemmer, stop_words, source.fingerprint):
        (part / MANIFEST).unlink(missing_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_room(part, DISK * source.size)
        part.mkdir(exist_ok=True)
        _write_shards(part, source, stemmer, stop_words)
    replace_folder(folder, part)


@dataclass(frozen=True)
class _Source:
    """Passages to index, and what is known of them before they are read.

    Attributes:
        fingerprint: None for an iterable, which may be read only once.
        shards: lists of passages, each read when it is asked for.
        passages: how many there are; of a file, estimated from its size.
        size: bytes of all their lines, estimated from those of the first shard.
        shard_size: passages per shard.
        fills_a_shard: whether the first shard is full, so that more may follow.
    """

    fingerprint: str | None
    shards: Iterator[list[dict]]
    passages: int
    size: float
    shard_size: int
    fills_a_shard: bool


def _open_source(
    passages: Iterable[dict] | str | os.PathLike, shard_size: int
) -> _Source:
    """Read the first shard, and estimate from it how much there is to index."""
    name = None
    if isinstance(passages, list | str | os.PathLike):
        name = fingerprint(passages)
    file_size = 0
    if isinstance(passages, str | os.PathLike):
        file_size = _text_size(Path(passages))
        rows = read_passages(passages)
    else:
        rows = iter(passages)
    first = list(islice(rows, shard_size))
    if not first:
        raise ValueError("The corpus is empty: there is no passage to index.")
    mean_size = sum(len(_line(passage)) for passage in first) / len(first)
    if isinstance(passages, list):
        count = len(passages)
    else:
        count = max(len(first), int(file_size / mean_size))
    return _Source(
        fingerprint=name,
        shards=chain([first], _in_shards(rows, shard_size)),
        passages=count,
        size=mean_size * count,
        shard_size=shard_size,
        fills_a_shard=len(first) == shard_size,
    )


def _text_size(file: Path) -> int:
    """Bytes of a file's text, a guess if it is compressed; 0 if there is no file."""
    return _uncompressed(file.name, file.stat().st_size) if file.is_file() else 0


def _uncompressed(name: str, size: int) -> int:
    return UNCOMPRESSED * size if name.endswith(".gz") else size


def disk_needed(name: str, size: int) -> float:
    """Bytes on disk, at most, while a file of passages is indexed.

    Args:
        name: of the file; one that ends in .gz grows when it is read.
        size: of the file, in bytes.
    """
    return DISK * _uncompressed(name, size)


def _in_shards(rows: Iterator[dict], shard_size: int) -> Iterator[list[dict]]:
    while shard := list(islice(rows, shard_size)):
        yield shard


def _line(passage: dict) -> bytes:
    """A passage as a line of a shard's text."""
    text = json.dumps(passage, ensure_ascii=False)
    # JSON may hold halves of surrogate pairs.
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _is_whole(part: Path, stemmer: str, stop_words: str, corpus: str | None) -> bool:
    """Whether a killed build of the same index had only its renaming left to do."""
    if not corpus or not part.is_dir():
        return False
    try:
        check_index(part, stemmer, stop_words, corpus)
    except ValueError:
        return False
    return True


def _require_room(part: Path, need: float) -> None:
    """Refuse to begin where the disk cannot hold `need` bytes.

    Room that an earlier build's files take counts as free: they are used or replaced.
    """
    free = shutil.disk_usage(part.parent).free
    if part.is_dir():
        free += sum(file.stat().st_size for file in part.iterdir())
    if need > free:
        raise OSError(
            f"The index takes up to {need / 2**30:.1f} GiB while it is made,"
            f" {part.parent} has {free / 2**30:.1f}: make room, or choose another"
            " folder."
        )


@dataclass(frozen=True)
class _ShardStatistics:
    """What one shard adds to the statistics of the corpus.

    Attributes:
        digest: of the shard's passages and the settings of the index.
        words: (V,) uint64, hashes of its stems, ascending.
        counts: (V,) int64, its passages that hold each.
        tokens: how many there are in all its passages.
        passages: how many it has.
    """

    digest: str
    words: np.ndarray
    counts: np.ndarray
    tokens: int
    passages: int


@dataclass(frozen=True)
class _CorpusStatistics:
    """The statistics of all shards together, as in `_ShardStatistics`."""

    digest: str
    words: np.ndarray
    counts: np.ndarray
    tokens: int
    passages: int
    shards: int


def _write_shards(part: Path, source: _Source, stemmer: str, stop_words: str) -> None:
    """Write all shards and the manifest into `part`.

    First come the tokens of each shard. Scores need the statistics of all passages, so
    they come when all tokens are there.
    """
    jobs = min(cpu_count(), MOST_PROCESSES) if source.fills_a_shard else 1
    with (
        progress(
            source.passages,
            "index",
            " passages",
            disable=source.passages < source.shard_size,
        ) as bar,
        Parallel(
            jobs,
            return_as="generator",
            pre_dispatch="n_jobs",
            initializer=end_with_parent,
        ) as processes,
    ):
        corpus = _write_all_tokens(processes, part, source, stemmer, stop_words, bar)
        bar.set_postfix_str("scoring")
        shards = _write_all_scores(processes, part, corpus)
    files = _remove_all_but(part, shards)
    manifest = {
        "made_by": MADE_BY,
        "format": FORMAT,
        "passages": corpus.passages,
        "stemmer": stemmer,
        "stop_words": stop_words,
        "bm25": BM25,
        "corpus": source.fingerprint or corpus.digest,
        "shards": shards,
        "files": {file.name: file.stat().st_size for file in files},
    }
    write_manifest(part, manifest)


def _write_all_tokens(
    processes: Parallel,
    part: Path,
    source: _Source,
    stemmer: str,
    stop_words: str,
    bar: tqdm,
) -> _CorpusStatistics:
    """Write the passages and tokens of each shard, and the statistics of all."""
    shards = processes(
        delayed(_write_tokens)(part, number, passages, stemmer, stop_words)
        for number, passages in enumerate(source.shards)
    )
    corpus = _add_up(shards, bar)
    if not corpus.tokens:
        shutil.rmtree(part)
        raise ValueError("No passage holds a word that can be indexed.")
    _write_idf(part, corpus)
    return corpus


def _write_all_scores(
    processes: Parallel, part: Path, corpus: _CorpusStatistics
) -> list[dict]:
    """Write the scores of each shard; return what the manifest says of each."""
    mean_length = corpus.tokens / corpus.passages
    shards = processes(
        delayed(_write_scores)(part, number, mean_length, corpus.digest)
        for number in range(corpus.shards)
    )
    return list(shards)


def _remove_all_but(part: Path, shards: list[dict]) -> list[Path]:
    """Remove what only building needed; return the files of the shards, in order."""
    files = []
    for shard in shards:
        files += [part / shard["text"], part / shard["index"]]
    kept = set(files)
    for file in part.iterdir():
        if file not in kept:
            file.unlink()
    return files


def _add_up(shards: Iterable[_ShardStatistics], bar: tqdm) -> _CorpusStatistics:
    """The statistics of the corpus; `bar` shows the passages that are done."""
    digests = []
    parts = []
    tokens = 0
    passages = 0
    for shard in shards:
        digests.append(shard.digest)
        parts.append((shard.words, shard.counts))
        # Not after every shard, because merging sorts all words that are known so far.
        if len(parts) == SHARDS_PER_MERGE:
            parts = [_merge_counts(parts)]
        tokens += shard.tokens
        passages += shard.passages
        bar.update(shard.passages)
    words, counts = _merge_counts(parts)
    return _CorpusStatistics(
        digest=hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
        words=words,
        counts=counts,
        tokens=tokens,
        passages=passages,
        shards=len(digests),
    )


def _merge_counts(
    parts: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Merge words, and how many passages hold each, of several shards.

    Returns:
        (V,) uint64, all words, ascending; (V,) int64, their passages.
    """
    all_words = np.concatenate([words for words, _ in parts])
    all_counts = np.concatenate([counts for _, counts in parts])
    words, places = np.unique(all_words, return_inverse=True)
    return words, np.bincount(places, all_counts).astype(np.int64)


def _write_idf(part: Path, corpus: _CorpusStatistics) -> None:
    """Write all words and their inverse document frequencies, for `_write_scores`.

    They are Lucene's, as in Kamphuis et al., 2020, "Which BM25 do you mean?".
    """
    without = corpus.passages - corpus.counts
    idf = np.log(1 + (without + 0.5) / (corpus.counts + 0.5)).astype(np.float32)
    atomic_write(part / WORDS_FILE, lambda out: np.save(out, corpus.words))
    atomic_write(part / IDF_FILE, lambda out: np.save(out, idf))


def _write_tokens(
    part: Path, number: int, passages: list[dict], stemmer: str, stop_words: str
) -> _ShardStatistics:
    """Write a shard's passages and tokens, unless a killed build left the same."""
    lines = [_line(passage) for passage in passages]
    settings = json.dumps([stemmer, stop_words, BM25]).encode()
    digest = hashlib.sha256(b"".join([settings, *lines])).hexdigest()
    file = _tokens_file(part, number)
    kept = _read_statistics(file)
    if kept is not None and kept.digest == digest:
        return kept
    texts = (f"{passage['title']} {passage['text']}" for passage in passages)
    found = tokenize_corpus(texts, stemmer, stop_words)
    statistics = _ShardStatistics(
        digest=digest,
        words=found.words,
        counts=document_counts(found.tokens, found.lengths, len(found.words)),
        tokens=len(found.tokens),
        passages=len(passages),
    )
    arrays = {
        "digest": digest,
        "tokens": found.tokens,
        "lengths": found.lengths,
        "words": found.words,
        "counts": statistics.counts,
        "length": statistics.tokens,
        "passages": statistics.passages,
        "offsets": run_starts([len(line) for line in lines]),
    }
    # Another corpus's tokens must never stand beside these lines, even if this process
    # is killed between writing the two files.
    file.unlink(missing_ok=True)
    atomic_write(_text_file(part, number), lambda out: out.writelines(lines))
    atomic_write(file, lambda out: np.savez(out, **arrays))
    return statistics


def _read_statistics(file: Path) -> _ShardStatistics | None:
    """What an earlier `_write_tokens` found, if it came to its end."""
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as shard:
        return _ShardStatistics(
            digest=str(shard["digest"]),
            words=shard["words"],
            counts=shard["counts"],
            tokens=int(shard["length"]),
            passages=int(shard["passages"]),
        )


def _write_scores(part: Path, number: int, mean_length: float, digest: str) -> dict:
    """Write a shard's arrays, unless a killed build left them, from its tokens.

    Args:
        mean_length: tokens per passage of the corpus.
        digest: of the corpus. It is in the file's name, so that scores from another
            corpus's statistics are not taken for these.

    Returns:
        What the manifest says of the shard: names of its files, sizes of its arrays.
    """
    file = part / f"{number:05d}.{digest}.npy"
    with np.load(_tokens_file(part, number), allow_pickle=False) as shard:
        words = shard["words"]
        counts = shard["counts"]
        lengths = shard["lengths"]
        if not file.exists():
            column_starts = run_starts(counts).astype(np.int32)
            rows, scores = score_postings(
                shard["tokens"],
                lengths,
                column_starts,
                _read_idf(part, words),
                mean_length,
                BM25["k1"],
                BM25["b"],
            )
            offsets = shard["offsets"]
            arrays = ShardArrays(words, offsets, column_starts, rows, scores)
            write_arrays(file, arrays)
    return {
        "text": _text_file(part, number).name,
        "index": file.name,
        "passages": len(lengths),
        "words": len(words),
        "postings": int(counts.sum()),
    }


def _read_idf(part: Path, words: np.ndarray) -> np.ndarray:
    """(V,) float32, the inverse document frequencies of one shard's words."""
    # Mapped, because the words of a large corpus would fill each process's memory.
    all_words = np.load(part / WORDS_FILE, mmap_mode="r", allow_pickle=False)
    all_idf = np.load(part / IDF_FILE, mmap_mode="r", allow_pickle=False)
    return all_idf[np.searchsorted(all_words, words)]


def _text_file(part: Path, number: int) -> Path:
    return part / f"{number:05d}.jsonl"


def _tokens_file(part: Path, number: int) -> Path:
    return part / f"{number:05d}.npz"
