"""Building: whole or not at all, in bounded memory, and never from another corpus."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import FILM_PASSAGES, check_against_plain_bm25s

from kr1_utils.corpus import load_passages, load_questions
from kr1_utils.files import REPO, write_jsonl
from kr1_utils.retriever import MANIFEST, Retriever, build, fingerprint, write_index

WIKI = (REPO / os.environ.get("KR1_2WIKI", "../shared/data/2wiki")).resolve()


def shard_count(folder):
    return len(json.loads((folder / MANIFEST).read_text())["shards"])


def times(files):
    """{name: when it was written} of files."""
    return {file.name: file.stat().st_mtime_ns for file in files}


# --- shards ---


def test_shards_score_like_one_index(world, questions, tmp_path):
    folder = tmp_path / "index"
    index = Retriever.build(world.passages, folder, shard_size=300)
    asked = [q["question"] for q in questions["test"][:40]]
    assert shard_count(folder) == 6
    assert len(index) == len(world.passages)
    check_against_plain_bm25s(index, world.passages, asked)
    again = Retriever.open(folder, corpus=fingerprint(world.passages))
    many = [passage["title"] for passage in world.passages[:200]] + asked
    one_by_one = [index.search([query], 7)[0] for query in many]
    assert again.search(many, 7) == one_by_one


def test_more_shards_than_are_merged_at_once_score_like_one_index(
    world, questions, tmp_path
):
    passages = world.passages[:190]
    index = Retriever.build(passages, tmp_path / "index", shard_size=5)
    asked = [q["question"] for q in questions["test"][:20]]
    assert shard_count(tmp_path / "index") == 38
    check_against_plain_bm25s(index, passages, asked)


@pytest.mark.skipif(not WIKI.is_dir(), reason="KR1_2WIKI names no folder with the pack")
def test_shards_score_like_one_index_on_wikipedia_text(tmp_path):
    passages = load_passages(WIKI / "passages.jsonl")
    asked = [q["question"] for q in load_questions(WIKI / "questions.jsonl")]
    folder = tmp_path / "index"
    index = Retriever.build(WIKI / "passages.jsonl", folder, shard_size=1500)
    assert shard_count(folder) == 8
    check_against_plain_bm25s(index, passages, asked)


def test_shard_without_room_for_a_passage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one passage, not 0"):
        Retriever.build(FILM_PASSAGES, tmp_path / "index", shard_size=0)


def test_index_is_the_same_bytes_whenever_it_is_built(world, tmp_path):
    write_index(world.passages, tmp_path / "one", shard_size=700)
    write_index(world.passages, tmp_path / "two", shard_size=700)
    names = [file.name for file in (tmp_path / "one").iterdir()]
    for name in names:
        one = (tmp_path / "one" / name).read_bytes()
        assert one == (tmp_path / "two" / name).read_bytes()


# --- a build that is killed ---

KILLED = """
import sys

from kr1_utils.corpus import read_passages
from kr1_utils.retriever import Retriever


def passages():
    for number, passage in enumerate(read_passages(sys.argv[1])):
        if number == 1300:
            print("far enough", flush=True)
            sys.stdin.read()
        yield passage


Retriever.build(passages(), sys.argv[2], shard_size=300)
"""


def kill_half_way(file, folder):
    """Build an index until at least two shards' tokens are written, and kill the build.

    Returns:
        The numbers of these shards, as they stand in the names of their files.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file), str(folder)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPO,
    )
    assert process.stdout.readline() == "far enough\n"
    part = folder.with_name(folder.name + ".part")
    while len(list(part.glob("*.npz"))) < 2:
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return [tokens.stem for tokens in part.glob("*.npz")]


