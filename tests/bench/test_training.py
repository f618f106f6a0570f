"""Updates are measured on the same batches, in one pass and in parts."""

import argparse

import pandas as pd
import pytest
import torch

from kr1_utils.bench import training
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve

# Of the profile's rows and the benchmark's budget: all, as the shipped table has them,
# or a fourth.
SIZES = [1, 4]


@pytest.fixture(scope="module", params=SIZES, ids="1/{}".format)
def measured(request):
    rows = resolve("tiny").grpo["per_device_train_batch_size"] // request.param
    profile = resolve("tiny", {"per_device_train_batch_size": rows})
    budget = training.BUDGET // request.param
    return training.measure_updates(profile, budget, repeats=1)


@pytest.mark.slow
def test_the_table_is_as_the_shipped_one(measured):
    shipped = pd.read_csv(REPO / "data" / "reference" / "bench_training.csv")
    assert list(measured.columns) == list(shipped.columns)
    same = ["lengths", "mean_tokens", "way", "passes"]
    pd.testing.assert_frame_equal(measured[same], shipped[same])
    assert (measured["seconds"] > 0).all()


@pytest.mark.slow
def test_parts_of_a_batch_keep_their_memory_while_responses_grow(measured):
    peak = measured.set_index(["lengths", "mean_tokens", "way"])["peak_mib"]
    assert peak["mixed", 120, "trl"] > 1.5 * peak["mixed", 40, "trl"]
    # The head is applied to responses alone, so a part of long ones, whose prompts take
    # little of the budget, is the fullest.
    assert peak["mixed", 120, "parts"] < 1.2 * peak["equal", 120, "parts"]
    assert peak["mixed", 120, "parts"] < 0.3 * peak["mixed", 120, "trl"]
    passes = measured.set_index("way")["passes"]
    assert (passes["parts"] > 1).all() and (passes["trl"] == 1).all()


@pytest.mark.parametrize("kind", ["equal", "mixed"])
def test_responses_have_the_mean_that_is_said(kind):
    lengths = training.response_lengths(kind, mean=80, count=64)
    assert sum(lengths) / len(lengths) == 80
    assert (len(set(lengths)) == 1) == (kind == "equal")


def test_peak_counts_what_was_made_and_let_go():
    if torch.cuda.is_available():
        pytest.skip("counts the GPU's memory there")

    def work():
        held = torch.zeros(3 * 2**20, dtype=torch.uint8)
        del held
        torch.zeros(2**20, dtype=torch.uint8)

    assert training.peak_mib(work) == pytest.approx(3, rel=0.01)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="Unknown profile"):
        training.measure(argparse.Namespace(profile="8b"))
