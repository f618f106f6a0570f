"""Kills a run at random moments and compares what it makes in the end with an
undisturbed run.

    python tests/kill_anywhere.py --kills 20 --out kills.csv

A place is a part of the run: the building of the index, a training step, the writing of
a checkpoint, the saving of what was trained, the evaluation, the time between two
notebooks. SIGKILL goes to the run's whole process group; the same command then goes on,
and is killed again, in one place after the other, until it ends by itself. No notebook
that was complete and no step that a checkpoint covers may be done again ("resumed"),
and everything is compared exactly, except seconds and memory ("equal")."""

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kr1_utils.files import REPO
from kr1_utils.notebook import progress
from kr1_utils.profiles import PROFILES
from kr1_utils.reproduce.stages import stages_of

NUMBERS = [stage.number for stage in stages_of(PROFILES["tiny"])]
SETTINGS = {
    "max_steps": 6,
    "save_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "eval_questions": 4,
    "bootstrap_samples": 20,
}
# Copies of the corpus, so that its index takes a while.
COPIES = 40
# Place: the notebook, and the code of its first and of its last cell.
CELLS = {
    "index": ("01", "Retriever.build(where", "Retriever.build(where"),
    "step": ("03", "grpo.train(", "grpo.train("),
    "checkpoint": ("03", "grpo.train(", "grpo.train("),
    "saving": ("03", "models.save_adapter(", "(out / name).exists()"),
    "evaluation": ("04", "answer(base, questions)", "summary.json"),
}
PLACES = (*CELLS, "between")
# In this order a run comes by them; it may be killed several times in one.
TIMES_IN_ONE = 4
ROUTE = [
    *["index"] * TIMES_IN_ONE,
    *["between"] * 2,
    *["step"] * TIMES_IN_ONE,
    *["checkpoint"] * TIMES_IN_ONE,
    *["saving"] * TIMES_IN_ONE,
    "between",
    *["evaluation"] * TIMES_IN_ONE,
    "between",
]
MADE = {
    "01": ["retrieval.json", "index"],
    "03": [
        "train_log.csv",
        "trajectories.jsonl",
        # Not the file beside it: PEFT writes the layers' names there in any order.
        "checkpoint/adapter_model.safetensors",
    ],
    "04": [
        "predictions.jsonl",
        "predictions_before.jsonl",
        "ladder.jsonl",
        "scores.csv",
        "summary.json",
    ],
}
TIMES = {
    "step_time",
    "peak_memory_gib",
    "seconds",
    "passages_per_second",
    "queries_per_second",
}


# --- what was made ---


def untimed(value):
    """A JSON value without what tells of time or memory."""
    if isinstance(value, dict):
        return {
            key: untimed(inside) for key, inside in value.items() if key not in TIMES
        }
    if isinstance(value, list):
        return [untimed(inside) for inside in value]
    return value


def content(file: Path):
    """What a file, or each file of a folder, holds, without time and memory."""
    if file.is_dir():
        return {inside.name: inside.read_bytes() for inside in file.iterdir()}
    if file.suffix == ".csv":
        return [untimed(row) for row in read_csv(file)]
    if file.suffix == ".json":
        return untimed(json.loads(file.read_text()))
    return file.read_bytes()


def read_csv(file: Path) -> list[dict]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def differences(one: Path, other: Path) -> list[str]:
    """Outputs of two runs that are not equal."""
    names = [name for made in MADE.values() for name in made]
    return [name for name in names if content(one / name) != content(other / name)]


# --- processes ---


def descendants(pid: int) -> list[int]:
    """Its children and theirs: a kernel is not in the process group of its parent."""
    children = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children.extend(map(int, (task / "children").read_text().split()))
    except OSError:
        # It has ended.
        return []
    found = list(children)
    for child in children:
        found.extend(descendants(child))
    return found


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False
    return status.split()[0] != "Z"


