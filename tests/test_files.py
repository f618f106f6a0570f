"""Files are written whole or not at all, logs go on after a cut, paths are found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kr1_utils import corpus, files
from kr1_utils.files import REPO

# --- where things lie ---


def test_relative_paths_start_at_the_repository(tmp_path):
    assert files.in_repository("data") == REPO / "data"
    assert files.in_repository(str(tmp_path)) == tmp_path


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.jsonl").touch()
    assert files.expand_home("~/a") == str(tmp_path / "a")
    assert files.expand_home("a/~b") == "a/~b"
    assert files.expand_home(Path("~/a")) == str(tmp_path / "a")
    assert files.expand_home("~no such user/a") == "~no such user/a"
    assert files.in_repository("~/a") == tmp_path / "a"
    assert files.shipped("~/own.jsonl") == tmp_path / "own.jsonl"


@pytest.mark.parametrize("value", [5, None, 1.5, ["a"], True, b"a"])
def test_path_that_is_no_text_is_refused_by_its_name(value):
    with pytest.raises(ValueError, match="^OUT must be text, not "):
        files.expand_home(value, "OUT")


def test_shown_paths_never_start_at_the_root(tmp_path):
    assert files.display_path(REPO / "data" / "x.csv") == "data/x.csv"
    assert not files.display_path(tmp_path / "x.csv").startswith("/")


def test_what_is_shipped_is_found_and_so_is_what_is_yours(tmp_path):
    assert files.shipped("data/tiny-lm") == REPO / "data" / "tiny-lm"
    assert files.shipped(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["data/tiny-llm", "/no/such/folder"])
def test_what_is_not_shipped_is_named(name):
    with pytest.raises(FileNotFoundError, match=name):
        files.shipped(name)


def test_data_lies_in_the_repository_wherever_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.data_folder() == REPO / "data"


INSTALLED_ALONE = """
from kr1_utils import corpus, files, notebook, profiles

profile, out = notebook.setup({"PROFILE": "tiny", "DATA": "mine"})
print(out, notebook.index_folder(out), sep="\\n")
for need in (
    lambda: files.shipped("data/tiny-lm"),
    lambda: corpus.locate_files(profile),
):
    try:
        need()
    except FileNotFoundError as error:
        print(error)
