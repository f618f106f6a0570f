"""The index: the same results however it is asked, and never one that was made otherwise."""

import json
import os
import shutil
import string
import subprocess
import sys

import bm25s
import numpy as np
import pytest
import Stemmer
import torch
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import retriever
from kr1_utils.retriever import MANIFEST, Retriever, fingerprint

CORPUS = [
    {"id": "a", "title": "Silent River", "text": "Silent River was directed by Dara Kallas."},
    {"id": "b", "title": "Dara Kallas", "text": "Dara Kallas was born in Merano. She was a painter."},
    {"id": "c", "title": "Dara Kallas (poet)", "text": "Dara Kallas was born in Ostby. She wrote poems."},
    {"id": "d", "title": "Merano", "text": "Merano lies in Aldoria. The river Holm flows through Merano."},
]
WORDS = ["silent", "rivers", "Dara", "KALLAS", "Merano", "the", "of", "zyx", "poems", "painter", ",", "ł"]
queries_of_words = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=8)


@pytest.fixture(scope="module")
def small():
    return Retriever.build(CORPUS)


@pytest.fixture
def folder(tmp_path):
    Retriever.build(CORPUS, tmp_path / "index")
    return tmp_path / "index"


def ids(found):
    return [[p["id"] for p in passages] for passages in found]


@given(queries_of_words, st.integers(1, 6))
def test_batch_finds_what_single_searches_find(small, queries, k):
    assert small.search(queries, k) == [small.search([q], k)[0] for q in queries]


@given(st.lists(st.text(alphabet=string.printable + "łżé東\u200b", max_size=30), max_size=5))
def test_no_query_crashes_and_each_gets_its_list(small, queries):
    found = small.search(queries, 3)
    assert len(found) == len(queries)
    for passages in found:
        scores = [p["score"] for p in passages]
        assert scores == sorted(scores, reverse=True) and all(s > 0 for s in scores)


def test_batch_of_real_questions_finds_what_single_searches_find(retriever, questions):
    asked = [q["question"] for q in questions["test"][:40]]
    assert retriever.search(asked, 3) == [retriever.search([q], 3)[0] for q in asked]


def test_duplicates_get_equal_results_in_their_places(small):
    found = ids(small.search(["Merano", "silent river", "Merano"], 2))
    assert found[0] == found[2] and found[0][0] == "d" and found[1][0] == "a"


@pytest.mark.parametrize("query", ["", " ", "the of and", "?!", "zyx", "東京"])
def test_query_without_a_known_word_finds_nothing(small, query):
    assert small.search([query, "Merano"], 3)[0] == []
    assert small.search([query], 3) == [[]]


@pytest.mark.parametrize("query", ["", "the of and", "zyx"])
def test_query_without_a_known_word_finds_no_empty_passage(query):
    corpus = [*CORPUS, {"id": "e", "title": "", "text": ""}, {"id": "f", "title": "The", "text": "of and"}]
    assert Retriever.build(corpus).search([query], 6) == [[]]


def test_no_queries_give_no_results(small):
    assert small.search([], 3) == []


def test_unknown_words_beside_known_ones_change_nothing(small):
    assert ids(small.search(["zyx Merano qqq"], 3)) == ids(small.search(["Merano"], 3))


@pytest.mark.parametrize("k", [4, 5, 1000])
def test_k_larger_than_the_corpus_gives_all_that_match(small, k):
    assert set(ids(small.search(["Dara Merano"], k))[0]) == {"a", "b", "c", "d"}


