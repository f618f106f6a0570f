"""The arrays of a shard: written and mapped without a change."""

import mmap
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils.retriever.arrays import ShardArrays, map_arrays, run_starts, write_arrays


@pytest.fixture
def arrays():
    """Three passages, two words: the first in two passages, the second in one."""
    return ShardArrays(
        words=np.array([5, 2**64 - 1], np.uint64),
        offsets=np.array([0, 10, 2**40, 2**40 + 7], np.int64),
        column_starts=np.array([0, 2, 3], np.int32),
        rows=np.array([0, 2, 1], np.int32),
        scores=np.array([0.5, 1.25, 3.0], np.float32),
    )


def test_mapped_arrays_are_those_that_were_written(arrays, tmp_path):
    write_arrays(tmp_path / "shard.npy", arrays)
    mapped = map_arrays(tmp_path / "shard.npy", words=2, passages=3, postings=3)
    for field in fields(arrays):
        own = getattr(arrays, field.name)
        other = getattr(mapped, field.name)
        assert other.dtype == own.dtype
        assert other.tolist() == own.tolist()


def test_mapped_arrays_are_not_read_into_memory(arrays, tmp_path):
    write_arrays(tmp_path / "shard.npy", arrays)
    mapped = map_arrays(tmp_path / "shard.npy", words=2, passages=3, postings=3)
    for field in fields(mapped):
        array = getattr(mapped, field.name)
        assert not array.flags.writeable
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array, mmap.mmap)


@given(st.lists(st.integers(0, 5)))
def test_runs_begin_where_those_before_them_end(sizes):
    starts = run_starts(sizes)
    assert starts.dtype == np.int64
    assert starts.tolist() == [sum(sizes[:number]) for number in range(len(sizes) + 1)]
