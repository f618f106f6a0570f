"""Every engine that is measured finds what it indexed."""

import json

import pytest

from kr1_utils.bench import bm25_engines, made_up


@pytest.fixture(scope="module")
def passages():
    return list(made_up.passages(300))


@pytest.fixture(scope="module")
def corpus(passages, tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    file.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    return file


@pytest.mark.parametrize("name", bm25_engines.ENGINES)
def test_engine_finds_a_passage_by_its_own_words(name, corpus, passages, tmp_path):
    search = bm25_engines.ENGINES[name](corpus, tmp_path / "index")
    asked = [passages[number] for number in (7, 250)]
    queries = [passage["text"].replace(",", "") for passage in asked]
    found = search(queries)
    assert [best[0]["id"] for best in found] == [p["id"] for p in asked]
    assert len(search(queries[:1])) == 1
    assert len(found[0]) <= bm25_engines.PASSAGES_PER_QUERY


def test_one_by_one_answers_the_first_queries_of_a_batch(corpus, tmp_path):
    search = bm25_engines.bm25s_one_by_one(corpus, tmp_path / "index")
    assert len(search(["baben"] * 100)) == bm25_engines.ONE_BY_ONE_QUERIES