def send_all(pids: list[int], sign: signal.Signals) -> None:
    """Send a signal to those of these processes that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)


class Killer:
    """Runs, kills and compares in one folder.

    Attributes:
        out: OUT of the runs that are killed.
        whole: OUT of the undisturbed run.
        data: passages and questions of all of them.
        run: the process of the last run, started at the time `began`.
    """

    def __init__(self, folder: Path, seed: int = 0, settings: dict = SETTINGS):
        self.folder = folder
        self.out = folder / "out"
        self.whole = folder / "undisturbed"
        self.data = folder / "data"
        self.random = random.Random(seed)
        self.sets = [
            f"--set={key}={json.dumps(value)}" for key, value in settings.items()
        ]
        self.steps = settings["max_steps"]
        self.save_steps = settings["save_steps"]
        self.checkpoints = self.steps // self.save_steps
        # Place -> seconds that a run spends there, at most.
        self.lengths: dict[str, float] = {}
        self._write_data()

    def _write_data(self) -> None:
        """Write the shipped world, with copies of its passages.

        The copies are noise: their words are their own, so that the same passages are
        found."""
        self.data.mkdir(parents=True)
        world = REPO / "data" / "miniwiki"
        for name in ("train", "test", "test_single"):
            shutil.copy(world / f"{name}.jsonl", self.data)
        with (world / "passages.jsonl").open() as lines:
            passages = [json.loads(line) for line in lines]
        with (self.data / "passages.jsonl").open("w") as file:
            for number in range(COPIES):
                for passage in passages:
                    row = copied(passage, number) if number else passage
                    row = {**row, "id": f"{number}-{passage['id']}"}
                    file.write(json.dumps(row) + "\n")

    # --- runs ---

    def start(self) -> subprocess.Popen:
        """Start the command."""
        self.began = time.time_ns()
        words = ["--data", str(self.data), "--out", str(self.out), *self.sets]
        with (self.folder / "log.txt").open("a") as log:
            self.run = subprocess.Popen(
                [sys.executable, "-m", "kr1_utils", "run", *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.run

    def undisturbed(self) -> None:
        """Run it once to its end, and keep what it made."""
        self.start()
        self._end()
        self.out.rename(self.whole)

    def _end(self) -> None:
        """Let the run end."""
        if self.run.wait() != 0:
            raise RuntimeError(f"The run stopped: see {self.folder / 'log.txt'}.")

    def kill(self, run: subprocess.Popen) -> None:
        """SIGKILL for its process group."""
        family = descendants(run.pid)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        # A kernel that was held before it asked to end with its parent has yet to see
        # that it is alone.
        send_all(family, signal.SIGCONT)
        until = time.monotonic() + 5
        while any(map(lives, family)):
            if time.monotonic() > until:
                raise RuntimeError("A process of the killed run goes on.")
            time.sleep(0.005)

    def kill_if(self, run: subprocess.Popen, is_the_moment) -> bool:
        """Hold the run where it is and look: kill it if this is the moment for it, or
        let it go on.

        Returns:
            whether it was killed."""
        if run.poll() is not None:
            return False
        family = [run.pid, *descendants(run.pid)]
        send_all(family, signal.SIGSTOP)
        if is_the_moment():
            self.kill(run)
            return True
        send_all(family, signal.SIGCONT)
        return False

    def wait(self, ready, pause: float = 0.05) -> bool:
        """Wait until `ready()`; False if the run ends first."""
        while not ready():
            if self.run.poll() is not None:
                return False
            time.sleep(pause)
        return True

    def linger(self, longest: float) -> float:
        """Let the run go on for a random time, at most these seconds.

        Returns:
            the time, in seconds."""
        seconds = self.random.uniform(0, longest)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run.wait(seconds)
        return seconds

    # --- where a run is ---

    def fresh(self, file: Path) -> bool:
        """Whether this attempt wrote the file."""
        try:
            return file.stat().st_mtime_ns > self.began
        except OSError:
            # Not there, or just removed: the run goes on while we look.
            return False

    def inside(self, place: str) -> bool:
        """Whether the run is in this place now."""
        return "running" in self.statuses(place)

    def is_past(self, place: str) -> bool:
        """Whether the run has left this place behind."""
        if CELLS[place][0] in self.notebooks():
            return True
        statuses = self.statuses(place)
        return bool(statuses) and statuses[-1] == "completed"

    def statuses(self, place: str) -> list[str]:
        """What papermill says of the cells of this place; [] before it said a word."""
        file = self.out / f"{CELLS[place][0]}.failed.ipynb"
        cells = code_cells(file) if self.fresh(file) else []
        return [of_papermill(cell, "status") for cell in cells_of(place, cells)]

    def length(self, place: str) -> float:
        """Seconds that the undisturbed run spent there, or a later one less."""
        if place not in self.lengths:
            cells = cells_of(place, code_cells(self.whole / f"{CELLS[place][0]}.ipynb"))
            durations = [of_papermill(cell, "duration") for cell in cells]
            self.lengths[place] = sum(durations)
        return self.lengths[place]

    def half_written(self) -> set[str]:
        """Checkpoints that do not say that they are complete."""
        try:
            folders = list((self.out / "training").glob("checkpoint-*"))
        except OSError:
            # Removed while it was listed.
            return set()
        return {folder.name for folder in folders if not is_whole(folder)}

    def being_written(self) -> set[str]:
        """Checkpoints of which this attempt has written a part."""
        folder = self.out / "training"
        return {name for name in self.half_written() if self.fresh(folder / name)}

    def notebooks(self) -> dict[str, int]:
        """The numbers of the complete notebooks, with the time at which each was
        written."""
        return {
            record.stem: (self.out / f"{record.stem}.ipynb").stat().st_mtime_ns
            for record in (self.out / ".done").glob("*.json")
        }

    def complete(self) -> tuple[dict, list[str]]:
        """What is done, and must not be done again.

        Returns:
            notebooks, with the time at which each was written; and the seconds of each
            training step that a checkpoint covers."""
        notebooks = self.notebooks()
        log = self.out / "train_log.csv"
        seconds = [row["step_time"] for row in read_csv(log)] if log.exists() else []
        if "03" in notebooks:
            return notebooks, seconds
        checkpoints = {
            folder.name for folder in (self.out / "training").glob("checkpoint-*")
        }
        whole = checkpoints - self.half_written()
        last = max((int(name.split("-")[1]) for name in whole), default=0)
        return notebooks, seconds[:last]

    def went_on(self, before: tuple[dict, list[str]]) -> bool:
        """Whether nothing that was complete has been done again."""
        notebooks, steps = before
        notebooks_now, steps_now = self.complete()
        same_steps = steps_now[: len(steps)] == steps
        return notebooks.items() <= notebooks_now.items() and same_steps

    # --- killing ---

    def torment(self, kills: int, places=PLACES, killed=lambda: None) -> list[dict]:
        """Kill runs this often in each of these places.

        One run after the other is killed wherever its route comes by a place that has
        too few kills, and goes on until it ends; then it is compared.

        Args:
            killed: called after each kill, for progress.

        Returns:
            a row per place: place, kills, and how many of them were resumed and ended
            equal."""
        rows = {
            place: {"place": place, "kills": 0, "resumed": 0, "equal": 0}
            for place in places
        }
        try:
            while any(row["kills"] < kills for row in rows.values()):
                self._torment_one(kills, rows, killed)
        finally:
            # What goes wrong here must leave no run behind that writes to the folder
            # of the next one.
            self._abandon()
        return list(rows.values())

    def _abandon(self) -> None:
        """Kill the run, if it has not ended."""
        if self.run.poll() is None:
            self.kill(self.run)

    def _torment_one(self, kills: int, rows: dict[str, dict], killed) -> None:
        """Kill one run wherever a kill is wanted, let it end, and compare it."""
        shutil.rmtree(self.out, ignore_errors=True)
        # For each kill: its place, and what was complete then.
        hits = []
        self.start()
        for place in ROUTE:
            if place not in rows or rows[place]["kills"] == kills:
                continue
            if self.kill_in(place):
                rows[place]["kills"] += 1
                killed()
                hits.append((place, self.complete()))
                self.start()
        if not hits:
            # There is nothing to compare it for.
            self._abandon()
            return
        self._end()
        equal = self._is_equal()
        for place, complete_then in hits:
            rows[place]["resumed"] += self.went_on(complete_then)
            rows[place]["equal"] += equal

    def kill_in(self, place: str) -> bool:
        """Kill the run in this place.

        Returns:
            False if it left the place before there was a moment to kill it; it goes on
            then, if it has not ended."""
        if place == "between":
            return self._kill_between()
        if place == "checkpoint":
            return self._kill_in_checkpoint()
        return self._kill_inside(place)

    def _kill_between(self) -> bool:
        """Kill when another notebook is complete, before the next one executes a
        cell."""
        done = len(self.notebooks())
        if done >= len(NUMBERS) - 1:
            return False
        self.wait(lambda: len(self.notebooks()) > done)
        # A kernel starts for a second or two before it executes its first cell.
        self.linger(1.0)
        following = self.out / f"{NUMBERS[done + 1]}.failed.ipynb"
        return self.kill_if(self.run, lambda: not self.executed(following))

    def executed(self, file: Path) -> bool:
        """Whether this attempt has executed a cell of this notebook."""
        cells = code_cells(file) if self.fresh(file) else []
        return any(cell["execution_count"] for cell in cells)

    def _kill_in_checkpoint(self) -> bool:
        """Kill while one of the checkpoints that are left, chosen by chance, is
        written."""
        _, steps = self.complete()
        left = self.checkpoints - len(steps) // self.save_steps
        skip = self.random.randrange(max(left, 1))
        seen = set()

        def ready():
            writing = self.being_written()
            seen.update(writing)
            return (writing and len(seen) > skip) or self.is_past("checkpoint")

        while self.wait(ready, pause=0.002) and not self.is_past("checkpoint"):
            self.linger(0.05)
            if self.kill_if(self.run, self.being_written):
                return True
        return False

    def _kill_inside(self, place: str) -> bool:
        """Kill while the cells of this place are executed."""
        self.wait(lambda: self.inside(place) or self.is_past(place))
        if self.is_past(place):
            return False
        longest = self.length(place) * self.share_left(place)
        seconds = self.linger(longest)
        if self.kill_if(self.run, lambda: self.inside(place)):
            return True
        if longest:
            # It was faster than the runs before it.
            self.lengths[place] *= seconds / longest
        return False

    def share_left(self, place: str) -> float:
        """How much of a place a run that goes on has left to do, of 1."""
        if place != "step":
            return 1.0
        _, steps = self.complete()
        return 1 - len(steps) / self.steps

    def _is_equal(self) -> bool:
        """Whether the run left what the undisturbed one did, and nothing half
        written."""
        left = [
            file.name for file in self.out.iterdir() if file.suffix in (".part", ".old")
        ]
        bad = differences(self.out, self.whole) + left
        if bad:
            print("The run differs in", *bad, flush=True)
        return not bad


def copied(passage: dict, number: int) -> dict:
    """A passage of other words."""
    words = [f"{word}{number}" for word in passage["text"].split()]
    return {
        "id": passage["id"],
        "title": passage["title"] + number * " copy",
        "text": " ".join(words),
    }


def code_cells(file: Path) -> list[dict]:
    """The code cells of a notebook, as papermill last saved it."""
    try:
        notebook = json.loads(file.read_text())
    except (OSError, ValueError):
        # Not there yet, or being written.
        return []
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def cells_of(place: str, cells: list[dict]) -> list[dict]:
    """The cells of a place, of all code cells of its notebook."""
    if not cells:
        return []
    _, first, last = CELLS[place]
    sources = ["".join(cell["source"]) for cell in cells]
    return cells[cell_with(first, sources) : cell_with(last, sources) + 1]


def of_papermill(cell: dict, key: str):
    """What papermill notes in a cell: its status, its duration in seconds, …"""
    return cell["metadata"]["papermill"][key]


def cell_with(word: str, sources: list[str]) -> int:
    for index, source in enumerate(sources):
        if word in source:
            return index
    raise ValueError(f"No cell has {word!r}.")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint says that it is complete."""
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_text()))
    except (OSError, ValueError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="in each place")
    parser.add_argument(
        "--place", action="append", choices=PLACES, help="only there; may come twice"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", default="", help="CSV with one line per place")
    arguments = parser.parse_args()
    places = arguments.place or PLACES
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder, "kill"), arguments.seed)
        killer.undisturbed()
        with progress(len(places) * arguments.kills, "killing", " kills") as bar:
            rows = killer.torment(arguments.kills, places, bar.update)
    for row in rows:
        print("{place}: {kills} kills, {resumed} resumed, {equal} equal".format(**row))
    if arguments.out:
        with Path(arguments.out).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    failed = [row for row in rows if min(row["equal"], row["resumed"]) < row["kills"]]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
