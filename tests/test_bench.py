"""Benchmarks: they count what is really computed, and let everyone do the same work."""

import inspect
import json
import runpy

import pandas as pd
import pytest
from trl import GRPOTrainer

from kr1_utils import corpus
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve

ADAPTER = str(REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint")


@pytest.fixture(scope="module")
def measured():
    profile = resolve("tiny")
    where = corpus.locate_files(profile)
    measure = runpy.run_path(str(REPO / "data" / "reference" / "bench_agent.py"))[
        "agent"
    ]
    return measure(
        profile,
        corpus.load_split(where, "test", 6),
        corpus.load_passages(where["passages"]),
        ADAPTER,
    )


def test_all_ways_lead_the_same_conversations(measured):
    assert list(measured)[:3] == ["one_by_one", "batched", "trl_tools"]
    assert len({row["searches_per_question"] for row in measured.values()}) == 1
    assert measured["batched"]["searches_per_question"] > 1.5


def test_what_is_computed_is_counted_against_the_floor(measured):
    one, batch, trl = (measured[way] for way in ("one_by_one", "batched", "trl_tools"))
    assert 1 < batch["floor_ratio"] < 1.5  # padding, and rows that are finished
    assert (
        one["floor_ratio"] > 1.5 and trl["floor_ratio"] > 1.5
    )  # every prompt again in every turn
    for row in measured.values():
        assert row["questions_per_second"] > 0
        floor = row["tokens_computed_per_question"] / row["floor_ratio"]
        assert floor == pytest.approx(
            one["tokens_computed_per_question"] / one["floor_ratio"], rel=0.05
        )


def test_parts_of_a_batch_keep_their_memory_while_responses_grow():
    made = runpy.run_path(str(REPO / "data" / "reference" / "bench_training.py"))
    rows = made["training"](resolve("tiny"), 4096, repeats=1)
    shipped = pd.read_csv(REPO / "data" / "reference" / "bench_training.csv")
    assert list(shipped.columns) == [*rows[0], "machine"] and len(shipped) == len(rows)
    peak = {(r["lengths"], r["mean_tokens"], r["way"]): r["peak_mib"] for r in rows}
    assert peak["mixed", 120, "trl"] > 1.5 * peak["mixed", 40, "trl"]
    assert peak["mixed", 120, "parts"] < 1.2 * peak["equal", 40, "parts"]
    assert all(r["passes"] > 1 for r in rows if r["way"] == "parts")


def test_command_prints_json_and_writes_the_table(
    tmp_path, capsys, measured, monkeypatch
):
    monkeypatch.setattr(
        bench.runpy,
        "run_path",
        lambda _: {  # measured above
            "main": lambda args: (
                {"profile": "tiny", "questions": args.questions},
                measured,
            )
        },
    )
    bench.main(
        ["agent", "--questions", "6", "--json", "--csv", str(tmp_path / "bench.csv")]
    )
    result = json.loads(capsys.readouterr().out)
    assert result["engines"]["batched"].keys() >= {
        "questions_per_second",
        "tokens_computed_per_question",
        "floor_ratio",
    }
    rows = pd.read_csv(tmp_path / "bench.csv")
    assert list(rows["way"]) == list(measured) and set(rows["questions"]) == {6}
    rows["profile"] = "other"
    rows.to_csv(tmp_path / "bench.csv", index=False)
    bench.main(["agent", "--questions", "6", "--csv", str(tmp_path / "bench.csv")])
    assert set(pd.read_csv(tmp_path / "bench.csv")["profile"]) == {"other", "tiny"}
    assert "batched" in capsys.readouterr().out


def test_retrieval_is_measured_side_by_side(capsys, tmp_path):
    bench.main(
        [
            "retrieval",
            "--passages",
            "3000",
            "--json",
            "--csv",
            str(tmp_path / "bench.csv"),
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert result["passages"] == 3000
    assert list(result["engines"]) == [
        "bm25s_one_by_one",
        "bm25s_plain",
        "ours",
        "tantivy",
    ]
    for row in result["engines"].values():
        assert row["passages_per_second"] > 0 and row["peak_mib"] > 0
        assert set(row["queries_per_second"]) == {"1", "64", "512"}
    agreement = {
        name: row["top10_agreement"] for name, row in result["engines"].items()
    }
    assert (
        agreement["bm25s_plain"] == 1
        and agreement["ours"] > 0.98 > agreement["tantivy"] > 0.2
    )
    shipped = pd.read_csv(REPO / "data" / "reference" / "bench_retrieval.csv")
    assert list(pd.read_csv(tmp_path / "bench.csv").columns) == list(shipped.columns)


def test_made_up_passages_have_the_statistics_of_real_ones():
    make = runpy.run_path(str(REPO / "data" / "reference" / "bench_retrieval.py"))
    made = list(make["passages"](2000))
    assert made == list(make["passages"](2000)) and len({p["id"] for p in made}) == 2000
    words = [w for p in made for w in p["text"].split()]
    stop = [w.strip(",").lower() in make["STOPWORDS_EN"] for w in words]
    assert (
        60 < len(words) / len(made) < 85
    )  # 79 in real ones, of which a few are very long
    assert abs(sum(stop) / len(stop) - make["STOP"]) < 0.02
    distinct = {w.lower().strip(",") for w, s in zip(words, stop) if not s}
    assert (
        0.2 < len(distinct) / stop.count(False) < 0.35
    )  # in as many words of real text 0.22


def test_private_method_of_trl_that_is_called_is_as_it_was():
    assert list(inspect.signature(GRPOTrainer._generate).parameters) == [
        "self",
        "prompts",
    ]
    source = inspect.getsource(GRPOTrainer)
    assert "self._sync_tool_dicts[" in source and "self._async_tool_dicts[" in source
