"""What waits for a GPU runs on a CPU too, row by row, and is measured once."""

import argparse
import json
import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kr1_utils import cli
from kr1_utils.bench import gpu
from kr1_utils.files import REPO

TINY = "data/tiny-lm"


def arguments(**changes):
    given = {
        "model": TINY,
        "tokens": [48, 64],
        "minutes": 25,
        "forecasts": False,
        "csv": None,
        "json": False,
    }
    return argparse.Namespace(**given | changes)


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def measured(monkeypatch):
    """The tasks that were "measured" so far: each costs nothing."""
    seen = []

    def run_task(task):
        seen.append(task.what)
        return {"measured_gib": 2.0, "seconds": 1.0}

    monkeypatch.setattr(gpu, "train", run_task)
    monkeypatch.setattr(gpu, "generate", run_task)
    monkeypatch.setattr(gpu, "forecast", lambda row: 3.0)
    return seen


# --- what is measured ---


def test_every_task_runs_on_a_cpu_with_a_small_model(on_a_cpu, tmp_path, capsys):
    file = tmp_path / "gpu.csv"
    line = ["bench", "gpu", "--model", TINY, "--tokens", "48", "64"]
    assert cli.main([*line, "--csv", str(file)]) == 0
    assert "generate" in capsys.readouterr().out
    table = pd.read_csv(file)
    assert list(table.columns) == gpu.COLUMNS
    assert list(table["what"]) == ["small", "memory", "memory", "train", "generate"]
    assert list(table["tokens"]) == [64, 48, 64, 64, 64]
    assert table["measured_gib"].isna().all()
    assert (table["simulated_gib"] > 0).all()
    assert (table["seconds"] > 0).all()
    assert table["note"].isna().all()


def test_a_training_step_changes_the_adapter_alone(on_a_cpu, monkeypatch):
    made = []
    random_model = gpu.random_model

    def random_model_kept(config, step):
        model = random_model(config, step)
        before = {name: w.detach().clone() for name, w in model.named_parameters()}
        made.append((model, before))
        return model

    monkeypatch.setattr(gpu, "random_model", random_model_kept)
    row = gpu.train(gpu.Task("train", TINY, 48))
    assert row["note"] == ""
    [(model, before)] = made
    changed = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert changed and all("lora_" in name for name in changed)


def test_a_generation_writes_to_its_full_length(on_a_cpu):
    row = gpu.generate(gpu.Task("generate", TINY, 64))
    assert row["note"] == ""
    assert row["tokens_per_second"] == pytest.approx(32 / row["seconds"])
    # One that is too slow ends by time, and says so.
    slow = gpu.Task("generate", TINY, 64, most_seconds=0)
    assert "ended by time" in gpu.generate(slow)["note"]


def test_a_generation_is_forecast_from_weights_and_cache():
    config = gpu.config_of(TINY)
    short = gpu.forecast({"what": "generate", "model": TINY, "tokens": 64})
    long = gpu.forecast({"what": "generate", "model": TINY, "tokens": 128})
    per_token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads
    per_token *= config.hidden_size // config.num_attention_heads
    assert (long - short) * gpu.GIB == pytest.approx(64 * per_token)
    weights = load_file(f"{TINY}/model.safetensors").values()
    parameters = sum(weight.numel() for weight in weights)
    assert short * gpu.GIB == pytest.approx(2 * parameters + 64 * per_token, rel=0.01)


def test_what_does_not_fit_has_a_note(on_a_cpu, monkeypatch):
    def too_large(task):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "train", too_large)
    row = gpu.measure(gpu.Task("memory", TINY, 48))
    assert row["note"] == gpu.OUT_OF_MEMORY
    assert math.isnan(row["measured_gib"])


def test_weights_are_random_and_shared_ones_stay_shared(on_a_cpu):
    model = gpu.random_model(gpu.config_of(TINY), gpu.Step(1, 64))
    embeddings = model.get_input_embeddings().weight
    assert embeddings is model.get_output_embeddings().weight
    assert embeddings.float().std().item() == pytest.approx(0.02, rel=0.1)


def test_without_trl_all_logits_are_computed_and_forecast(on_a_cpu, tmp_path):
    absent = ["trl", "datasets", "vllm", "bm25s", "Stemmer", "gguf", "tantivy"]
    file = tmp_path / "gpu.csv"
    words = ["bench", "gpu", "--model", TINY, "--tokens", "48", "--csv", str(file)]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        "from kr1_utils import cli\n"
        f"sys.exit(cli.main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(file).set_index("what")
    assert set(table["log_probabilities"].dropna()) == {"full"}
    chunked = gpu.simulate(gpu.config_of(TINY), gpu.Task("memory", TINY, 48).step)
    assert table["simulated_gib"]["small"] > chunked.peak / gpu.GIB