def test_passages_that_share_no_word_with_the_query_are_left_out(small):
    assert ids(small.search(["Aldoria", "poems"], 4)) == [["d"], ["c"]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_never_more_than_k(small, k):
    assert len(small.search(["Dara Kallas Merano river"], k)[0]) == k


def test_corpus_of_one_passage_can_be_searched():
    one = Retriever.build(CORPUS[:1])
    assert ids(one.search(["river", "Merano"], 3)) == [["a"], []]


def test_queries_are_stemmed_like_passages(small):
    assert ids(small.search(["poem"], 1)) == ids(small.search(["poems"], 1)) == [["c"]]


def test_titles_are_searched_too(small):
    assert ids(small.search(["poet"], 1)) == [["c"]]


def test_searching_leaves_the_vocabulary_alone(small):
    before = ids(small.search(["Merano"], 3))
    small.search(["entirely new words nobody indexed"], 3)
    assert ids(small.search(["entirely new words nobody indexed", "Merano"], 3)) == [[], before[0]]


def test_scores_are_those_of_plain_bm25s(world, retriever, questions):
    asked = [q["question"] for q in questions["test"][:25]]
    stemmer = Stemmer.Stemmer("english")
    texts = [f"{p['title']} {p['text']}" for p in world.passages]
    plain = bm25s.BM25(k1=0.9, b=0.4)
    plain.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False),
                show_progress=False)
    tokens = bm25s.tokenize(asked, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
    for query, found in zip(tokens, retriever.search(asked, 5), strict=True):
        scores = plain.get_scores(query)
        assert np.allclose([p["score"] for p in found], np.sort(scores)[::-1][:5], atol=1e-4)
        number = {p["id"]: i for i, p in enumerate(world.passages)}
        assert np.allclose([p["score"] for p in found], [scores[number[p["id"]]] for p in found], atol=1e-4)


def test_opened_index_finds_what_the_built_one_finds(tmp_path, world, retriever, questions):
    Retriever.build(world.passages, tmp_path / "index")
    opened = Retriever.open(tmp_path / "index", corpus=fingerprint(world.passages))
    asked = [q["question"] for q in questions["test"][:40]] + ["", "zyx", "the"]
    assert len(opened) == len(world.passages)
    assert opened.search(asked, 3) == retriever.search(asked, 3)


def test_found_passages_are_the_corpus_own(small):
    for passage in small.search(["Dara Kallas Merano"], 4)[0]:
        score = passage.pop("score")
        assert passage in CORPUS and score > 0
    assert all("score" not in p for p in CORPUS)


def test_building_again_replaces_our_own_index(folder):
    Retriever.build(CORPUS[:2], folder)
    assert len(Retriever.open(folder)) == 2


def test_no_part_folder_stays_behind(folder):
    assert [f.name for f in folder.parent.iterdir()] == ["index"]


@pytest.mark.parametrize("passages", [[], [{"id": "a", "title": "", "text": ""}],
                                      [{"id": "a", "title": "The", "text": "of and"}]])
def test_corpus_with_nothing_to_index_is_refused(passages):
    with pytest.raises(ValueError, match="no passage to index|No passage holds a word"):
        Retriever.build(passages)


def test_missing_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No index at .*01_build_index"):
        Retriever.open(tmp_path / "none")


def index_files():
    return ["data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json",
            "params.index.json", "corpus.jsonl", "corpus.mmindex.json", "vocab.tokenizer.json"]


def test_list_of_index_files_in_this_test_is_whole(folder):
    assert {f.name for f in folder.iterdir()} == {*index_files(), MANIFEST}


@pytest.mark.parametrize("name", index_files())
def test_index_without_one_of_its_files_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"incomplete .{name}"):
        Retriever.open(folder)


@pytest.mark.parametrize("name", index_files())
def test_index_with_a_truncated_file_is_refused(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"incomplete .{name}"):
        Retriever.open(folder)


@pytest.mark.parametrize("text", [None, "", '{"made_by": "kr1_', "[]", '"kr1_utils"', '{"made_by": "x"}'])
def test_index_without_a_whole_manifest_is_refused(folder, text):
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="not a complete index|another program's index"):
        Retriever.open(folder)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a complete index"):
        Retriever.open(tmp_path)


def test_index_of_plain_bm25s_is_refused(tmp_path):
    plain = bm25s.BM25(k1=0.9, b=0.4)
    plain.index(bm25s.tokenize(["one text", "two texts"], show_progress=False), show_progress=False)
    plain.save(tmp_path / "index")
    with pytest.raises(ValueError, match="not a complete index"):
        Retriever.open(tmp_path / "index")


def test_index_with_another_stemmer_is_refused(tmp_path):
    Retriever.build(CORPUS, tmp_path / "index", stemmer="german")
    with pytest.raises(ValueError, match="built with stemmer 'german', not 'english'"):
        Retriever.open(tmp_path / "index")
    assert len(Retriever.open(tmp_path / "index", stemmer="german")) == len(CORPUS)


def test_index_with_other_stop_words_is_refused(tmp_path):
    Retriever.build(CORPUS, tmp_path / "index", stop_words="de")
    with pytest.raises(ValueError, match="built with stop_words 'de', not 'en'"):
        Retriever.open(tmp_path / "index")


def test_index_with_other_constants_is_refused(folder, monkeypatch):
    monkeypatch.setattr(retriever, "BM25", {"k1": 1.5, "b": 0.75})
    with pytest.raises(ValueError, match="built with bm25 .*0.9.*, not .*1.5"):
        Retriever.open(folder)


def test_index_over_another_corpus_is_refused(folder):
    assert len(Retriever.open(folder, corpus=fingerprint(CORPUS))) == len(CORPUS)
    with pytest.raises(ValueError, match="built with corpus"):
        Retriever.open(folder, corpus=fingerprint(CORPUS[:3]))


@pytest.mark.parametrize("key", ["id", "title", "text"])
def test_fingerprint_changes_with_every_part_of_a_passage(key):
    changed = [{**CORPUS[0], key: CORPUS[0][key] + "x"}, *CORPUS[1:]]
    assert fingerprint(changed) != fingerprint(CORPUS) != fingerprint(CORPUS[::-1])


@pytest.mark.parametrize("name", ["notes.txt", MANIFEST])
def test_building_does_not_delete_a_foreign_folder(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(json.dumps({"made_by": "somebody else"}))
    with pytest.raises(ValueError, match="choose another folder"):
        Retriever.build(CORPUS, tmp_path / "mine")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == [name]


def test_index_can_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert ids(Retriever.open(tmp_path / "elsewhere").search(["poems"], 1)) == [["c"]]


def test_searching_leaves_the_threads_of_torch_alone(small):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small.search(["Merano"], 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a process")
@pytest.mark.parametrize("parallel_from", [0, 100_000])
def test_process_that_may_not_use_all_cpus_can_search(parallel_from):
    program = f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from kr1_utils import retriever
retriever.PARALLEL_FROM = {parallel_from}
print(retriever.Retriever.build({CORPUS!r}).search(["poems"], 1)[0][0]["id"])
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "c"
