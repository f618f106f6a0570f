"""One folder, one training: a second is refused, and a crash leaves no lock."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import make_trainer

from kr1_utils.trainer.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from kr1_utils.trainer.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that trains in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_training_in_a_folder_is_refused_before_it_writes(
    other_run, tmp_path, questions, retriever
):
    run = make_trainer(tmp_path, questions, retriever)
    with pytest.raises(OSError, match="Another run trains in .*OUT"):
        run.train()
    assert not (tmp_path / "train_log.csv").exists()


def test_crashed_run_leaves_no_lock(other_run, tmp_path):
    os.kill(other_run.pid, signal.SIGKILL)
    other_run.wait()
    with locked(tmp_path):
        pass


def test_lock_ends_with_an_error_in_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with locked(tmp_path):
        pass
