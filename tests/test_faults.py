"""What a machine does to a run: full disks, folders that cannot be written, files and
processes that vanish. Each ends in one sentence, and what was complete stays."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers import kr1
from kill_anywhere import descendants, lives

from kr1_utils import files, models, plots
from kr1_utils.retriever import Retriever

SETTINGS = {
    "max_steps": 6,
    "save_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "eval_questions": 4,
}
SHORT = [f"--set={key}={value}" for key, value in SETTINGS.items()]


@contextlib.contextmanager
def files_no_larger_than(size):
    """As on a disk that is full: writing fails where a file would grow beyond `size`
    bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that comes with it, and raises an OSError.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_a_mount(script, *words):
    """A shell script that may mount, in a namespace of its own, which needs no
    rights."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    return subprocess.run(
        [*unshare, "bash", "-ec", script, "bash", *words],
        text=True,
        capture_output=True,
        timeout=600,
    )


may_mount = pytest.mark.skipif(
    shutil.which("unshare") is None
    or in_a_mount("mount -t tmpfs none /mnt").returncode != 0,
    reason="this system lets nobody mount",
)


# --- files and folders ---


def test_file_that_cannot_be_written_is_named_and_what_was_there_stays(tmp_path):
    file = tmp_path / "log.csv"
    files.write_text(file, "as it was")
    with (
        files_no_larger_than(1000),
        pytest.raises(OSError, match="^log.csv .* be written: File too large.$"),
    ):
        files.write_text(file, "x" * 100_000)
    assert file.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [file]


def test_figure_that_cannot_be_written_leaves_the_one_before(tmp_path):
    figure, _ = plt.subplots()
    file = plots.save_fig(figure, tmp_path, "a")
    before = file.read_bytes()
    with (
        files_no_larger_than(100),
        pytest.raises(OSError, match="a.png .* be written"),
    ):
        plots.save_fig(figure, tmp_path, "a")
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_adapter_that_cannot_be_written_leaves_the_one_before(tmp_path, tiny):
    folder = models.save_adapter(*tiny, tmp_path / "model")
    with files_no_larger_than(100_000), pytest.raises(Exception, match="too large"):
        models.save_adapter(*tiny, folder)
    models.load(str(folder))


def test_index_that_cannot_be_written_leaves_the_one_before(tmp_path, world):
    Retriever.build(world.passages[:100], tmp_path / "index")
    with (
        files_no_larger_than(20_000),
        pytest.raises(OSError, match="be written: File too large"),
    ):
        Retriever.build(world.passages, tmp_path / "index")
    assert len(Retriever.open(tmp_path / "index")) == 100
    again = Retriever.build(world.passages, tmp_path / "index")
    assert len(again) == len(world.passages)


@pytest.mark.parametrize(
    "left", [[".index.old"], ["index.part"], [".index.old", "index.part"]]
)
def test_folder_whose_replacing_was_cut_off_is_written_again(left, tmp_path, world):
    folder = tmp_path / "index"
    Retriever.build(world.passages[:50], folder)
    for name in left:
        shutil.copytree(folder, tmp_path / name)
        # Half removed, or half written.
        (tmp_path / name / "manifest.json").unlink()
    shutil.rmtree(folder)
    assert len(Retriever.build(world.passages[:60], folder)) == 60
    assert list(tmp_path.iterdir()) == [folder]


def test_index_that_vanishes_under_a_search_still_answers(tmp_path, world):
    index = Retriever.build(world.passages, tmp_path / "index")
    before = index.search(["Who directed it?"], 5)
    shutil.rmtree(tmp_path / "index")
    assert index.search(["Who directed it?"], 5) == before


# --- runs ---


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """OUT of a run whose first notebook is complete."""
    out = tmp_path_factory.mktemp("indexed")
    assert run_only("01", out).returncode == 0
    return out


def run_only(number, out):
    """A short run of one notebook, to its end."""
    return kr1("run", "--out", str(out), "--only", number, *SHORT)


def sentence(stderr: str) -> str:
    """The last line, with which a run ends; before it a kernel may have warned."""
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_index_that_vanished_between_notebooks_is_built_again(indexed):
    shutil.rmtree(indexed / "index")
    done = run_only("01", indexed)
    assert done.returncode == 0
    assert "complete already" not in done.stdout
    assert len(Retriever.open(indexed / "index"))


@pytest.mark.slow
def test_index_that_vanished_in_part_is_named_before_any_training(indexed):
    lost = next((indexed / "index").glob("*.npy"))
    kept = lost.rename(indexed / "kept")
    done = run_only("03", indexed)
    kept.rename(lost)
    assert done.returncode == 1
    said = sentence(done.stderr)
    assert f"is incomplete ({lost.name})" in said
    assert "run 01_build_index" in said
    assert not (indexed / "train_log.csv").exists()


def start_01(out) -> tuple[subprocess.Popen, int]:
    """Start a run of the first notebook: its process, and that of its kernel once that
    executes cells."""
    run = subprocess.Popen(
        [sys.executable, "-m", "kr1_utils", "run", "--out", str(out), "--only", "01"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    kernel = None
    while kernel is None or not (out / "01.failed.ipynb").exists():
        assert run.poll() is None, run.stderr.read()
        kernel = kernel or kernel_of(run)
    return run, kernel


def kernel_of(run) -> int | None:
    """The process that executes the notebook, if there is one yet."""
    for child in descendants(run.pid):
        # It may have ended since it was listed.
        with contextlib.suppress(OSError):
            if b"ipykernel_launcher" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None


def test_kernel_that_is_killed_for_memory_is_one_sentence(tmp_path):
    run, kernel = start_01(tmp_path)
    os.kill(kernel, signal.SIGKILL)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    # It may also say that the kernel died before replying, if it was still starting.
    assert sentence(said).startswith("Stopped in notebook 01_build_index: Kernel died")


@pytest.mark.slow
def test_kernel_ends_with_a_run_that_is_killed_and_lets_the_next_one_in(tmp_path):
    run, kernel = start_01(tmp_path)
    second = run_only("01", tmp_path)
    assert second.returncode == 2
    assert "is another run's, which has not ended" in sentence(second.stderr)
    run.kill()
    run.communicate()
    until = time.monotonic() + 60
    while lives(kernel):
        assert time.monotonic() < until
    assert run_only("01", tmp_path).returncode == 0


@may_mount
def test_folder_on_a_read_only_disk_is_refused_before_any_work(tmp_path):
    done = in_a_mount(
        'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; '
        '"$2" -m kr1_utils run --out "$1"',
        str(tmp_path),
        sys.executable,
    )
    assert done.returncode == 2
    said = sentence(done.stderr)
    assert said.startswith(f"OUT={tmp_path} ")
    assert said.endswith("be written: Read-only file system.")


FULL = """
mount -t tmpfs -o size="$4" none "$1"
cp -r "$2"/. "$1"
run() { "$3" -m kr1_utils run --out "$1" --only 03 "${@:5}"; }
run "$@" && exit 9
mkdir "$2"/full
cp -r "$1"/train_log.csv "$1"/training "$2"/full
mount -o remount,size=100m "$1"
run "$@"
mkdir "$2"/after
cp "$1"/train_log.csv "$1"/trajectories.jsonl "$2"/after
"""


@pytest.mark.slow
@may_mount
def test_disk_that_fills_up_in_training_loses_nothing_that_was_complete(
    indexed, tmp_path
):
    copy = tmp_path / "copy"
    mount = tmp_path / "mount"
    shutil.copytree(indexed, copy)
    mount.mkdir()
    done = in_a_mount(FULL, str(mount), str(copy), sys.executable, "4m", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Stopped in notebook 03_train_grpo") == 1
    assert "No space left" in done.stderr
    assert list((copy / "full" / "training").glob("checkpoint-*/trainer_state.json"))

    assert run_only("03", copy).returncode == 0
    undisturbed, full, after = (
        pd.read_csv(folder / "train_log.csv").drop(
            columns=["step_time", "peak_memory_gib"]
        )
        for folder in (copy, copy / "full", copy / "after")
    )
    assert 0 < len(full) < len(after) == 6
    assert full.equals(undisturbed[: len(full)])
    assert after.equals(undisturbed)
    trajectories = (copy / "trajectories.jsonl").read_text()
    assert (copy / "after" / "trajectories.jsonl").read_text() == trajectories
