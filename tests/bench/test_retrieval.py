"""BM25 engines are measured side by side, each in a process of its own."""

import argparse
import importlib
import json

import pandas as pd
import pytest

from kr1_utils.bench import made_up, retrieval
from kr1_utils.files import REPO

SHIPPED = pd.read_csv(REPO / "data" / "reference" / "bench_retrieval.csv")


@pytest.mark.slow
def test_engines_are_measured_side_by_side():
    table = retrieval.measure(argparse.Namespace(passages=3000, corpus=None))
    assert list(table.columns) == list(SHIPPED.columns)
    assert list(table["way"]) == list(SHIPPED["way"])
    assert set(table["passages"]) == {3000}
    speeds = [f"queries_per_second_{size}" for size in (1, 64, 512)]
    numbers = ["passages_per_second", "disk_mib", "peak_mib", *speeds]
    assert (table[numbers] > 0).all(axis=None)
    agreement = table.set_index("way")["top10_agreement"]
    assert agreement["bm25s_plain"] == 1
    assert agreement["ours"] > 0.98 > agreement["tantivy"] > 0.2


def test_no_passages_are_refused():
    with pytest.raises(ValueError, match="--passages must be at least 1"):
        retrieval.measure_engines(0)


def test_a_library_that_is_missing_is_named_before_the_first_engine(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"kr1-utils\[bench\]"):
        retrieval.measure_engines(1000)


def test_an_engine_that_fails_is_an_error(tmp_path):
    file = tmp_path / "passages.jsonl"
    file.write_text("no JSON")
    with pytest.raises(RuntimeError, match="ours ended with status 1"):
        retrieval.run_apart("ours", file, 1)


def test_passages_of_a_file_are_numbered_again(tmp_path):
    file = tmp_path / "passages.jsonl"
    passages = [{"id": "x", "title": "a", "text": "b"}] * 2
    assert retrieval.write_corpus(iter(passages), file) == 2
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0", "1"]
    assert rows[0]["text"] == "b"


def test_agreement_is_over_the_queries_that_both_answered():
    standard = [[1, 2], [3, 4], [5]]
    assert retrieval.agreement([[2, 1], [3, 9]], standard) == 0.75
    assert retrieval.agreement([[7]], [[]]) == 0


def test_queries_are_words_of_passages_without_stop_words(tmp_path):
    file = tmp_path / "passages.jsonl"
    retrieval.write_corpus(made_up.passages(100), file)
    queries = retrieval.make_queries(file)
    assert queries == retrieval.make_queries(file)
    assert len(queries) == retrieval.QUERIES
    assert {len(query.split()) for query in queries} == {retrieval.WORDS_PER_QUERY}


def test_a_batch_size_is_measured_until_its_time_is_up(monkeypatch):
    monkeypatch.setattr(retrieval, "SECONDS_PER_BATCH_SIZE", 0)
    asked = []

    def search(queries):
        asked.append(queries)
        return [[{"id": "4"}] for _ in queries]

    speed, top = retrieval.measure_search(search, ["a", "b", "c"], size=2)
    assert asked == [["a", "b"]]
    assert top == [[4], [4]]
    assert speed > 0


def test_memory_of_a_process_that_has_ended_is_none():
    assert retrieval.anonymous_mib(2**22 + 1) == 0


def test_index_memory_is_printed_as_rows_of_its_csv(capsys):
    retrieval.main(["index", "1500"])
    header, row = capsys.readouterr().out.splitlines()
    shipped = pd.read_csv(REPO / "data" / "reference" / "index_memory.csv")
    assert header.split(",") == list(shipped.columns)
    numbers = [int(number) for number in row.split(",")]
    assert numbers[0] == 1500
    assert all(number > 0 for number in numbers)