def test_killed_build_goes_on_where_it_was(world, questions, tmp_path):
    file = tmp_path / "passages.jsonl"
    folder = tmp_path / "index"
    write_jsonl(file, world.passages)
    done = kill_half_way(file, folder)
    before = times(tmp_path.glob("index.part/*.jsonl"))
    with pytest.raises(FileNotFoundError, match="No index"):
        Retriever.open(folder)
    index = Retriever.build(file, folder, shard_size=300)
    after = times(folder.glob("*.jsonl"))
    assert len(done) >= 2
    for number in done:
        assert after[f"{number}.jsonl"] == before[f"{number}.jsonl"]
    asked = [q["question"] for q in questions["test"][:20]]
    check_against_plain_bm25s(index, world.passages, asked)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["index", "passages.jsonl"]


def test_build_that_was_killed_before_its_last_renaming_is_taken_over_whole(
    world, tmp_path, monkeypatch
):
    def killed(folder, part):
        raise KeyboardInterrupt

    folder = tmp_path / "index"
    part = tmp_path / "index.part"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "replace_folder", killed)
        Retriever.build(world.passages, folder)
    made = times(part.iterdir())
    assert len(Retriever.build(world.passages, folder)) == len(world.passages)
    assert times(folder.iterdir()) == made


@pytest.mark.parametrize(
    ("count", "stemmer"), [(50, "english"), (None, "german")], ids=["fewer", "stemmer"]
)
def test_whole_build_of_other_passages_or_settings_is_not_taken_over(
    world, tmp_path, count, stemmer
):
    folder = tmp_path / "index"
    part = tmp_path / "index.part"
    write_index(world.passages, part)
    left = times(part.glob("*.npy"))
    passages = world.passages[:count]
    index = Retriever.build(passages, folder, stemmer=stemmer)
    assert len(index) == len(passages)
    assert times(folder.glob("*.npy")) != left


def test_what_a_killed_build_of_other_passages_left_is_not_used(
    world, questions, tmp_path
):
    file = tmp_path / "passages.jsonl"
    folder = tmp_path / "index"
    write_jsonl(file, world.passages)
    kill_half_way(file, folder)
    changed = dict(world.passages[400])
    changed["text"] += " Indeed."
    other = [*world.passages[:400], changed, *world.passages[401:1000]]
    index = Retriever.build(other, folder, shard_size=300)
    asked = [q["question"] for q in questions["test"][:20]]
    check_against_plain_bm25s(index, other, asked)
    assert index.search(["indeed"], 3)[0][0]["id"] == changed["id"]


def test_tokens_of_one_corpus_never_stand_beside_the_lines_of_another(
    tmp_path, monkeypatch
):
    folder = tmp_path / "index"
    write = build.atomic_write

    def build_index(text, killed_at=None):
        def write_or_die(file, fill):
            if killed_at is not None and file.name.endswith(killed_at):
                raise KeyboardInterrupt
            write(file, fill)

        monkeypatch.setattr(build, "atomic_write", write_or_die)
        return Retriever.build([{"id": "0", "title": "T", "text": text}], folder)

    # Killed with its tokens written, but no scores.
    with pytest.raises(KeyboardInterrupt):
        build_index("first", killed_at="all.words.npy")
    # Killed with its lines written, but no tokens.
    with pytest.raises(KeyboardInterrupt):
        build_index("second", killed_at=".npz")
    assert build_index("first").search(["first"], 1)[0][0]["text"] == "first"


# --- room on the disk ---