# --- which tasks, and when ---


def test_large_models_are_refused_where_there_is_no_gpu(on_a_cpu):
    with pytest.raises(ValueError, match="no GPU to measure.*--model data/tiny-lm"):
        gpu.tasks(None, None)


def test_on_a_gpu_the_three_sizes_are_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tasks = gpu.tasks(None, None)
    memory = [(task.model, task.tokens) for task in tasks if task.what == "memory"]
    assert memory == [(model, n) for model in gpu.MODELS for n in gpu.LENGTHS]
    others = {task.what: (task.model, task.tokens) for task in tasks}
    assert others["train"] == others["generate"] == (gpu.MODELS[-1], 8192)
    assert others["small"] == (gpu.SMALL_MODEL, 1792)
    # Of their shapes nothing is downloaded.
    for model in (*gpu.MODELS, gpu.SMALL_MODEL):
        name = model.split("/")[1]
        assert (REPO / "data" / "reference" / "configs" / f"{name}.json").is_file()


def test_rows_that_are_there_are_not_measured_again(on_a_cpu, measured, tmp_path):
    file = tmp_path / "gpu.csv"
    gpu.run(arguments(csv=file))
    assert measured == ["small", "memory", "memory", "train", "generate"]
    rows = file.read_text().splitlines()
    file.write_text("\n".join(rows[:3]) + "\n")
    measured.clear()
    gpu.run(arguments(csv=file))
    assert measured == ["memory", "train", "generate"]
    assert file.read_text().splitlines() == rows
    measured.clear()
    gpu.run(arguments(csv=file, tokens=[48, 64, 96]))
    # What depends on the longest is longer now.
    assert measured == ["small", "memory", "train", "generate"]


def test_each_row_is_kept_before_the_next_is_measured(
    on_a_cpu, measured, tmp_path, monkeypatch
):
    file = tmp_path / "gpu.csv"

    def breaks(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "generate", breaks)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(arguments(csv=file))
    assert list(pd.read_csv(file)["what"]) == ["small", "memory", "memory", "train"]


def test_nothing_is_begun_after_the_time_is_over(on_a_cpu, measured, tmp_path):
    file = tmp_path / "gpu.csv"
    gpu.run(arguments(csv=file, minutes=-1))
    assert measured == []
    gpu.run(arguments(csv=file))
    assert len(measured) == 5


def test_forecasts_are_put_beside_rows_of_another_machine(
    on_a_cpu, measured, tmp_path, monkeypatch
):
    file = tmp_path / "gpu.csv"
    monkeypatch.setattr(gpu, "add_forecasts", lambda rows, file, end: None)
    gpu.run(arguments(csv=file))
    monkeypatch.undo()
    table = pd.read_csv(file).assign(machine="NVIDIA H100", simulated_gib=math.nan)
    table.loc[0, "simulated_gib"] = 7.0
    table.to_csv(file, index=False)
    monkeypatch.setattr(gpu, "forecast", lambda row: 3.0)
    gpu.run(arguments(csv=file, model=None, tokens=None, forecasts=True))
    after = pd.read_csv(file)
    assert list(after["simulated_gib"]) == [7.0, 3.0, 3.0, 3.0, 3.0]
    assert list(after["measured_gib"]) == [2.0] * 5
    assert set(after["machine"]) == {"NVIDIA H100"}


def test_a_table_of_another_benchmark_is_refused_before_anything(measured, tmp_path):
    file = tmp_path / "other.csv"
    file.write_text("passages,seconds\n1,2\n")
    with pytest.raises(ValueError, match="table of another benchmark.*no column what"):
        gpu.run(arguments(csv=file))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        gpu.run(arguments(csv=tmp_path / "no" / "gpu.csv"))
    with pytest.raises(ValueError, match="name it with --csv"):
        gpu.run(arguments(forecasts=True))
    assert measured == []


def test_json_has_null_for_what_was_not_measured(on_a_cpu, measured, capsys):
    gpu.run(arguments(json=True, tokens=[48]))
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["what"] for row in rows] == ["small", "memory", "train", "generate"]
    assert {row["tokens_per_second"] for row in rows} == {None}


def test_what_a_gpu_took_is_what_was_forecast():
    """What the READMEs say: at most 3 % more, in every row."""
    table = pd.read_csv(REPO / "data/reference/bench_gpu.csv")
    assert len(table) >= 25 and table["note"].isna().all()
    ratio = table["measured_gib"] / table["simulated_gib"]
    assert ratio.between(1, 1.03).all(), ratio
