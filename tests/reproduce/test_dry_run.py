"""The dry run says what a run would take, refuses what it would, and writes nothing."""

import pytest

from kr1_utils import cli
from kr1_utils.files import REPO


def times_of_all_files() -> dict:
    """When each file of the repository was last written."""
    folders = [path for path in REPO.iterdir() if not path.name.startswith(".")]
    files = [file for folder in folders for file in folder.rglob("*")]
    return {
        file: file.stat().st_mtime_ns
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.mark.parametrize(
    "name, gpu, words",
    [
        (
            "7b",
            "80",
            [
                "per_device_train_batch_size = 64",
                "generation_batch_size = 64",
                "bf16 = True",
                "r = 16",
                "gpu_memory_utilization = 0.45",
                "max_completion_length = 8192",
                "15.2 GB",
                "PeterJinGo/wiki-18-corpus:wiki-18.jsonl.gz (passages)",
                "hzy/kr1_2wiki:train (train)",
            ],
        ),
        ("7b-4bit", "24", ["four_bit = True", "transformers samples", "packed"]),
        pytest.param(
            "1.5b",
            "24",
            ["Qwen2.5-1.5B-Instruct (model): 3.1 GB", "max_model_length = 4608"],
            marks=pytest.mark.slow,
        ),
        ("tiny", "8", ["here already", "no vLLM", "data/miniwiki/passages.jsonl"]),
    ],
)
def test_dry_run_says_what_it_takes_and_writes_nothing(
    name, gpu, words, tmp_path, capsys
):
    before = times_of_all_files()
    out = str(tmp_path / "out")
    line = ["run", "--profile", name, "--dry-run", "--gpu-gib", gpu, "--out", out]
    assert cli.main(line) == 0
    printed = capsys.readouterr().out
    for word in [*words, "estimated, not measured", "It fits", "simulated"]:
        assert word in printed, word
    assert times_of_all_files() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--set", "max_response_tokens=1000"], "smaller than one turn"),
        (["--set", "tokens_per_micro_batch=8000"], "less than one row"),
        (["--set", "overlong_tokens=9000"], "must be fewer"),
        (["--gpu-gib", "23"], "Unknown GPU size 23"),
        (["--data", "no/such/folder"], "no passages.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_dry_run_refuses_what_a_run_would(words, sentence, capsys):
    assert cli.main(["run", "--profile", "7b", "--dry-run", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
