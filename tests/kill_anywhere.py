"""Kills a run at random moments and compares what it makes in the end with an
undisturbed run.

    python tests/kill_anywhere.py --kills 20 --out kills.csv

A place is a part of the run: the building of the index, a training step, the writing of
a checkpoint, the saving of what was trained, the evaluation, the time between two
notebooks. SIGKILL goes to the run's whole process group; the same command then goes on,
and is killed again, until it ends by itself. No notebook that was complete and no step
that a checkpoint covers may be done again ("resumed"), and everything is compared
exactly, except seconds and memory ("equal")."""

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


def differences(one: Path, other: Path, numbers=tuple(MADE)) -> list[str]:
    """Outputs of these notebooks that are not equal."""
    names = [name for number in numbers for name in MADE[number]]
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
        self.save_steps = settings["save_steps"]
        self.checkpoints = settings["max_steps"] // self.save_steps
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

    def start(self, only: str = "") -> subprocess.Popen:
        """Start the command, of one notebook or of all."""
        self.began = time.time_ns()
        words = ["--data", str(self.data), "--out", str(self.out), *self.sets]
        if only:
            words += ["--only", only]
        with (self.folder / "log.txt").open("a") as log:
            self.run = subprocess.Popen(
                [sys.executable, "-m", "kr1_utils", "run", *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.run

    def finish(self, only: str = "") -> None:
        """Run the command to its end."""
        if self.start(only).wait() != 0:
            self._stopped()

    def _stopped(self):
        raise RuntimeError(f"The run stopped: see {self.folder / 'log.txt'}.")

    def undisturbed(self) -> None:
        """Run it notebook after notebook, and keep what there is before each."""
        for number in NUMBERS:
            before = self.folder / f"before{number}"
            if self.out.exists():
                shutil.copytree(self.out, before)
            else:
                before.mkdir()
            self.finish(number)
        shutil.copytree(self.out, self.whole)

    def restore(self, number: str) -> None:
        """Bring OUT back to what it was before this notebook."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.folder / f"before{number}", self.out)

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

    def wait(self, run: subprocess.Popen, ready, seconds: float) -> bool:
        """Wait until `ready()`, and these seconds after it; False if the run ends
        first."""
        pause = 0.002 if seconds < 0.1 else 0.05
        while not ready():
            if run.poll() is not None:
                return False
            time.sleep(pause)
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

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
        file = self.out / f"{CELLS[place][0]}.failed.ipynb"
        cells = code_cells(file) if self.fresh(file) else []
        if not cells:
            return False
        first, last = bounds_of(place, cells)
        return any(
            cell["metadata"]["papermill"]["status"] == "running"
            for cell in cells[first : last + 1]
        )

    def length(self, place: str) -> float:
        """Seconds that the undisturbed run spent there."""
        cells = code_cells(self.whole / f"{CELLS[place][0]}.ipynb")
        first, last = bounds_of(place, cells)
        return sum(
            cell["metadata"]["papermill"]["duration"]
            for cell in cells[first : last + 1]
        )

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

    def complete(self) -> tuple[dict, list[str]]:
        """What is done, and must not be done again.

        Returns:
            notebooks, with the time at which each was written; and the seconds of each
            training step that a checkpoint covers."""
        notebooks = {
            record.stem: (self.out / f"{record.stem}.ipynb").stat().st_mtime_ns
            for record in (self.out / ".done").glob("*.json")
        }
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

    def attempt(self, place: str) -> bool:
        """Start the command and kill it in this place.

        Returns:
            False if it ended by itself before there was a moment to kill it."""
        if place == "between":
            killed = self._kill_between()
        elif place == "checkpoint":
            killed = self._kill_in_checkpoint()
        else:
            killed = self._kill_inside(place)
        if not killed and self.run.wait() != 0:
            self._stopped()
        return killed

    def _kill_between(self) -> bool:
        """Kill after the first notebook that is left, before the next one executes a
        cell; or, where that was missed, after the next."""
        left = [
            number
            for number in NUMBERS
            if not (self.out / ".done" / f"{number}.json").exists()
        ]
        run = self.start()
        for number in left:
            file = self.out / f"{number}.ipynb"
            following = self.out / f"{int(number) + 1:02d}.failed.ipynb"
            # A kernel starts for a second or two before it executes its first cell.
            seconds = self.random.uniform(0, 1.0)
            self.wait(run, lambda file=file: self.fresh(file), seconds)
            if self.kill_if(run, lambda cells=following: not self.executed(cells)):
                return True
        return False

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
        run = self.start("03")

        def ready():
            writing = self.being_written()
            seen.update(writing)
            return len(seen) > skip and writing

        while self.wait(run, ready, self.random.uniform(0, 0.05)):
            if self.kill_if(run, self.being_written):
                return True
        return False

    def _kill_inside(self, place: str) -> bool:
        """Kill while the cells of this place are executed."""
        run = self.start(CELLS[place][0])
        seconds = self.random.uniform(0, self.length(place))
        self.wait(run, lambda: self.inside(place), seconds)
        return self.kill_if(run, lambda: self.inside(place))

    def torment(self, place: str, kills: int, killed=lambda: None) -> dict:
        """Kill this many runs in this place; each goes on until it ends, and is
        compared.

        Args:
            killed: called after each kill, for progress.

        Returns:
            a row: place, kills, and how many of them were resumed and ended equal."""
        try:
            return self._torment(place, kills, killed)
        finally:
            # What goes wrong here must leave no run behind that writes to the folder
            # of the next one.
            if self.run.poll() is None:
                self.kill(self.run)

    def _torment(self, place: str, kills: int, killed) -> dict:
        row = {"place": place, "kills": 0, "resumed": 0, "equal": 0}
        while row["kills"] < kills:
            self.restore("01" if place == "between" else CELLS[place][0])
            self._chain(place, kills, row, killed)
        return row

    def _chain(self, place: str, kills: int, row: dict, killed) -> None:
        """Kill one run again and again until it ends by itself, and compare it."""
        numbers = list(MADE) if place == "between" else [CELLS[place][0]]
        in_chain = 0
        all_resumed = True
        kept = self.complete()
        goes_on = True
        while goes_on:
            if row["kills"] < kills:
                goes_on = self.attempt(place)
            else:
                # The last one runs to the end of all notebooks.
                self.finish()
                goes_on = False
                numbers = list(MADE)
            if not self.went_on(kept):
                print(place, "did again what was complete", flush=True)
                all_resumed = False
            kept = self.complete()
            if goes_on:
                in_chain += 1
                row["kills"] += 1
                killed()
        left = [
            file.name for file in self.out.iterdir() if file.suffix in (".part", ".old")
        ]
        bad = differences(self.out, self.whole, numbers) + left
        if bad:
            print(place, "differs in", *bad, flush=True)
        if all_resumed:
            row["resumed"] += in_chain
        if not bad:
            row["equal"] += in_chain


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


def bounds_of(place: str, cells: list[dict]) -> tuple[int, int]:
    """The places of the first and the last cell in a notebook's code cells."""
    _, first, last = CELLS[place]
    sources = ["".join(cell["source"]) for cell in cells]
    return cell_with(first, sources), cell_with(last, sources)


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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder, "kill"), arguments.seed)
        killer.undisturbed()
        for place in arguments.place or PLACES:
            with progress(arguments.kills, place, " kills") as bar:
                row = killer.torment(place, arguments.kills, bar.update)
            rows.append(row)
            print(
                "{place}: {kills} kills, {resumed} resumed, {equal} equal".format(
                    **row
                ),
                flush=True,
            )
    if arguments.out:
        with Path(arguments.out).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    failed = [row for row in rows if min(row["equal"], row["resumed"]) < row["kills"]]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
