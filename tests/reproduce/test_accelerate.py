"""Training in several processes: the notebook's own code, launched by Accelerate."""

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import nbformat
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from helpers import kr1

from kr1_utils.files import REPO
from kr1_utils.profiles import resolve
from kr1_utils.reproduce import Request, reproduce
from kr1_utils.reproduce.accelerate import Spread, launch, script
from kr1_utils.trainer import grpo_config

CONFIGS = sorted((REPO / "data" / "accelerate").glob("*.yaml"))
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SHORT = {
    "max_steps": 6,
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "save_steps": 2,
}
TIMED = ("step_time", "peak_memory_gib")


def command(out, number, *more) -> list[str]:
    """A short run of one notebook, with two processes for training."""
    sets = [f"--set={key}={value}" for key, value in SHORT.items()]
    words = ["--num-processes", "2", "--out", str(out), "--only", number, *sets]
    return [sys.executable, "-m", "kr1_utils", "run", *words, *more]


def finish(line) -> None:
    """Run a command to its end."""
    subprocess.run(line, env=ONE_THREAD, check=True, capture_output=True, timeout=600)


def log_of(out) -> list[dict]:
    with (out / "train_log.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def untimed(rows) -> list[dict]:
    """Rows of a log without what tells of time or memory."""
    return [
        {key: value for key, value in row.items() if key not in TIMED} for row in rows
    ]


# --- one launch of a small notebook ---

PARAMETERS = {"PROFILE": "tiny", "OUT": "", "OVERRIDES": {"max_steps": 5}}


def small_notebook(folder, code):
    """A notebook in the place of the training notebook: parameters, then this code."""
    parameters = nbformat.v4.new_code_cell("OUT, OVERRIDES = '', {}")
    parameters.metadata["tags"] = ["parameters"]
    cell = nbformat.v4.new_code_cell(code, outputs=[], execution_count=9)
    notebook = nbformat.v4.new_notebook(cells=[parameters, cell])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    file = folder / "03_small.ipynb"
    nbformat.write(notebook, file)
    return file


@pytest.fixture
def out(tmp_path):
    """A folder OUT in which there is an index."""
    folder = tmp_path / "out"
    (folder / "index").mkdir(parents=True)
    return folder


def test_the_script_is_the_notebooks_code_with_these_parameters(tmp_path):
    notebook = small_notebook(tmp_path, "print(OVERRIDES)")
    code = script(notebook, PARAMETERS)
    compile(code, "03.py", "exec")
    given = code.index('OVERRIDES = {"max_steps": 5}')
    assert code.index("OUT, OVERRIDES") < given < code.index("print(OVERRIDES)")


def test_two_processes_run_the_code_and_what_the_first_one_says_is_kept(
    tmp_path, out, capfd
):
    code = (
        "import os\n"
        "print('rows', OVERRIDES['per_device_train_batch_size'])\n"
        "print('process', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])"
    )
    notebook = small_notebook(tmp_path, code)
    assert launch(notebook, PARAMETERS, out, Spread(processes=2, rows=8)) > 0
    log = (out / "03.log").read_text()
    assert "rows 8\n" in log
    assert "process 0 of 2\n" in log and "process 1 of 2" not in log
    assert log in capfd.readouterr().out
    saved = nbformat.read(out / "03.ipynb", 4)
    assert log in saved.cells[-1].source
    assert all(
        cell.execution_count is None and cell.outputs == []
        for cell in saved.cells
        if cell.cell_type == "code"
    )


def test_an_error_in_a_process_ends_all_and_is_named(tmp_path, out):
    notebook = small_notebook(
        tmp_path, "import os\nif os.environ['RANK'] == '1':\n    raise ValueError('no')"
    )
    with pytest.raises(RuntimeError, match="03_small, in 2 processes: ValueError: no"):
        launch(notebook, PARAMETERS, out, Spread(processes=2, rows=8))
    assert not (out / "03.ipynb").exists()


def test_several_processes_do_not_start_without_an_index(tmp_path):
    done = kr1("run", "--out", str(tmp_path), "--only", "03", "--num-processes", "2")
    assert done.returncode == 1
    assert "run 01_build_index first" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_processes_need_no_index_of_their_own_where_one_is_served(tmp_path):
    notebook = small_notebook(tmp_path, "print(OVERRIDES['retriever'])")
    url = "http://127.0.0.1:8000"
    parameters = {**PARAMETERS, "OVERRIDES": {"retriever": url}}
    launch(notebook, parameters, tmp_path, Spread(processes=2, rows=8))
    assert f"{url}\n" in (tmp_path / "03.log").read_text()


@pytest.mark.parametrize("processes", [0, 3])
def test_a_number_of_processes_that_changes_the_experiment_is_refused(
    processes, tmp_path
):
    with pytest.raises(ValueError, match="must divide the 64 trajectories"):
        reproduce(Request(out=str(tmp_path / "out"), num_processes=processes))


# --- files of settings ---


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_loads_the_config(file):
    config = load_config_from_file(str(file))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}
    assert config.distributed_type.value == kinds.get(file.stem, "DEEPSPEED")
    words = ["--config_file", str(file), "--num_processes", "2", "03.py"]
    parsed = launch_command_parser().parse_args(words)
    parsed, *_ = _validate_launch_command(parsed)
    assert parsed.num_processes == 2 and parsed.mixed_precision == "no"
    assert parsed.use_deepspeed == file.stem.startswith("zero")
    assert parsed.use_fsdp == (file.stem == "fsdp")
    if parsed.use_deepspeed:
        assert parsed.zero_stage == int(file.stem[-1])


