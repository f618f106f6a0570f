"""A run is read back from its files, and what cannot be read is named."""

import json

import pytest

from kr1_utils.browse import read_run
from kr1_utils.files import REPO, append_rows, write_jsonl
from kr1_utils.rows import UnreadableRowError

TRAINED = {
    "step": 1,
    "question": "Q?",
    "turns": [
        "<think> I look.</think><search> Dara</search>",
        "<think> I look.</think><search> Kallas</search>",
    ],
    "answer": None,
}
EVALUATED = {"id": "1", "prediction": "Merano", "searches": 1, "em": 1.0, "f1": 1.0}


def test_trajectories_of_training_come_before_those_of_both_evaluations(tmp_path):
    write_jsonl(tmp_path / "trajectories.jsonl", [TRAINED, TRAINED | {"step": 2}])
    write_jsonl(tmp_path / "predictions.jsonl", [EVALUATED])
    write_jsonl(tmp_path / "predictions_before.jsonl", [EVALUATED | {"em": 0.0}])
    rows = read_run(tmp_path)
    assert [(row.source, row.step, row.reward) for row in rows] == [
        ("training", 1, None),
        ("training", 2, None),
        ("before", None, 0.0),
        ("after", None, 1.0),
    ]


def test_a_query_in_the_last_turn_is_no_search(tmp_path):
    write_jsonl(tmp_path / "trajectories.jsonl", [TRAINED])
    assert read_run(tmp_path)[0].searches == 1


def test_files_of_the_shipped_run_can_be_read():
    folder = REPO / "data" / "reference" / "tiny" / "seed42"
    rows = read_run(folder)
    for name, source in (
        ("trajectories", "training"),
        ("predictions_before", "before"),
        ("predictions", "after"),
    ):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == sum(row.source == source for row in rows)
    right = [row.reward == 1 for row in rows if row.source == "after"]
    judged = [row.outcome == "right" for row in rows if row.source == "after"]
    assert right == judged


def test_numbers_that_are_not_known_are_none(tmp_path):
    row = TRAINED | {"reward": float("nan"), "rewards": {"length": None}}
    write_jsonl(tmp_path / "trajectories.jsonl", [row])
    read = read_run(tmp_path)[0]
    assert read.reward is None
    assert read.rewards == {"length": None}
    assert read.advantage is None


def test_line_that_is_being_written_is_left_out(tmp_path):
    file = tmp_path / "trajectories.jsonl"
    append_rows(file, [TRAINED, TRAINED])
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert len(read_run(tmp_path)) == 1


@pytest.mark.parametrize(
    "line, names",
    [
        ("{", "Expecting property name"),
        ("3", "not an object but 3"),
        (json.dumps({"step": 1}), "'turns'"),
        (json.dumps(TRAINED | {"turns": "text"}), "'turns' is not a list of texts"),
        (json.dumps(TRAINED | {"question": None}), "'question' is not text"),
        (json.dumps(TRAINED | {"answer": 7}), "its answer is not text"),
        (json.dumps(TRAINED | {"step": "first"}), "'first' is not a number"),
        (json.dumps(TRAINED | {"rewards": [1]}), "'list' object"),
        (json.dumps(TRAINED | {"logprobs": [1]}), "'int' object"),
    ],
)
def test_line_that_holds_no_trajectory_is_named(line, names, tmp_path):
    file = tmp_path / "trajectories.jsonl"
    file.write_text(json.dumps(TRAINED) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UnreadableRowError) as refused:
        read_run(tmp_path)
    assert str(refused.value).startswith(f"{file}, line 3 is not a trajectory: ")
    assert names in str(refused.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(UnreadableRowError, match="line 1 is not a trajectory"):
        read_run(tmp_path)


def test_folder_without_trajectories_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"notebook 03 writes"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="No folder"):
        read_run(tmp_path / "none")
