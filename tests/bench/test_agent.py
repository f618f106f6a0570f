"""The agent loop is measured: all ways do the same work, and all of it counts."""

import argparse

import pandas as pd
import pytest

from kr1_utils import corpus
from kr1_utils.bench import agent
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve

ADAPTER = REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint"


@pytest.fixture(scope="module")
def measured():
    """By way, with TRL's and without vLLM's."""
    profile = resolve("tiny")
    files = corpus.locate_files(profile)
    questions = corpus.load_split(files, "test", 6)
    passages = corpus.load_passages(files["passages"])
    return agent.measure_ways(profile, questions, passages, str(ADAPTER))


@pytest.fixture(scope="module")
def by_way(measured):
    return measured.set_index("way")


def test_the_table_is_as_the_shipped_one(measured):
    shipped = pd.read_csv(REPO / "data" / "reference" / "bench_agent.csv")
    assert list(measured.columns) == list(shipped.columns)
    assert list(measured["way"])[:3] == ["one_by_one", "batched", "trl_tools"]
    assert set(measured["profile"]) == {"tiny"}
    assert set(measured["questions"]) == {6}


def test_all_ways_lead_the_same_conversations(by_way):
    assert by_way["searches_per_question"].nunique() == 1
    assert by_way["searches_per_question"]["batched"] > 1.5


def test_what_is_computed_is_counted_against_the_floor(by_way):
    ratio = by_way["floor_ratio"]
    # Padding, and rows that are finished.
    assert 1 < ratio["batched"] < 1.5
    # Every prompt again in every turn.
    assert ratio["one_by_one"] > 1.5 and ratio["trl_tools"] > 1.5
    floors = by_way["tokens_computed_per_question"] / ratio
    assert floors.to_list() == pytest.approx([floors["one_by_one"]] * 3, rel=0.05)
    assert (by_way["questions_per_second"] > 0).all()


def test_no_questions_are_refused_before_the_model_is_loaded():
    arguments = argparse.Namespace(questions=0)
    with pytest.raises(ValueError, match="--questions must be at least 1"):
        agent.measure(arguments)
