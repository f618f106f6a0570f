"""A file of the hub comes whole, goes on where it broke off, or one sentence says why.

The hub runs on loopback, and each download in a process of its own.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from kr1_utils import hub_files

SET = "someone/questions"
# Large enough to come in several pieces: huggingface_hub writes 10 MiB at a time.
MIB = 2**20
LARGE = os.urandom(MIB) * 25
CUT = 15 * MIB

FETCH = """
from kr1_utils import hub_files
print(hub_files.locate("someone/questions:a.jsonl"))
"""
# Breaks off, and is not reached again within the patience of one call.
NO_MORE = [CUT, *[0] * 5]


@pytest.fixture
def large(hub):
    """A hub with one large file."""
    hub.put("dataset", SET, {"a.jsonl": LARGE, "README.md": b"# Questions"})
    return hub


def fetch(hub, home, **more):
    """(the path that came, or None; all that was said on stderr)."""
    done = hub.python(FETCH, home, **more)
    lines = done.stdout.splitlines()
    return lines[-1] if done.returncode == 0 else None, done.stderr


def fetch_until_killed(hub, home):
    """A call that is killed when 10 MiB have come, and no more comes."""
    hub.stalls["a.jsonl"] = CUT
    command = [sys.executable, "-c", FETCH]
    with subprocess.Popen(command, env=hub.environment(home)) as process:
        while not any(part.stat().st_size == 10 * MIB for part in parts(home)):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    hub.stalls.clear()
    hub.delivered.clear()


def last_line(text):
    return text.strip().splitlines()[-1]


def content(path):
    return Path(path).read_bytes()


def parts(home):
    return list(home.rglob("*.part"))


# --- what comes ---


def test_a_file_is_fetched_once_and_then_needs_no_hub(large, tmp_path):
    path, said = fetch(large, tmp_path)
    assert path and content(path) == LARGE, said
    assert large.delivered == [("a.jsonl", 0)]
    large.stop()
    assert fetch(large, tmp_path) == (path, "")
    assert parts(tmp_path) == []


def test_other_programs_find_it_in_the_hubs_own_cache(large, tmp_path):
    path, _ = fetch(large, tmp_path)
    code = (
        "from huggingface_hub import hf_hub_download\n"
        f"print(hf_hub_download({SET!r}, 'a.jsonl', repo_type='dataset'))"
    )
    offline = {"HF_HUB_OFFLINE": "1"}
    done = large.python(code, tmp_path, environment=offline)
    assert done.stdout.strip() == path, done.stderr


def test_small_files_are_compared_with_gits_hash(hub, tmp_path):
    hub.put("model", "someone/model", {"config.json": b"{}", "model.safetensors": b"w"})
    code = (
        "from kr1_utils import hub_files as h\n"
        "print(h.model_is_cached('someone/model'))\n"
        "for file in h.model_files('someone/model'): print(h.fetch(file).read_text())\n"
        "print(h.model_is_cached('someone/model'))"
    )
    done = hub.python(code, tmp_path)
    assert done.stdout.split() == ["False", "{}", "w", "True"], done.stderr


def test_a_split_is_the_one_file_that_is_named_after_it(hub, tmp_path):
    train = "data/train-00000-of-00001.parquet"
    hub.put("dataset", SET, {train: b"t", "data/test.parquet": b"e", "train.md": b"m"})
    code = (
        "from kr1_utils import hub_files as h\n"
        "print(h.locate('someone/questions:train').read_text())\n"
        "print(h.locate('someone/questions:test').read_text())\n"
        "print(h.cached('someone/questions:train').name)"
    )
    done = hub.python(code, tmp_path)
    assert done.stdout.split() == ["t", "e", train.split("/")[1]], done.stderr


def test_two_processes_fetch_a_file_once(large, tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH],
            env=large.environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert large.delivered == [("a.jsonl", 0)]


# --- what breaks off, and goes on ---


def test_a_connection_that_breaks_once_is_taken_up_again(large, tmp_path):
    large.cuts["a.jsonl"] = [CUT]
    path, said = fetch(large, tmp_path)
    assert path and content(path) == LARGE, said
    assert [start > 0 for _, start in large.delivered] == [False, True]


def test_a_download_that_broke_off_goes_on_with_the_next_call(large, tmp_path):
    large.cuts["a.jsonl"] = list(NO_MORE)
    path, said = fetch(large, tmp_path)
    assert path is None
    assert "broke off after 10.5 MB of 26.2 MB" in last_line(said)
    assert "goes on from there" in last_line(said)
    assert parts(tmp_path)[0].stat().st_size == 10 * MIB
    large.delivered.clear()
    path, said = fetch(large, tmp_path)
    assert path and content(path) == LARGE, said
    assert large.delivered == [("a.jsonl", 10 * MIB)]
    assert parts(tmp_path) == []


def test_a_file_that_changed_meanwhile_begins_anew_and_says_so(large, tmp_path):
    fetch_until_killed(large, tmp_path)
    large.put("dataset", SET, {"a.jsonl": LARGE[::-1]})
    done = large.python(FETCH, tmp_path)
    changed, path = done.stdout.splitlines()
    assert "a.jsonl: it has changed on the hub since" in changed
    assert content(path) == LARGE[::-1]
    assert parts(tmp_path) == []


def test_a_killed_download_goes_on_although_other_files_changed(large, tmp_path):
    fetch_until_killed(large, tmp_path)
    large.put("dataset", SET, {"README.md": b"# Another text"})
    path, said = fetch(large, tmp_path)
    assert path and content(path) == LARGE, said
    assert large.delivered == [("a.jsonl", 10 * MIB)]


def test_what_is_not_what_the_hub_announced_is_removed(large, tmp_path):
    large.swapped["a.jsonl"] = LARGE[::-1]
    path, said = fetch(large, tmp_path)
    assert path is None
    assert "what came has the hash" in last_line(said)
    assert parts(tmp_path) == []
    large.swapped.clear()
    path, said = fetch(large, tmp_path)
    assert path and content(path) == LARGE, said


def test_a_full_disk_keeps_what_it_could_take(large, tmp_path):
    def a_small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, CUT))

    path, said = fetch(large, tmp_path, preexec_fn=a_small_disk)
    assert path is None
    assert "the disk takes no more after 15.7 MB of 26.2 MB" in last_line(said)
    large.delivered.clear()
    path, said = fetch(large, tmp_path)
    assert path and content(path) == LARGE, said
    assert large.delivered == [("a.jsonl", CUT)]


# --- what does not come ---


def test_no_network_is_said_in_a_sentence(large, tmp_path):
    large.stop()
    path, said = fetch(large, tmp_path)
    assert path is None
    assert f"http://127.0.0.1:{large.port}) does not answer" in last_line(said)


def test_a_hub_that_may_not_be_asked_is_said_in_a_sentence(large, tmp_path):
    path, said = fetch(large, tmp_path, environment={"HF_HUB_OFFLINE": "1"})
    assert path is None
    assert "HF_HUB_OFFLINE forbids to ask it" in last_line(said)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("someone/else:a.jsonl", "has no data set someone/else"),
        (f"{SET}:b.jsonl", "has no file for 'b.jsonl': name one of a.jsonl, README.md"),
        (f"{SET}:train", "has no file for 'train'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(large, tmp_path, name, sentence):
    code = f"from kr1_utils import hub_files\nhub_files.locate({name!r})"
    done = large.python(code, tmp_path)
    assert sentence in last_line(done.stderr)


def test_a_split_of_several_files_is_refused(hub, tmp_path):
    names = [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]
    hub.put("dataset", SET, dict.fromkeys(names, b"t"))
    code = "from kr1_utils import hub_files\nhub_files.find('someone/questions:train')"
    done = hub.python(code, tmp_path)
    assert f"has 2 files for 'train': name one of {', '.join(names)}" in done.stderr


def test_a_model_of_which_a_part_is_missing_is_not_here(hub, tmp_path):
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    hub.put("model", "someone/model", dict.fromkeys(names, b"w") | {"config.json": b""})
    code = (
        "from kr1_utils import hub_files as h\n"
        "for file in h.model_files('someone/model'):\n"
        "    h.fetch(file)\n"
        "    print(h.model_is_cached('someone/model'))"
    )
    done = hub.python(code, tmp_path)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


Disk = namedtuple("Disk", "total used free")


def test_what_one_disk_cannot_hold_is_refused_before_anything_is_fetched(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Disk(0, 0, 5e9))
    hub_files.require_room([(tmp_path / "a", 2e9), (tmp_path / "b", 3e9)])
    with pytest.raises(OSError, match=r"takes 5\.1 GB .* has 5\.0 GB free"):
        hub_files.require_room([(tmp_path / "a", 2e9), (tmp_path / "b", 3.1e9)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "size, shown",
    [(5_123_307_260, "5.1 GB"), (26_214_400, "26.2 MB"), (2_000, "2 kB"), (0, "0 kB")],
)
def test_sizes_are_shown_as_a_reader_knows_them(size, shown):
    assert hub_files.shown_size(size) == shown


def test_a_cache_that_cannot_be_written_is_said_in_a_sentence(large, tmp_path):
    (tmp_path / "hub").write_text("a file where the cache should be")
    path, said = fetch(large, tmp_path)
    assert path is None
    assert "cannot be written (Not a directory)" in last_line(said)
