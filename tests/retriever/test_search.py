"""Searching: the same results however it is asked, and no query that breaks it."""

import os
import shutil
import string
import subprocess
import sys

import bm25s
import pytest
import Stemmer
import torch
from helpers import FILM_PASSAGES, check_against_plain_bm25s, found_ids
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils.files import REPO
from kr1_utils.retriever import Retriever, fingerprint

WORDS = [
    "silent",
    "rivers",
    "Dara",
    "KALLAS",
    "Merano",
    "the",
    "of",
    "zyx",
    "poems",
    "painter",
    ",",
    "ł",
]
any_query = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
any_character = string.printable + "łżé東\u200b"


# --- a batch ---


@given(st.lists(any_query, max_size=8), st.integers(0, 6))
def test_batch_finds_what_single_searches_find(small, queries, k):
    assert small.search(queries, k) == [small.search([q], k)[0] for q in queries]


def test_batch_of_real_questions_finds_what_single_searches_find(retriever, questions):
    asked = [q["question"] for q in questions["test"][:40]]
    assert retriever.search(asked, 3) == [retriever.search([q], 3)[0] for q in asked]


@given(st.lists(st.text(alphabet=any_character, max_size=30), max_size=5))
def test_no_query_crashes_and_each_gets_its_list(small, queries):
    found = small.search(queries, 3)
    assert len(found) == len(queries)
    for passages in found:
        scores = [passage["score"] for passage in passages]
        assert scores == sorted(scores, reverse=True)
        assert all(score > 0 for score in scores)


def test_duplicates_get_equal_results_in_their_places(small):
    found = found_ids(small.search(["Merano", "silent river", "Merano"], 2))
    assert found[0] == found[2]
    assert found[0][0] == "d"
    assert found[1][0] == "a"


def test_no_queries_give_no_results(small):
    assert small.search([], 3) == []


# --- words ---


@pytest.mark.parametrize("query", ["", " ", "the of and", "?!", "zyx", "東京"])
def test_query_without_a_known_word_finds_nothing(small, query):
    assert small.search([query, "Merano"], 3)[0] == []
    assert small.search([query], 3) == [[]]


@pytest.mark.parametrize("query", ["", "the of and", "zyx"])
def test_query_without_a_known_word_finds_no_empty_passage(query):
    corpus = [
        *FILM_PASSAGES,
        {"id": "e", "title": "", "text": ""},
        {"id": "f", "title": "The", "text": "of and"},
    ]
    assert Retriever.build(corpus).search([query], 6) == [[]]


def test_shard_without_a_word_finds_nothing_and_the_others_do():
    empty = [{"id": "e", "title": "", "text": ""}] * 2
    index = Retriever.build([*FILM_PASSAGES, *empty], shard_size=2)
    assert found_ids(index.search(["poems", "zyx"], 3)) == [["c"], []]


def test_unknown_words_beside_known_ones_change_nothing(small):
    mixed = small.search(["zyx Merano qqq"], 3)
    assert found_ids(mixed) == found_ids(small.search(["Merano"], 3))


def test_passages_that_share_no_word_with_the_query_are_left_out(small):
    assert found_ids(small.search(["Aldoria", "poems"], 4)) == [["d"], ["c"]]


def test_queries_are_stemmed_like_passages(small):
    assert found_ids(small.search(["poem", "poems"], 1)) == [["c"], ["c"]]


def test_titles_are_searched_too(small):
    assert found_ids(small.search(["poet"], 1)) == [["c"]]


def test_searching_leaves_the_vocabulary_alone(small):
    before = found_ids(small.search(["Merano"], 3))
    new = "entirely new words nobody indexed"
    small.search([new], 3)
    assert found_ids(small.search([new, "Merano"], 3)) == [[], before[0]]


# --- k ---


