"""More than one process: the same training, no process waits for ever, and a kill loses
nothing."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from kr1_utils import reproduce
from kr1_utils.files import REPO

WORKER = REPO / "tests" / "train_worker.py"
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--main_process_port=0",
    "--num_processes=2",
]
# DeepSpeed is not among the requirements; where it is installed, it is tested, too.
SPREAD = ["ddp", "fsdp", *(["zero2", "zero3"] if find_spec("deepspeed") else [])]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SHORT = [
    "--profile",
    "tiny",
    "--num-processes",
    "2",
    *(
        f"--set={key}={value}"
        for key, value in dict(
            max_steps=6, per_device_train_batch_size=16, num_generations=4, save_steps=2
        ).items()
    ),
]
TIMED = ("step_time", "peak_memory_gib")


def work(folder, mode, how="alone"):
    """Run the worker to its end; a deadlock is a failure, not a test without end."""
    config = str(REPO / "data" / "accelerate" / f"{how}.yaml")
    launch = [] if how == "alone" else [*LAUNCH, "--config_file", config]
    done = subprocess.run(
        [sys.executable, *launch, str(WORKER), str(folder), mode],
        text=True,
        capture_output=True,
        timeout=600,
        env={**ONE_THREAD, "HOW": how},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = folder / f"{mode}_{how}"
    return log_of(out), torch.load(out / "weights.pt", weights_only=True)


def log_of(out):
    with (out / "train_log.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def call(out, only):
    return [
        sys.executable,
        "-m",
        "kr1_utils.reproduce",
        *SHORT,
        "--out",
        str(out),
        "--only",
        only,
    ]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Rollouts kept in a file, and what one process makes of them: folder, log,
    weights."""
    folder = tmp_path_factory.mktemp("replayed")
    work(folder, "record")
    return folder, *work(folder, "replay")


@pytest.mark.parametrize("how", SPREAD)
def test_two_processes_train_as_one_does_on_the_same_rollouts(replayed, how):
    folder, log, weights = replayed
    log_2, weights_2 = work(folder, "replay", how)
    assert [r["step"] for r in log_2] == [r["step"] for r in log] == ["1", "2", "3"]
    for row, row_2 in zip(log, log_2):
        for column in (
            "loss",
            "grad_norm",
            "reward",
            "entropy",
            "frac_reward_zero_std",
            "searches",
        ):
            assert float(row_2[column]) == pytest.approx(
                float(row[column]), abs=1e-4
            ), column
    assert weights.keys() == weights_2.keys()
    assert max((weights[n] - weights_2[n]).abs().max() for n in weights) < 1e-4
    start = [
        w for n, w in weights.items() if "lora_B" in n
    ]  # LoRA's B is 0 before training
    assert (
        max(w.abs().max() for w in start) > 5e-4
    )  # it has moved by more than the difference allowed


def test_no_process_waits_for_ever_where_the_other_ones_conversations_are_longer(
    tmp_path,
):
    log, _ = work(tmp_path, "ragged", "ddp")
    assert [r["step"] for r in log] == ["1", "2", "3"]
    assert {float(r["searches"]) for r in log} == {
        2.5
    }  # none in the first, five in the other


@pytest.mark.parametrize("how", SPREAD)
def test_no_process_waits_for_ever_where_the_other_one_samples_more_turns(
    tmp_path, how
):
    log, _ = work(tmp_path, "uneven", how)
    assert [r["step"] for r in log] == ["1", "2", "3"]
    assert all(float(r["searches"]) > 0 for r in log)  # the first process makes none


