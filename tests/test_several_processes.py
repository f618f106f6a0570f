"""Training in two processes: it computes what one does, and none waits for ever."""

import csv
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from kr1_utils.files import REPO

WORKER = REPO / "tests" / "train_worker.py"
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--main_process_port=0",
    "--num_processes=2",
]
# DeepSpeed is not among the requirements; where it is installed, it is tested, too.
SPREAD = ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)]
if find_spec("deepspeed"):
    SPREAD += ["zero2", "zero3"]
COLUMNS = (
    "loss",
    "grad_norm",
    "reward",
    "entropy",
    "frac_reward_zero_std",
    "searches",
)


def work(folder, mode, how="alone"):
    """Run the worker to its end; a deadlock is a failure, not a test without end.

    Returns:
        the rows of its log, and the weights it trained.
    """
    launch = []
    if how != "alone":
        config = REPO / "data" / "accelerate" / f"{how}.yaml"
        launch = [*LAUNCH, "--config_file", str(config)]
    done = subprocess.run(
        [sys.executable, *launch, str(WORKER), str(folder), mode],
        text=True,
        capture_output=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HOW": how},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = folder / f"{mode}_{how}"
    with (out / "train_log.csv").open(newline="") as lines:
        log = list(csv.DictReader(lines))
    return log, torch.load(out / "weights.pt", weights_only=True)


def steps(log):
    return [row["step"] for row in log]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Rollouts kept in a file, and what one process makes of them: folder, log,
    weights."""
    folder = tmp_path_factory.mktemp("replayed")
    work(folder, "record")
    return folder, *work(folder, "replay")


@pytest.mark.parametrize("how", SPREAD)
def test_two_processes_train_as_one_does_on_the_same_rollouts(replayed, how):
    folder, log, weights = replayed
    log_of_two, weights_of_two = work(folder, "replay", how)
    assert steps(log_of_two) == steps(log) == ["1", "2", "3"]
    for row, row_of_two in zip(log, log_of_two, strict=True):
        for column in COLUMNS:
            expected = pytest.approx(float(row[column]), abs=1e-4)
            assert float(row_of_two[column]) == expected, column
    assert weights.keys() == weights_of_two.keys()
    largest = max((weights[n] - weights_of_two[n]).abs().max() for n in weights)
    assert largest < 1e-4
    # LoRA's B is 0 before training: it has moved by more than the difference allowed.
    trained = [weight for name, weight in weights.items() if "lora_B" in name]
    assert max(weight.abs().max() for weight in trained) > 5e-4


def test_no_process_waits_for_ever_where_the_other_ones_conversations_are_longer(
    tmp_path,
):
    log, _ = work(tmp_path, "ragged", "ddp")
    assert steps(log) == ["1", "2", "3"]
    # None in the first process, five in the other.
    assert {float(row["searches"]) for row in log} == {2.5}


@pytest.mark.parametrize("how", SPREAD)
def test_no_process_waits_for_ever_where_the_other_one_samples_more_turns(
    tmp_path, how
):
    log, _ = work(tmp_path, "uneven", how)
    assert steps(log) == ["1", "2", "3"]
    # The first process makes none.
    assert all(float(row["searches"]) > 0 for row in log)
