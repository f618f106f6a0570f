"""Owns the arrays of a shard: which there are, and how one file holds them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kr1_utils.files import atomic_write


@dataclass(frozen=True)
class ShardArrays:
    """The scores of N passages for V words: a sparse matrix with a column per word.

    Column i lists the passages that hold word i: their numbers are
    `rows[column_starts[i] : column_starts[i + 1]]`, and their scores stand at the same
    places of `scores`.

    Attributes:
        words: (V,) uint64, the hash of each column's stem, ascending.
        offsets: (N + 1,) int64, the byte at which each passage's line begins in the
            shard's text, and the end of the last one.
        column_starts: (V + 1,) int32.
        rows: (P,) int32, numbers of passages.
        scores: (P,) float32.
    """

    words: np.ndarray
    offsets: np.ndarray
    column_starts: np.ndarray
    rows: np.ndarray
    scores: np.ndarray


def run_starts(sizes: Iterable[int]) -> np.ndarray:
    """Where runs begin that stand one after the other, and where the last one ends.

    Runs of 2, 0 and 3 elements begin at 0, 2 and 2, and end at 5: [0, 2, 2, 5].

    Args:
        sizes: (N,) elements of each run.

    Returns:
        (N + 1,) int64.
    """
    sizes = np.asarray(sizes, np.int64)
    return np.concatenate([[0], np.cumsum(sizes)])


def write_arrays(file: Path, arrays: ShardArrays) -> None:
    """Write a shard's arrays into one `.npy` file, as numbers of 32 bits."""
    parts = [
        arrays.words,
        arrays.offsets,
        arrays.column_starts,
        arrays.rows,
        arrays.scores,
    ]
    joined = np.concatenate([part.view(np.int32) for part in parts])
    atomic_write(file, lambda out: np.save(out, joined))


def map_arrays(file: Path, words: int, passages: int, postings: int) -> ShardArrays:
    """Map a file of `write_arrays` into memory without reading it.

    Args:
        words: V.
        passages: N.
        postings: P.

    Raises:
        ValueError: if the file is not an array of numbers.
    """
    # One file per shard, because each mapped file takes a descriptor. A plain view,
    # because taking elements of a memmap is slow.
    mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    joined = mapped.view(np.ndarray)
    # Words and offsets have 64 bits: two of the file's numbers each.
    sizes = [2 * words, 2 * (passages + 1), words + 1, postings]
    parts = np.split(joined, np.cumsum(sizes))
    return ShardArrays(
        words=parts[0].view(np.uint64),
        offsets=parts[1].view(np.int64),
        column_starts=parts[2],
        rows=parts[3],
        scores=parts[4].view(np.float32),
    )
