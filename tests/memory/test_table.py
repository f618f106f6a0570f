"""The table of forecasts: what is shipped is what is simulated."""

import pandas as pd
import pytest

from kr1_utils.files import REPO
from kr1_utils.memory import config_of, table
from kr1_utils.memory.table import COLUMNS, eight_rows, original, profile_rows

SHIPPED = pd.read_csv(REPO / "data" / "reference" / "forecasts.csv")


@pytest.fixture(scope="module")
def config():
    return config_of(table.MODEL)


def training_gib(run):
    """By tokens of a response."""
    rows = SHIPPED[SHIPPED["run"] == run]
    return rows.set_index("response_tokens")["training_gib"]


@pytest.mark.parametrize(
    "run, tokens, rows",
    [("original", 1024, 1), ("original", 600, 1), ("original, two a GPU", 600, 2)],
)
def test_row_of_the_original_is_simulated_again(config, run, tokens, rows):
    simulated = original(config, tokens, rows)
    assert simulated == pytest.approx(training_gib(run)[tokens], abs=0.01)


def test_row_of_whole_batches_is_simulated_again(config):
    simulated = eight_rows(config, 1024)
    assert simulated == pytest.approx(training_gib("eight rows")[1024], abs=0.01)


@pytest.mark.parametrize("name, sizes", [("7b", (40, 80)), ("7b-4bit", (24,))])
def test_rows_of_a_profile_are_simulated_again(config, name, sizes):
    rows = profile_rows(config, name, (1024,), sizes)
    simulated = pd.DataFrame(rows, columns=COLUMNS).round(2)
    wanted = SHIPPED["run"].eq(name) & SHIPPED["response_tokens"].eq(1024)
    shipped = SHIPPED[wanted].reset_index(drop=True)
    pd.testing.assert_frame_equal(simulated, shipped)


@pytest.mark.parametrize("run", ["original", "original, two a GPU"])
def test_first_responses_of_the_original_fitted_its_gpus(run):
    assert training_gib(run)[270] < 40


def test_a_profile_fits_its_gpus_at_the_lengths_that_are_recommended():
    ours = SHIPPED[SHIPPED["run"].isin(["7b", "7b-4bit"])]
    needs = ours[["training_gib", "sampling_gib"]].max(axis=1)
    recommended = (ours["run"] == "7b") | (ours["response_tokens"] <= 8192)
    assert (needs <= ours["gpu_gib"])[recommended].all()


def test_a_folder_that_is_missing_is_refused_before_the_long_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        table.write_table(tmp_path / "missing" / "forecasts.csv")
