"""What a run takes from the hub is listed with size and licence, and brought once."""

import gzip
import io
import json
import shutil
import tarfile

import pandas as pd
import pytest

from kr1_utils import files, hub_files
from kr1_utils.profiles import resolve
from kr1_utils.reproduce import downloads
from kr1_utils.reproduce.stages import stages_of

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
CORPUS = "PeterJinGo/wiki-18-corpus"
QUESTIONS = "hzy/kr1_2wiki"

# What makes a run of `1.5b` one of seconds on a CPU, with the weights of tiny-lm.
SHORT = {
    "bf16": False,
    "gradient_checkpointing": False,
    "use_vllm": False,
    "max_steps": 2,
    "save_steps": 2,
    "warmup_steps": 0,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "eval_questions": 8,
    "bootstrap_samples": 100,
    "max_turns": 2,
    "top_k": 1,
    "max_turn_tokens": 64,
    "max_observation_tokens": 128,
    "max_response_tokens": 512,
    "tokens_per_micro_batch": 4096,
}


def in_search_r1s_form(passages):
    """Passages as wiki-18.jsonl.gz has them: gzip over tar over one file of lines."""
    lines = [
        {"id": str(number), "contents": f'"{row["title"]}"\n{row["text"]}'}
        for number, row in enumerate(passages)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    member = tarfile.TarInfo("data/wiki_dump.jsonl")
    member.size = len(text)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(member, io.BytesIO(text))
    return gzip.compress(packed.getvalue())


def in_knowledge_r1s_form(questions):
    """Questions as kr1_2wiki has them: parquet, without ids."""
    rows = [
        {"problem": row["question"], "golden_answers": row["golden_answers"]}
        for row in questions
    ]
    table = io.BytesIO()
    pd.DataFrame(rows).to_parquet(table)
    return table.getvalue()


@pytest.fixture
def originals(hub, world, questions):
    """A hub with a small copy of what `1.5b` names, in its published form."""
    tiny = files.REPO / "data" / "tiny-lm"
    hub.put(
        "model",
        MODEL,
        {file.name: file.read_bytes() for file in tiny.iterdir()}
        | {"onnx/model.bin": b"not to be fetched"},
        licence="apache-2.0",
    )
    passages = in_search_r1s_form(world.passages)
    hub.put("dataset", CORPUS, {"wiki-18.jsonl.gz": passages})
    hub.put(
        "dataset",
        QUESTIONS,
        {
            f"data/{split}-00000-of-00001.parquet": in_knowledge_r1s_form(rows)
            for split, rows in (
                ("train", questions["train"][:40]),
                ("test", questions["test"][:20]),
            )
        },
        licence="mit",
    )
    return hub


LIST = """
from kr1_utils.profiles import resolve
from kr1_utils.reproduce import downloads
print(*downloads.listing(resolve("1.5b"), "", 3.1e9), sep="\\n")
"""
FETCH = """
from pathlib import Path
from kr1_utils.profiles import resolve
from kr1_utils.reproduce import downloads
downloads.fetch(resolve("1.5b"), "", Path("index"))
"""


def listed(hub, home):
    done = hub.python(LIST, home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_download_is_listed_with_size_and_licence_and_nothing_comes(
    originals, tmp_path
):
    model, passages, train, test, disk = listed(originals, tmp_path)
    assert model.startswith(f"{MODEL} (model): ")
    assert model.endswith("licence apache-2.0")
    assert passages.startswith(f"{CORPUS}:wiki-18.jsonl.gz (passages): ")
    assert passages.endswith("no licence declared on the hub")
    for line, split in ((train, "train"), (test, "test")):
        assert line.startswith(f"{QUESTIONS}:{split} ({split}): ")
        assert line.endswith("licence mit")
    assert "of disk" in disk
    assert originals.delivered == []
    assert list(tmp_path.rglob("blobs")) == []


def test_what_is_fetched_is_here_afterwards_also_without_the_hub(originals, tmp_path):
    done = originals.python(FETCH, tmp_path)
    assert done.returncode == 0, done.stderr
    names = sorted(name for name, _ in originals.delivered)
    assert names == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "model.safetensors",
        "wiki-18.jsonl.gz",
    ]
    originals.stop()
    assert originals.python(FETCH, tmp_path).returncode == 0
    assert [line.endswith("here already") for line in listed(originals, tmp_path)] == [
        True
    ] * 4


def test_without_a_hub_the_list_says_what_is_known(originals, tmp_path):
    originals.stop()
    model, passages, *_ = listed(originals, tmp_path)
    assert "3.1 GB by its weights" in model
    assert "does not answer" in model
    assert "does not answer" in passages


def test_a_run_without_a_network_ends_before_its_first_notebook(originals, tmp_path):
    originals.stop()
    words = ["run", "--profile", "1.5b", "--out", str(tmp_path / "out")]
    done = originals.kr1(words, tmp_path)
    assert done.returncode == 2
    assert "does not answer" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.ipynb"))


def test_room_is_asked_for_the_downloads_and_the_index_together(tmp_path, monkeypatch):
    need = downloads.Need("passages", f"{CORPUS}:wiki-18.jsonl.gz")
    file = hub_files.HubFile(
        repository=CORPUS,
        kind="dataset",
        name="wiki-18.jsonl.gz",
        commit="c",
        size=5_000_000_000,
        digest="d",
        licence="",
    )
    asked = []
    monkeypatch.setattr(downloads.Need, "is_here", lambda _: False)
    monkeypatch.setattr(downloads.Need, "files", lambda _: [file])
    monkeypatch.setattr(downloads, "needs", lambda profile, data: [need])
    monkeypatch.setattr(hub_files, "fetch", lambda file: asked.append(file))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 4e10)
    )
    with pytest.raises(OSError, match=r"takes 42\.5 GB .* has 40\.0 GB free"):
        downloads.fetch(resolve("1.5b"), "", tmp_path / "index")
    assert asked == []
    # With the index made, only the download needs room.
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / downloads.MANIFEST).touch()
    downloads.fetch(resolve("1.5b"), "", tmp_path / "index")
    assert asked == [file]


def test_your_own_folder_and_model_need_no_hub(tmp_path):
    data = str(files.REPO / "data" / "miniwiki")
    assert downloads.needs(resolve("tiny")) == []
    assert downloads.needs(resolve("1.5b"), data) == [downloads.Need("model", MODEL)]
    own = resolve("1.5b", {"model": "data/tiny-lm"})
    assert downloads.needs(own, data) == []
    # It has a way of its own.
    assert downloads.needs(resolve("smol"), data) == []


@pytest.mark.slow
def test_the_originals_by_one_command(originals, tmp_path):
    settings = [f"--set={key}={json.dumps(value)}" for key, value in SHORT.items()]
    out = tmp_path / "out"
    words = ["run", "--profile", "1.5b", "--out", str(out), *settings]
    # Two minutes, on a machine that does nothing else.
    done = originals.kr1(words, tmp_path / "cache", timeout=3600)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["train_steps"] == 2
    numbers = [stage.number for stage in stages_of(resolve("1.5b"))]
    assert set(summary["seconds"]) == {*numbers, "total"}
    assert len(pd.read_json(out / "predictions.jsonl", lines=True)) == 8
    # Again, and nothing is asked of the hub.
    originals.stop()
    done = originals.kr1(words, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("complete already") == len(numbers)
