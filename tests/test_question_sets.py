"""Public test sets come by name, as published, over nothing of the user's."""

import json

import pytest

from kr1_utils import corpus, question_sets

# FlashRAG's form, with made-up contents.
ROWS = {
    "2wikimultihopqa": {
        "id": "dev_0",
        "question": "Who directed Silent River?",
        "golden_answers": ["Dara Kallas", "D. Kallas"],
        "metadata": {"type": "compositional", "supporting_facts": {"title": ["A"]}},
    },
    "hotpotqa": {
        "id": "dev_0",
        "question": "Is Merano in Aldoria?",
        "golden_answers": ["yes"],
        "metadata": {"type": "comparison", "level": "hard"},
    },
    "musique": {
        "id": "dev_0",
        "question": "Where was the painter born?",
        "golden_answers": ["Merano"],
        "metadata": {"answer_aliases": []},
    },
    "bamboogle": {
        "id": "test_0",
        "question": "Which river flows through Merano?",
        "golden_answers": ["Holm", "the Holm"],
    },
}


@pytest.fixture
def flashrag(hub):
    """A hub with the four sets, and the training questions beside them."""
    files = {"README.md": b"# FlashRAG", "nq/dev.jsonl": b"{}"}
    for folder, row in ROWS.items():
        line = json.dumps(row).encode() + b"\n"
        files[f"{folder}/{row['id'].split('_')[0]}.jsonl"] = line
        files[f"{folder}/train.jsonl"] = b"not to be fetched"
    hub.put("dataset", question_sets.REPOSITORY, files, licence="cc-by-sa-4.0")
    return hub


def kr1_data(hub, tmp_path, name, **more):
    words = ["data", name, "--out", str(tmp_path / "out")]
    return hub.kr1(words, tmp_path / "cache", **more)


@pytest.mark.parametrize("name", question_sets.TEST_SETS)
def test_a_set_comes_by_name_as_it_was_published(flashrag, tmp_path, name):
    done = kr1_data(flashrag, tmp_path, name)
    assert done.returncode == 0, done.stderr
    folder = question_sets.TEST_SETS[name].split("/")[0]
    [question] = corpus.load_questions(tmp_path / "out" / "test.jsonl")
    for key, value in ROWS[folder].items():
        assert question[key] == value
    assert f"1 questions of {question_sets.REPOSITORY}" in done.stdout
    assert "licence cc-by-sa-4.0" in done.stdout
    delivered = [file for file, _ in flashrag.delivered]
    assert delivered == [question_sets.TEST_SETS[name]]


def test_the_same_set_again_changes_nothing_and_needs_no_hub(flashrag, tmp_path):
    kr1_data(flashrag, tmp_path, "musique")
    before = (tmp_path / "out" / "test.jsonl").stat().st_mtime_ns
    flashrag.stop()
    done = kr1_data(flashrag, tmp_path, "musique")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "test.jsonl").stat().st_mtime_ns == before


def test_other_questions_in_the_folder_stay(flashrag, tmp_path):
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "test.jsonl"
    mine.write_text("mine")
    done = kr1_data(flashrag, tmp_path, "hotpotqa")
    assert done.returncode == 2
    assert "holds other questions already" in done.stderr.splitlines()[-1]
    assert mine.read_text() == "mine"


def test_an_unknown_set_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(ValueError, match="'squad': choose one of 2wiki, hotpotqa"):
        question_sets.fetch_test_set("squad", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_one_sentence_says_so(flashrag, tmp_path):
    flashrag.stop()
    done = kr1_data(flashrag, tmp_path, "bamboogle")
    assert done.returncode == 2
    assert "does not answer" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
