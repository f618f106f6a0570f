"""The shipped files: the same bytes on every run, and splits that share no entity."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from kr1_utils import corpus
from kr1_utils.files import REPO
from kr1_utils.miniwiki.make import SIZES, split_entities

SHIPPED = REPO / "data" / "miniwiki"
FILES = ("passages", "train", "dev", "test", "test_single", "test_known")


def asked_about(question):
    """Titles of the evidence that the question names itself."""
    return {
        title for title, _, _ in question["evidence"] if title in question["question"]
    }


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_generator_writes_the_committed_bytes_on_every_run(tmp_path, hash_seed):
    subprocess.run(
        [sys.executable, "-m", "kr1_utils.miniwiki", "--out", str(tmp_path)],
        check=True,
        cwd=REPO,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.DEVNULL,
    )
    assert {f.name for f in tmp_path.iterdir()} == {f"{n}.jsonl" for n in FILES}
    for name in FILES:
        made = tmp_path / f"{name}.jsonl"
        shipped = SHIPPED / f"{name}.jsonl"
        assert made.read_bytes() == shipped.read_bytes(), name


def test_every_entity_belongs_to_one_split(world):
    splits = split_entities(world, {"a": 0.5, "b": 0.3, "c": 0.2})
    dealt = [title for titles in splits.values() for title in titles]
    assert sorted(dealt) == sorted(world.kind)
    assert len(splits["a"]) > len(splits["b"]) > len(splits["c"])


def test_splits_have_the_promised_sizes(questions):
    for name, counts in SIZES.items():
        types = Counter(question["type"] for question in questions[name])
        assert types == counts
    sizes = {name: len(split) for name, split in questions.items()}
    assert sizes == {
        "train": 2300,
        "dev": 340,
        "test": 500,
        "test_single": 200,
        "test_known": 240,
    }


def test_splits_hold_the_promised_types(questions):
    multi = {"compositional", "comparison", "inference", "bridge_comparison"}
    assert {q["type"] for q in questions["test"]} == multi
    assert {q["type"] for q in questions["test_single"]} == {"single"}
    assert {q["type"] for q in questions["test_known"]} == {"known", "look_alike"}
    everything = multi | {"single", "known", "look_alike"}
    assert {q["type"] for q in questions["train"]} == everything
    assert {q["type"] for q in questions["dev"]} == everything


def test_no_question_comes_twice(questions):
    seen = Counter(q["question"] for split in questions.values() for q in split)
    assert max(seen.values()) == 1
    ids = Counter(q["id"] for split in questions.values() for q in split)
    assert max(ids.values()) == 1


@pytest.mark.parametrize("held_out", ["test", "test_single", "test_known", "dev"])
def test_no_entity_asked_about_when_testing_is_asked_about_in_train(
    questions, held_out
):
    train = set().union(*map(asked_about, questions["train"]))
    test = set().union(*map(asked_about, questions[held_out]))
    assert len(test) > 50
    assert not train & test


def test_shipped_files_are_small():
    sizes = [(SHIPPED / f"{name}.jsonl").stat().st_size for name in FILES]
    assert sum(sizes) <= 3_000_000


def test_shipped_files_are_read_by_our_own_reader(world):
    assert corpus.load_passages(SHIPPED / "passages.jsonl") == world.passages
