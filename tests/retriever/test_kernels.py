"""The compiled loops: what they compute, and that they need no place to be kept in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bm25s
import numpy as np
from helpers import FILM_PASSAGES
from hypothesis import given
from hypothesis import strategies as st

import kr1_utils
from kr1_utils.retriever.arrays import run_starts
from kr1_utils.retriever.kernels import (
    BLOCK,
    best_passages,
    document_counts,
    expand_pieces,
    find_columns,
    score_postings,
)

# Two passages: word 0 twice and word 2 once; word 2 once.
TOKENS = np.array([0, 2, 0, 2], np.int32)
LENGTHS = np.array([3, 1], np.int32)


def test_pieces_are_replaced_by_their_tokens():
    # Piece 0 holds tokens 7 and 8, piece 1 none, piece 2 token 9.
    tokens, lengths = expand_pieces(
        pieces=np.array([2, 0, 1, 0], np.int32),
        text_starts=np.array([0, 2, 2, 4], np.int64),
        piece_tokens=np.array([7, 8, 9], np.int32),
        token_starts=np.array([0, 2, 2, 3], np.int64),
    )
    assert tokens.tolist() == [9, 7, 8, 7, 8]
    assert lengths.tolist() == [3, 0, 2]


def test_passage_counts_once_for_a_word_it_holds_twice():
    assert document_counts(TOKENS, LENGTHS, 4).tolist() == [1, 0, 2, 0]


def test_postings_have_the_scores_of_lucene():
    idf = np.array([2.0, 5.0, 0.5], np.float32)
    column_starts = np.array([0, 1, 1, 3], np.int32)
    rows, scores = score_postings(TOKENS, LENGTHS, column_starts, idf, 2.0, 0.9, 0.4)

    def lucene(idf, tf, length):
        return idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * length / 2.0))

    assert rows.tolist() == [0, 0, 1]
    wanted = [lucene(2.0, 2, 3), lucene(0.5, 1, 3), lucene(0.5, 1, 1)]
    assert np.allclose(scores, wanted)


@given(
    st.integers(1, 3 * BLOCK),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_best_passages_are_those_of_sorted_sums(passages, k, most, seed):
    # Few different scores, so that many passages are equal.
    random = np.random.default_rng(seed)
    dense = random.integers(0, most + 1, (5, passages)).astype(np.float32)
    columns, rows = np.nonzero(dense)
    column_starts = run_starts(np.count_nonzero(dense, axis=1)).astype(np.int32)
    queries = [[0, 1], [], [2, 3, 4]]
    words = np.array([word for query in queries for word in query], np.int64)
    found_rows, found_scores = best_passages(
        words,
        run_starts([len(query) for query in queries]),
        column_starts,
        rows.astype(np.int32),
        dense[columns, rows],
        passages,
        k,
    )
    for query, own_rows, scores in zip(queries, found_rows, found_scores, strict=True):
        sums = dense[query].sum(axis=0)
        assert scores.tolist() == sorted(sums, reverse=True)[:k]
        assert sums[own_rows].tolist() == scores.tolist()
        assert len(set(own_rows.tolist())) == min(k, passages)


numbers = st.integers(0, 2**64 - 1)


@given(st.sets(numbers, max_size=20), st.lists(numbers, max_size=10), st.data())
def test_column_of_a_hash_is_its_place_or_none(words, others, data):
    words = sorted(words)
    known = data.draw(st.lists(st.sampled_from(words), max_size=10)) if words else []
    hashes = data.draw(st.permutations(known + others))
    columns = find_columns(np.array(hashes, np.uint64), np.array(words, np.uint64))
    wanted = [words.index(number) if number in words else -1 for number in hashes]
    assert columns.tolist() == wanted


# --- no place to keep compiled code ---

SEARCH_WITHOUT_CACHE = f"""
import bm25s

import kr1_utils
from kr1_utils.retriever import Retriever, probe

print(kr1_utils.__file__)
print(bm25s.__file__)
print(Retriever.build({FILM_PASSAGES!r}).search(["poems"], 1)[0][0]["id"])
"""

PROBE = """
import numba

try:
    numba.njit(cache=True)(lambda x: x)
except RuntimeError:
    pass
else:
    raise SystemExit("numba finds a place for its cache: this proves nothing")
"""


def copy_without_cache(package, target):
    """Copy a package, with a file where each `__pycache__` would be made.

    Not even root can make a folder there.
    """
    source = Path(package.__file__).parent
    shutil.copytree(
        source, target / source.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in [target / source.name, *target.glob(f"{source.name}/**/")]:
        (folder / "__pycache__").touch()


def test_searching_works_where_compiled_code_cannot_be_kept(tmp_path):
    # As in `docker run --user`: neither the packages nor a home can be written to.
    copy_without_cache(kr1_utils, tmp_path)
    copy_without_cache(bm25s, tmp_path)
    (tmp_path / "kr1_utils" / "retriever" / "probe.py").write_text(PROBE)
    environment = {"PATH": os.environ["PATH"], "HOME": "/dev/null"}
    run = subprocess.run(
        [sys.executable, "-c", SEARCH_WITHOUT_CACHE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    ours, theirs, found = run.stdout.split()
    assert Path(ours).is_relative_to(tmp_path)
    assert Path(theirs).is_relative_to(tmp_path)
    assert found == "c"
