"""Asking is measured from the command on, as a reader starts it."""

import argparse

import pandas as pd
import pytest

from kr1_utils.bench import ask
from kr1_utils.files import REPO

QUESTIONS = ["Who directed The Lonely Voyage?"] * 3


def test_the_first_answer_is_told_from_the_next_ones():
    table = ask.measure_starts("tiny", [], QUESTIONS, starts=1)
    shipped = pd.read_csv(REPO / "data" / "reference" / "bench_ask.csv")
    assert list(table.columns) == list(shipped.columns)
    rows = table.set_index("answer")
    assert rows["measured"].to_dict() == {"first": 1, "next": 2}
    # It loads all libraries, the model and the index.
    assert rows["seconds"]["first"] > rows["slowest"]["next"] > 0
    assert (rows["slowest"] >= rows["seconds"]).all()
    assert rows["cpu_seconds"]["first"] > rows["cpu_seconds"]["next"]


def test_a_command_that_fails_is_no_measurement():
    words = ["--data", "no/such/data"]
    with pytest.raises(RuntimeError, match="before it answered"):
        ask.measure_starts("tiny", words, QUESTIONS, starts=1)


@pytest.mark.parametrize("name", ["starts", "questions"])
def test_nothing_to_measure_is_refused(name):
    numbers = {"starts": 1, "questions": 1, name: 0}
    with pytest.raises(ValueError, match=f"--{name} must be at least 1"):
        ask.measure(argparse.Namespace(profile="tiny", run="", data="", **numbers))
