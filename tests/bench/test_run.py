"""What was measured is printed, and kept beside what was measured before."""

import argparse
import json
from dataclasses import replace

import pandas as pd
import pytest

from kr1_utils.bench import run
from kr1_utils.files import REPO

REFERENCE = REPO / "data" / "reference"
AGENT = pd.read_csv(REFERENCE / "bench_agent.csv").query("profile == 'tiny'")
RETRIEVAL = pd.read_csv(REFERENCE / "bench_retrieval.csv")
TRAINING = pd.read_csv(REFERENCE / "bench_training.csv")
TABLES = {"agent": AGENT, "retrieval": RETRIEVAL, "training": TRAINING}


@pytest.fixture(autouse=True)
def measured_before(monkeypatch):
    """Each benchmark returns its table, and prints something as libraries do."""

    def measure(arguments):
        print("Loading …")
        return TABLES[arguments.what]

    for what, benchmark in run.BENCHMARKS.items():
        monkeypatch.setitem(run.BENCHMARKS, what, replace(benchmark, measure=measure))


def measure(what, json=False, csv=None):
    return run.run(argparse.Namespace(what=what, json=json, csv=csv))


def printed_json(capsys, what):
    measure(what, json=True)
    return json.loads(capsys.readouterr().out)


def test_the_agent_is_printed_with_how_many_times_faster_each_way_is(capsys):
    assert measure("agent") == 0
    out, err = capsys.readouterr()
    header, first, batched, *_ = out.splitlines()
    assert header.split()[-1] == "times"
    assert first.split()[-1] == "1.00"
    assert batched.split()[-1] == "7.19"
    assert "Loading" not in out and "Loading" in err


def test_retrieval_is_compared_at_its_largest_batch(capsys):
    measure("retrieval")
    last = [row.split()[-1] for row in capsys.readouterr().out.splitlines()]
    assert last == ["times", "1.00", "122.52", "151.49", "79.79"]


def test_training_is_compared_with_trl_on_the_same_batch(capsys):
    measure("training")
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "parts/trl"
    ratios = [float(row.split()[-1]) for row in rows]
    assert set(ratios[::2]) == {1.0}
    seconds = TRAINING["seconds"].tolist()
    assert ratios[1] == round(seconds[1] / seconds[0], 2)
    assert ratios[-1] == round(seconds[-1] / seconds[-2], 2)


def test_json_of_the_agent_has_the_numbers_of_each_way(capsys):
    result = printed_json(capsys, "agent")
    assert result["profile"] == "tiny" and result["questions"] == 256
    assert result["machine"] == "CPU x86_64, 2 cores"
    assert list(result["engines"]) == list(AGENT["way"])
    assert set(result["engines"]["batched"]) == {
        "questions_per_second",
        "tokens_computed_per_question",
        "floor_ratio",
        "searches_per_question",
    }


def test_json_of_retrieval_has_speeds_by_batch_size(capsys):
    result = printed_json(capsys, "retrieval")
    assert result["passages"] == 400_000
    ours = result["engines"]["ours"]
    assert set(ours["queries_per_second"]) == {"1", "64", "512"}
    assert ours["peak_mib"] == RETRIEVAL.set_index("way")["peak_mib"]["ours"]


def test_json_of_training_has_a_row_for_each_batch_and_way(capsys):
    result = printed_json(capsys, "training")
    assert len(result["rows"]) == len(TRAINING)
    assert result["rows"][0]["way"] == "trl"


@pytest.mark.parametrize("what", TABLES)
def test_csv_is_written_and_written_again_without_doubling(what, tmp_path):
    file = tmp_path / "bench.csv"
    measure(what, csv=file)
    measure(what, csv=file)
    table = TABLES[what].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(file), table)


@pytest.mark.parametrize(
    "what, column, other",
    [
        ("agent", "profile", "other"),
        ("retrieval", "passages", 5),
        ("training", "lengths", "other"),
    ],
)
def test_csv_keeps_rows_of_other_profiles_and_sizes(what, column, other, tmp_path):
    file = tmp_path / "bench.csv"
    TABLES[what].assign(**{column: other}).to_csv(file, index=False)
    measure(what, csv=file)
    kept = pd.read_csv(file)
    assert len(kept) == 2 * len(TABLES[what])
    assert list(kept.columns) == list(TABLES[what].columns)
    assert set(kept[column]) == {other, *TABLES[what][column]}


def test_a_csv_of_something_else_is_refused_before_the_measurement(tmp_path, capsys):
    file = tmp_path / "other.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column profile"):
        measure("agent", csv=file)
    with pytest.raises(FileNotFoundError, match="no folder"):
        measure("agent", csv=tmp_path / "missing" / "bench.csv")
    assert "Loading" not in capsys.readouterr().err