ZERO = [file for file in CONFIGS if file.stem.startswith("zero")]


def deepspeed_plugin(file, monkeypatch):
    """What Accelerate tells DeepSpeed in a process that it launches with this file."""
    words = ["--config_file", str(file), "--num_processes", "2", "03.py"]
    parsed = launch_command_parser().parse_args(words)
    parsed, *_ = _validate_launch_command(parsed)
    parsed.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(parsed)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    return DeepSpeedPlugin()


@pytest.mark.parametrize("file", ZERO, ids=lambda file: file.stem)
def test_deepspeed_takes_the_accumulation_of_the_profile(file, monkeypatch):
    plugin = deepspeed_plugin(file, monkeypatch)
    name = "gradient_accumulation_steps"
    assert plugin.is_auto(name)
    assert plugin.is_auto("gradient_clipping")
    plugin.fill_match(name, must_match=False, **{name: 4})
    assert plugin.get_value(name) == 4


@pytest.mark.parametrize("file", ZERO, ids=lambda file: file.stem)
@pytest.mark.parametrize("steps", [1, 4])
def test_transformers_finds_no_mismatch_with_deepspeed(
    file, steps, monkeypatch, tmp_path
):
    pytest.importorskip("deepspeed")
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    overrides = {"gradient_accumulation_steps": steps, "max_grad_norm": 0.5}
    args = grpo_config(resolve("tiny", overrides), 42, tmp_path, use_cpu=True)
    plugin = deepspeed_plugin(file, monkeypatch)
    config = HfTrainerDeepSpeedConfig(plugin.hf_ds_config.config)
    config.trainer_config_process(args)
    # Training refuses to start with any.
    assert config.mismatches == []
    assert config.config["gradient_accumulation_steps"] == steps
    assert config.config["gradient_clipping"] == 0.5


def test_readme_names_every_config():
    readme = (REPO / "kr1_utils" / "README.md").read_text(encoding="utf-8")
    assert all(f"data/accelerate/{file.name}" in readme for file in CONFIGS)


# --- whole runs ---


def few_questions(folder):
    """A folder of data with twelve training questions: step 4 is in the second
    epoch."""
    folder.mkdir()
    world = REPO / "data" / "miniwiki"
    for name, source in (
        ("passages", "passages"),
        ("questions", "test"),
        ("train", "train"),
    ):
        lines = (world / f"{source}.jsonl").read_text().splitlines(keepends=True)
        if name == "train":
            lines = lines[:12]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def kill_at_step(step, line, out) -> None:
    """Start a run and kill it when its log has this step."""
    with subprocess.Popen(line, env=ONE_THREAD, stdout=subprocess.DEVNULL) as run:
        while not (out / "train_log.csv").exists() or len(log_of(out)) < step:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended by itself: {run.wait(timeout=0.1)}")
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert len(log_of(out)) < SHORT["max_steps"]


@pytest.mark.slow
def test_two_processes_killed_in_the_first_and_in_the_second_epoch_end_as_undisturbed(
    tmp_path,
):
    data = ["--data", str(few_questions(tmp_path / "data"))]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(command(undisturbed, "01", *data))
    shutil.copytree(undisturbed, killed)
    finish(command(undisturbed, "03", *data))
    train = command(killed, "03", *data)
    kill_at_step(3, train, killed)
    kill_at_step(5, train, killed)
    finish(train)
    for out in (undisturbed, killed):
        lines = (out / "trajectories.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == [step for step in range(1, 7) for _ in range(4)]
    assert len(log_of(undisturbed)) == 6
    assert untimed(log_of(killed)) == untimed(log_of(undisturbed))


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    """As kr1_utils/README.md says: the second machine runs the script that the first
    one wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        "num_machines: 2",
        "machine_rank: 0",
        "main_process_ip: 127.0.0.1",
        "same_network: true",
        f"main_process_port: {port}",
        "rdzv_backend: static",
    ]
    config = tmp_path / "machines.yaml"
    out = tmp_path / "out"
    ddp = (REPO / "data" / "accelerate" / "ddp.yaml").read_text()
    config.write_text(ddp.replace("num_machines: 1", "\n".join(machines)))
    finish(command(out, "01"))
    train = command(out, "03", "--accelerate-config", str(config))
    with subprocess.Popen(train, env=ONE_THREAD) as first:
        try:
            while not (out / "03.py").exists():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"it ended by itself: {first.wait(timeout=0.1)}")
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "accelerate.commands.launch",
                    "--config_file",
                    str(config),
                    "--num_processes=2",
                    "--machine_rank=1",
                    str(out / "03.py"),
                ],
                env=ONE_THREAD,
                check=True,
                capture_output=True,
                timeout=600,
                cwd=tmp_path,
            )
            assert first.wait(timeout=600) == 0
        finally:
            first.kill()
    assert [row["step"] for row in log_of(out)] == list("123456")
    assert (out / "checkpoint").is_dir()


@pytest.mark.slow
def test_two_processes_learn_as_one_does(tmp_path):
    overrides = {
        "max_steps": 24,
        "per_device_train_batch_size": 48,
        "save_steps": 8,
    }
    for number in ("01", "03"):
        reproduce(
            Request(
                out=str(tmp_path), only=number, num_processes=2, overrides=overrides
            )
        )
    log = log_of(tmp_path)
    assert [int(row["step"]) for row in log] == list(range(1, 25))
    rewards = [float(row["accuracy_reward"]) for row in log]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.1
    assert "24 steps" in (tmp_path / "03.log").read_text()
    assert (tmp_path / "checkpoint").is_dir()
