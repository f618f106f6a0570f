"""Benchmarks: they count what is really computed, and let everyone do the same work."""

import inspect
import json
import runpy

import pandas as pd
import pytest
from trl import GRPOTrainer

from kr1_utils import bench, data
from kr1_utils.profiles import REPO, resolve

ADAPTER = str(REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint")


@pytest.fixture(scope="module")
def measured():
    profile = resolve("tiny")
    where = data.sources(profile)
    return bench.agent(profile, data.questions_of(where, "test", 6), data.load_passages(where["passages"]),
                       ADAPTER)


def test_all_ways_lead_the_same_conversations(measured):
    assert list(measured)[:3] == ["one_by_one", "batched", "trl_tools"]
    assert len({row["searches_per_question"] for row in measured.values()}) == 1
    assert measured["batched"]["searches_per_question"] > 1.5


def test_what_is_computed_is_counted_against_the_floor(measured):
    one, batch, trl = (measured[way] for way in ("one_by_one", "batched", "trl_tools"))
    assert 1 < batch["floor_ratio"] < 1.5  # padding, and rows that are finished
    assert one["floor_ratio"] > 1.5 and trl["floor_ratio"] > 1.5  # every prompt again in every turn
    for row in measured.values():
        assert row["questions_per_second"] > 0
        floor = row["tokens_computed_per_question"] / row["floor_ratio"]
        assert floor == pytest.approx(one["tokens_computed_per_question"] / one["floor_ratio"], rel=0.05)


def test_parts_of_a_batch_keep_their_memory_while_responses_grow():
    made = runpy.run_path(str(REPO / "data" / "reference" / "bench_training.py"))
    rows = made["training"](resolve("tiny"), 4096, repeats=1)
    shipped = pd.read_csv(REPO / "data" / "reference" / "bench_training.csv")
    assert list(shipped.columns) == [*rows[0], "machine"] and len(shipped) == len(rows)
    peak = {(r["lengths"], r["mean_tokens"], r["way"]): r["peak_mib"] for r in rows}
    assert peak["mixed", 120, "trl"] > 1.5 * peak["mixed", 40, "trl"]
    assert peak["mixed", 120, "parts"] < 1.2 * peak["equal", 40, "parts"]
    assert all(r["passes"] > 1 for r in rows if r["way"] == "parts")


def test_command_prints_json_and_writes_the_table(tmp_path, capsys, measured, monkeypatch):
    monkeypatch.setattr(bench, "agent", lambda *_: measured)
    bench.main(["agent", "--questions", "6", "--json", "--csv", str(tmp_path / "bench.csv")])
    result = json.loads(capsys.readouterr().out)
    assert result["engines"]["batched"].keys() >= {
        "questions_per_second", "tokens_computed_per_question", "floor_ratio"}
    rows = pd.read_csv(tmp_path / "bench.csv")
    assert list(rows["way"]) == list(measured) and set(rows["questions"]) == {6}
    rows["profile"] = "other"
    rows.to_csv(tmp_path / "bench.csv", index=False)
    bench.main(["agent", "--questions", "6", "--csv", str(tmp_path / "bench.csv")])
    assert set(pd.read_csv(tmp_path / "bench.csv")["profile"]) == {"other", "tiny"}
    assert "batched" in capsys.readouterr().out


def test_private_method_of_trl_that_is_called_is_as_it_was():
    assert list(inspect.signature(GRPOTrainer._generate).parameters) == ["self", "prompts"]
    source = inspect.getsource(GRPOTrainer)
    assert "self._sync_tool_dicts[" in source and "self._async_tool_dicts[" in source