"""


def test_package_that_is_installed_without_the_repository_says_what_is_missing(
    tmp_path,
):
    # As pip installs it: the package's files, but not what it is built from.
    shutil.copytree(
        REPO / "kr1_utils",
        tmp_path / "site" / "kr1_utils",
        ignore=shutil.ignore_patterns("pyproject.toml", "__pycache__", "*.egg-info"),
    )
    folder = tmp_path / "work"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "passages.jsonl").touch()
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED_ALONE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out, index, *missing = done.stdout.splitlines()
    assert Path(out) == folder / "data" / "runs" / "tiny"
    assert Path(index) == folder / "data" / "index" / "tiny"
    assert len(missing) == 2
    assert "data/tiny-lm" in missing[0] and "clone it" in missing[0]
    assert "data/miniwiki/passages.jsonl" in missing[1]


# --- whole or not at all ---


def test_written_rows_are_read_back_and_no_part_file_stays(tmp_path):
    rows = [{"a": "Łódź\n<b>"}, {"b": None}]
    file = tmp_path / "r.jsonl"
    files.write_jsonl(file, rows)
    assert list(corpus.read_rows(file)) == rows
    assert list(tmp_path.iterdir()) == [file]


def test_half_a_surrogate_pair_is_written_and_read_back(tmp_path):
    rows = [{"a": "\ud800 and \udfff"}]
    written, appended = tmp_path / "w.jsonl", tmp_path / "a.jsonl"
    files.write_jsonl(written, rows)
    files.append_rows(appended, rows)
    assert list(corpus.read_rows(written)) == rows
    assert list(corpus.read_rows(appended)) == rows


def test_failed_write_leaves_the_old_file_whole(tmp_path):
    def fail_halfway(out):
        out.write(b"new")
        out.write("no bytes")

    file = tmp_path / "r.jsonl"
    files.write_jsonl(file, [{"a": 1}])
    with pytest.raises(TypeError):
        files.atomic_write(file, fail_halfway)
    assert list(corpus.read_rows(file)) == [{"a": 1}]


def test_file_that_cannot_be_written_is_named_in_one_sentence(tmp_path):
    file = tmp_path / "none" / "r.txt"
    with pytest.raises(OSError, match=r"^r\.txt .*No such file or directory\.$"):
        files.write_text(file, "text")


def test_folder_is_not_moved_away_before_the_disk_holds_the_one_in_its_place(
    tmp_path, monkeypatch
):
    folder, part = tmp_path / "folder", tmp_path / "folder.part"
    for place, text in ((folder, "before"), (part, "after")):
        place.mkdir()
        (place / "file").write_text(text)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.replace_folder(folder, part)
    assert (folder / "file").read_text() == "before"

    files.replace_folder(folder, part)
    assert (folder / "file").read_text() == "after"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_copy_of_yours_beside_a_folder_stays_when_the_folder_is_replaced(tmp_path):
    folder, part, copy = (tmp_path / name for name in ("f", "f.part", "f.old"))
    for place in (folder, part, copy):
        place.mkdir()
    files.replace_folder(folder, part)
    assert sorted(tmp_path.iterdir()) == [folder, copy]


# --- logs ---


def test_log_goes_on_after_its_last_checkpoint(tmp_path):
    log = tmp_path / "train_log.csv"
    for step in (1, 2, 3, 4):
        files.append_log(log, {"step": step, "reward": 0.5})
    files.append_log(log, {"step": 3, "reward": 0.7})
    assert log.read_text() == "step,reward\n1,0.5\n2,0.5\n3,0.7\n"


def test_log_of_other_columns_is_refused_and_stays(tmp_path):
    log = tmp_path / "train_log.csv"
    files.append_log(log, {"step": 1, "reward": 0.5})
    with pytest.raises(ValueError, match="reward"):
        files.append_log(log, {"step": 2})
    assert log.read_text() == "step,reward\n1,0.5\n"


def test_trajectory_that_was_cut_off_within_a_letter_goes(tmp_path):
    # U+2028 ends a line for some readers, but not a row of ours.
    rows = [{"step": step, "said": "Kaljulaïd\u2028é"} for step in (1, 2)]
    file = tmp_path / "trajectories.jsonl"
    files.append_rows(file, rows)
    # After the first of the two bytes of the last é.
    file.write_bytes(file.read_bytes().removesuffix(b'\xa9"}\n'))
    files.drop_from_step(file, 3)
    left = file.read_text("utf-8").split("\n")
    assert [json.loads(line) for line in left[:-1]] == rows[:1]
    assert left[-1] == ""


def test_trajectories_from_a_step_on_go_and_those_before_stay(tmp_path):
    file = tmp_path / "trajectories.jsonl"
    files.append_rows(file, [{"step": step} for step in (1, 1, 2, 3, 3)])
    files.drop_from_step(file, 3)
    assert list(corpus.read_rows(file)) == [{"step": 1}, {"step": 1}, {"step": 2}]
    files.drop_from_step(tmp_path / "none.jsonl", 1)
    assert not (tmp_path / "none.jsonl").exists()


def test_line_of_trajectories_that_the_disk_lost_goes_and_the_others_stay(tmp_path):
    file = tmp_path / "trajectories.jsonl"
    files.append_rows(file, [{"step": 1}, {"step": 2}])
    with file.open("ab") as more:
        more.write(b"\0" * 40 + b"\n{}\n")
    files.drop_from_step(file, 3)
    assert list(corpus.read_rows(file)) == [{"step": 1}, {"step": 2}]