@pytest.mark.parametrize("k", [4, 5, 1000])
def test_k_larger_than_the_corpus_gives_all_that_match(small, k):
    found = found_ids(small.search(["Dara Merano"], k))
    assert set(found[0]) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_never_more_than_k(small, k):
    assert len(small.search(["Dara Kallas Merano river"], k)[0]) == k


def test_negative_k_is_refused(small):
    with pytest.raises(ValueError, match="-1"):
        small.search(["Merano"], -1)


def test_corpus_of_one_passage_can_be_searched():
    one = Retriever.build(FILM_PASSAGES[:1])
    assert found_ids(one.search(["river", "Merano"], 3)) == [["a"], []]


# --- scores and passages ---


def test_scores_are_those_of_plain_bm25s(world, retriever, questions):
    asked = [q["question"] for q in questions["test"][:40]]
    check_against_plain_bm25s(retriever, world.passages, asked)


def test_of_equal_passages_those_win_that_win_in_bm25s():
    texts = ["river", "river holm", "river river", "holm", "holm holm river"] * 80
    passages = [
        {"id": str(n), "title": "", "text": text} for n, text in enumerate(texts)
    ]
    queries = ["river", "holm"]
    settings = {"stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    plain = bm25s.BM25(k1=0.9, b=0.4, backend="numba")
    plain.index(bm25s.tokenize(texts, **settings), show_progress=False)
    asked = bm25s.tokenize(queries, return_ids=False, **settings)
    rows, _ = plain.retrieve(asked, k=30, show_progress=False)
    wanted = [[str(row) for row in of_query] for of_query in rows.tolist()]
    found = Retriever.build(passages).search(queries, 30)
    assert found_ids(found) == wanted


def test_found_passages_are_the_corpus_own(small):
    for passage in small.search(["Dara Kallas Merano"], 4)[0]:
        assert passage.pop("score") > 0
        assert passage in FILM_PASSAGES
    assert all("score" not in passage for passage in FILM_PASSAGES)


# --- an index on disk ---


def test_opened_index_finds_what_the_built_one_finds(
    tmp_path, world, retriever, questions
):
    Retriever.build(world.passages, tmp_path / "index")
    opened = Retriever.open(tmp_path / "index", corpus=fingerprint(world.passages))
    asked = [q["question"] for q in questions["test"][:40]] + ["", "zyx", "the"]
    assert len(opened) == len(world.passages)
    assert opened.search(asked, 3) == retriever.search(asked, 3)


def test_missing_index_is_refused_and_the_notebook_that_makes_it_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="01_build_index"):
        Retriever.open(tmp_path / "none")


def test_open_or_build_builds_once_and_then_opens(tmp_path):
    built = Retriever.open_or_build(FILM_PASSAGES, tmp_path / "index")
    files = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "index").iterdir()}
    opened = Retriever.open_or_build(FILM_PASSAGES, tmp_path / "index")
    assert opened.search(["poems"], 1) == built.search(["poems"], 1)
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "index").iterdir()}
    assert after == files
    with pytest.raises(ValueError, match="built with corpus"):
        Retriever.open_or_build(FILM_PASSAGES[:2], tmp_path / "index")


def test_index_can_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    moved = Retriever.open(tmp_path / "elsewhere")
    assert found_ids(moved.search(["poems"], 1)) == [["c"]]


# --- what it leaves alone ---


def printed_by(program: str) -> str:
    """What `program` prints in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    return run.stdout.strip()


def test_importing_it_does_not_load_torch():
    program = "import sys; import kr1_utils.retriever; print('torch' in sys.modules)"
    assert printed_by(program) == "False"


def test_searching_leaves_the_threads_of_torch_alone(small):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small.search(["Merano"], 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a process"
)
def test_process_that_may_not_use_all_cpus_can_search():
    program = f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from kr1_utils.retriever import Retriever
print(Retriever.build({FILM_PASSAGES!r}).search(["poems"], 1)[0][0]["id"])
"""
    assert printed_by(program) == "c"
