"""Owns the measurement of a busy machine: training beside another process.

PyTorch's threads wait for each other by spinning. Beside a busy process, a thread that
spins takes the core that another thread needs. GOMP_SPINCOUNT says how long they spin;
importing kr1_utils sets it.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from kr1_utils.bench.machine import machine_name

# GNU OpenMP's own number, where nobody sets another, and the package's.
SPIN_COUNTS = {"as GNU OpenMP has it": "300000", "as kr1_utils sets it": "1000"}
STEPS = 6
BUSY = "while True: pass"


def measure(arguments) -> pd.DataFrame:
    """The table of `kr1 bench busy`, see `measure_steps`."""
    return measure_steps(arguments.steps)


def measure_steps(steps: int = STEPS) -> pd.DataFrame:
    """Seconds of a training step of `tiny`, on a quiet machine and on a busy one.

    Args:
        steps: of each training; the first is not counted.

    Returns:
        one row per setting and state of the machine: `spinning`, `other_processes` (0
        or 1, which keeps one core busy), `seconds` (the median of the steps),
        `machine`.
    """
    rows = []
    for other_processes in (0, 1):
        for spinning, count in SPIN_COUNTS.items():
            with _busy_processes(other_processes):
                seconds = _seconds_of_a_step(steps, count)
            rows.append(
                {
                    "spinning": spinning,
                    "other_processes": other_processes,
                    "seconds": seconds,
                    "machine": machine_name(),
                }
            )
    return pd.DataFrame(rows)


@contextlib.contextmanager
def _busy_processes(number: int):
    """While it is entered, `number` other processes keep one core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _seconds_of_a_step(steps: int, spin_count: str) -> float:
    """The median, of a training in a process of its own: the setting is read once."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kr1_utils.bench.busy", folder, str(steps)]
        environment = {**os.environ, "GOMP_SPINCOUNT": spin_count}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        log = pd.read_csv(Path(folder) / "train_log.csv")
    return statistics.median(log["step_time"][1:])


def train(folder: Path, steps: int, retriever=None) -> None:
    """Train `tiny` for this number of steps, in this process.

    Args:
        retriever: None builds an index of its passages.
    """
    from kr1_utils import corpus, models, rewards, trainer
    from kr1_utils.profiles import resolve
    from kr1_utils.retriever.search import Retriever

    profile = resolve("tiny", {"max_steps": steps, "save_steps": steps})
    model, tokenizer = models.load_profile(profile, trainable=True)
    where = corpus.locate_files(profile)
    questions = corpus.load_split(where, "train")
    trainer.KnowledgeGRPOTrainer(
        model,
        args=trainer.grpo_config(profile, 42, folder / "training"),
        train_dataset=corpus.training_set(questions),
        processing_class=tokenizer,
        peft_config=models.lora_config(profile),
        retriever=retriever or Retriever.build(where["passages"]),
        limits=profile.limits,
        reward_funcs=rewards.reward_functions(profile)[0],
        folder=folder,
        system_prompt=profile.system_prompt,
    ).train()


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
