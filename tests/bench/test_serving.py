"""Serving is measured beside searching in process, and trainings with both."""

import os
import subprocess
import time

import pandas as pd
import pytest

from kr1_utils.bench import serving
from kr1_utils.bench.run import BENCHMARKS
from kr1_utils.files import REPO
from kr1_utils.retriever import RemoteRetriever

SHIPPED = pd.read_csv(REPO / "data" / "reference" / "bench_serving.csv")


def test_requests_have_a_size_and_begin_anew_after_the_last_query():
    made = serving.requests(["a", "b", "c"], size=2, count=4)
    assert made == [["a", "b"], ["c", "a"], ["b", "c"], ["a", "b"]]


@pytest.mark.parametrize("clients, seconds", [(1, 0.8), (8, 0.1)])
def test_clients_search_at_once(clients, seconds):
    asked = []

    def search(queries):
        asked.append(queries)
        time.sleep(0.1)

    batches = [[str(number)] for number in range(8)]
    took, times = serving.send(search, batches, clients)
    assert sorted(asked) == batches
    assert took >= seconds
    assert len(times) == 8 and min(times) >= 0.1
    # Not one after the other.
    assert clients == 1 or took < sum(times)


def test_the_best_round_is_the_fastest_in_each_column():
    rounds = [
        {"queries_per_second_1": 10, "milliseconds_50": 3},
        {"queries_per_second_1": 12, "milliseconds_50": 4},
    ]
    assert serving.best(rounds) == {"queries_per_second_1": 12, "milliseconds_50": 3}


def test_an_index_is_served_within_the_block_and_not_after_it(tmp_path, retriever):
    folder = tmp_path / "index"
    type(retriever).build([{"id": "1", "title": "Merano", "text": "town"}], folder)
    with serving.served(folder) as (url, process_id):
        assert RemoteRetriever(url).search(["Merano"], 1)[0][0]["id"] == "1"
        assert serving.proportional_mib(process_id) > 10
    with pytest.raises(RuntimeError, match="Connection refused"):
        RemoteRetriever(url, patience=0).search(["Merano"], 1)
    never = pytest.raises(RuntimeError, match="The server ended with status 2")
    with never, serving.served(tmp_path / "none"):
        pass


def test_memory_that_processes_share_is_counted_once():
    mine = serving.proportional_mib(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as process:
        both = serving.proportional_mib(os.getpid())
        process.kill()
    assert 10 < mine < both + 1
    assert serving.proportional_mib(2**22 + 1) == 0


def test_no_passages_are_refused():
    with pytest.raises(ValueError, match="--passages must be at least 1"):
        serving.measure_serving(0)


@pytest.mark.slow
def test_all_ways_are_measured_side_by_side(monkeypatch):
    monkeypatch.setattr(serving, "REQUESTS", {1: 64, 64: 4})
    table = serving.measure_serving(2000, rounds=1)
    assert list(table.columns) == list(SHIPPED.columns)
    assert list(table["way"]) == list(SHIPPED["way"])
    searching = table[~table["way"].str.startswith("trainings")]
    speeds = searching.filter(like="queries_per_second")
    assert (speeds > 0).all(axis=None)
    assert (searching["milliseconds_50"] <= searching["milliseconds_99"]).all()
    trainings = table[table["way"].str.startswith("trainings")]
    assert (trainings["memory_mib"] > 100).all()
    own, shared = trainings["disk_mib"]
    assert own == 2 * shared
    assert BENCHMARKS["serving"].for_print(table)["times"].iloc[0] == 1.0