def test_a_number_of_processes_that_changes_the_experiment_is_refused(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kr1_utils.reproduce",
            "--out",
            str(tmp_path / "out"),
            "--num-processes",
            "3",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "must divide the 64 trajectories" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_error_in_a_process_ends_all_with_one_sentence(tmp_path):
    done = subprocess.run(
        call(tmp_path, "03"),
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1 and "run 01_build_index first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", ["all", "twelve"]
)  # of twelve, step 4 is in the second epoch
def test_a_killed_run_of_two_processes_goes_on_and_ends_as_an_undisturbed_one(
    asked, tmp_path
):
    logs, more, kill_at = {}, [], 3
    if asked == "twelve":
        (tmp_path / "data").mkdir()
        for name, file in dict(
            passages="passages", questions="test", train="train"
        ).items():
            lines = (
                (REPO / "data" / "miniwiki" / f"{file}.jsonl")
                .read_text()
                .splitlines(keepends=True)
            )
            kept = "".join(lines[:12] if name == "train" else lines)
            (tmp_path / "data" / f"{name}.jsonl").write_text(kept)
        more, kill_at = ["--data", str(tmp_path / "data")], 5
    for name in ("undisturbed", "killed"):
        out = tmp_path / name
        first, train = ([*call(out, number), *more] for number in ("01", "03"))
        subprocess.run(
            first, env=ONE_THREAD, check=True, capture_output=True, timeout=600
        )
        if name == "killed":
            with subprocess.Popen(
                train, env=ONE_THREAD, stdout=subprocess.DEVNULL
            ) as run:
                while (
                    not (out / "train_log.csv").exists() or len(log_of(out)) < kill_at
                ):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        pytest.fail(f"it ended by itself: {run.wait(timeout=0.1)}")
                run.kill()
            assert run.returncode == -signal.SIGKILL and len(log_of(out)) < 6
        subprocess.run(
            train, env=ONE_THREAD, check=True, capture_output=True, timeout=600
        )
        logs[name] = [
            {k: v for k, v in row.items() if k not in TIMED} for row in log_of(out)
        ]
        rows = [
            json.loads(line)["step"]
            for line in (out / "trajectories.jsonl").read_text().splitlines()
        ]
        assert rows == [step for step in range(1, 7) for _ in range(4)]
    assert logs["killed"] == logs["undisturbed"] and len(logs["killed"]) == 6


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    """As the README says: the second machine runs the script that the first one
    wrote."""
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
    config, out = tmp_path / "machines.yaml", tmp_path / "out"
    ddp = (REPO / "data" / "accelerate" / "ddp.yaml").read_text()
    config.write_text(ddp.replace("num_machines: 1", "\n".join(machines)))
    subprocess.run(
        call(out, "01"), env=ONE_THREAD, check=True, capture_output=True, timeout=600
    )
    with subprocess.Popen(
        [*call(out, "03"), "--accelerate-config", str(config)], env=ONE_THREAD
    ) as first:
        try:
            while not (out / "03.py").exists():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"it ended by itself: {first.wait(timeout=0.1)}")
            launch = [
                "-m",
                "accelerate.commands.launch",
                "--config_file",
                str(config),
                "--num_processes=2",
            ]
            subprocess.run(
                [sys.executable, *launch, "--machine_rank=1", str(out / "03.py")],
                env=ONE_THREAD,
                check=True,
                capture_output=True,
                timeout=600,
                cwd=tmp_path,
            )
            assert first.wait(timeout=600) == 0
        finally:
            first.kill()
    assert [r["step"] for r in log_of(out)] == list("123456") and (
        out / "checkpoint"
    ).is_dir()


@pytest.mark.slow
def test_two_processes_learn_as_one_does(tmp_path):
    learning = dict(max_steps=48, per_device_train_batch_size=48, save_steps=16)
    sets = [f"--set={key}={value}" for key, value in learning.items()]
    common = [
        "--profile",
        "tiny",
        "--num-processes",
        "2",
        "--out",
        str(tmp_path),
        *sets,
    ]
    for number in ("01", "03"):
        reproduce.reproduce(reproduce.arguments([*common, "--only", number]))
    log = log_of(tmp_path)
    assert [int(r["step"]) for r in log] == list(range(1, 49))
    first, last = (
        [float(r[c]) for r in part for c in ["accuracy_reward"]]
        for part in (log[:10], log[-10:])
    )
    assert sum(last) / 10 > sum(first) / 10 + 0.1
    assert (
        "48 steps" in (tmp_path / "03.log").read_text()
        and (tmp_path / "checkpoint").is_dir()
    )


@pytest.mark.parametrize(
    "file", sorted((REPO / "data" / "accelerate").glob("*.yaml")), ids=lambda f: f.stem
)
def test_accelerate_loads_the_config(file):
    config = load_config_from_file(str(file))
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(
        file.stem, "DEEPSPEED"
    )
    args = launch_command_parser().parse_args(
        ["--config_file", str(file), "--num_processes", "2", "03.py"]
    )
    args, *_ = _validate_launch_command(args)
    assert args.num_processes == 2 and args.mixed_precision == "no"
    assert args.use_deepspeed == file.stem.startswith("zero") and args.use_fsdp == (
        file.stem == "fsdp"
    )
    if args.use_deepspeed:
        assert args.zero_stage == int(file.stem[-1])


def test_readme_names_every_config():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert all(
        f"data/accelerate/{f.name}" in readme
        for f in (REPO / "data" / "accelerate").glob("*.yaml")
    )