def leave_free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def test_disk_with_too_little_room_is_refused_before_anything_is_written(
    monkeypatch, tmp_path
):
    leave_free(monkeypatch, 1)
    with pytest.raises(OSError, match="make room, or choose another folder"):
        Retriever.build(FILM_PASSAGES, tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_room_asked_for_is_enough(tmp_path, world, monkeypatch):
    part = tmp_path / "index.part"
    held = []
    fsync = os.fsync

    def look(number):
        if part.is_dir():
            held.append(sum(file.stat().st_size for file in part.iterdir()))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", look)
        Retriever.build(world.passages, tmp_path / "index")
    write_jsonl(tmp_path / "passages.jsonl", world.passages)
    assert max(held) > (tmp_path / "passages.jsonl").stat().st_size
    # What is less than was needed must be refused.
    leave_free(monkeypatch, max(held) - 1)
    with pytest.raises(OSError, match="make room"):
        Retriever.build(world.passages, tmp_path / "again")


def test_room_that_a_killed_build_takes_counts_as_free(tmp_path, world, monkeypatch):
    (tmp_path / "index.part").mkdir()
    (tmp_path / "index.part" / "00000.jsonl").write_bytes(b"x" * 10_000_000)
    leave_free(monkeypatch, 1)
    index = Retriever.build(world.passages, tmp_path / "index")
    assert len(index) == len(world.passages)


# --- what is indexed ---


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.jsonl.gz"])
def test_file_is_indexed_like_its_passages(tmp_path, small, name):
    file = tmp_path / name
    lines = "".join(json.dumps(passage) + "\n" for passage in FILM_PASSAGES).encode()
    file.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    index = Retriever.build(file, tmp_path / "index")
    query = ["Dara Kallas Merano"]
    assert index.search(query, 4) == small.search(query, 4)
    corpus = fingerprint(file)
    Retriever.open(tmp_path / "index", corpus=corpus)
    file.write_bytes(file.read_bytes() + b"\n")
    assert fingerprint(file) != corpus


def test_iterator_that_can_be_read_once_is_indexed_like_a_list(small):
    index = Retriever.build(iter(FILM_PASSAGES), shard_size=2)
    query = ["Dara Kallas Merano"]
    assert index.search(query, 4) == small.search(query, 4)


@pytest.mark.parametrize(
    "passages",
    [
        [],
        [{"id": "a", "title": "", "text": ""}],
        [{"id": "a", "title": "The", "text": "of and"}],
    ],
)
def test_corpus_with_nothing_to_index_is_refused(passages):
    with pytest.raises(ValueError, match="no passage to index|No passage holds a word"):
        Retriever.build(passages)


# --- the folder ---


def test_building_again_replaces_our_own_index(folder):
    Retriever.build(FILM_PASSAGES[:2], folder)
    assert len(Retriever.open(folder)) == 2


def test_no_part_folder_stays_behind(folder):
    assert [file.name for file in folder.parent.iterdir()] == ["index"]


@pytest.mark.parametrize("name", ["notes.txt", MANIFEST])
def test_building_does_not_delete_a_foreign_folder(tmp_path, name):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / name).write_text(json.dumps({"made_by": "somebody else"}))
    with pytest.raises(ValueError, match="choose another folder"):
        Retriever.build(FILM_PASSAGES, foreign)
    assert [file.name for file in foreign.iterdir()] == [name]


# --- the fingerprint ---


@pytest.mark.parametrize("key", ["id", "title", "text"])
def test_fingerprint_changes_with_every_part_of_a_passage(key):
    first = FILM_PASSAGES[0]
    changed = [{**first, key: first[key] + "x"}, *FILM_PASSAGES[1:]]
    assert fingerprint(changed) != fingerprint(FILM_PASSAGES)


def test_fingerprint_changes_with_the_order_of_passages():
    assert fingerprint(FILM_PASSAGES[::-1]) != fingerprint(FILM_PASSAGES)


@pytest.mark.parametrize("place", [0, 2**26, -1])
def test_fingerprint_of_a_large_file_sees_its_start_its_end_and_its_size(
    tmp_path, place
):
    file = tmp_path / "passages.jsonl"
    size = 2**26 + 2**20
    # Without data, a file takes no room on the disk.
    with file.open("wb") as out:
        out.truncate(size)
    before = fingerprint(file)
    with file.open("r+b") as out:
        out.seek(place % size)
        out.write(b"x")
    changed = fingerprint(file)
    assert changed != before
    with file.open("ab") as out:
        out.truncate(size + 1)
    assert fingerprint(file) not in (before, changed)


def test_fingerprint_of_a_small_file_sees_every_byte(tmp_path):
    file = tmp_path / "passages.jsonl"
    data = bytearray(random.Random(0).randbytes(3_000))
    seen = set()
    for place in range(0, len(data), 97):
        data[place] ^= 1
        file.write_bytes(data)
        seen.add(fingerprint(Path(file)))
    assert len(seen) == len(range(0, len(data), 97))
