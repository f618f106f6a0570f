"""Kills a run at random moments and compares what it makes in the end with an
undisturbed run.

    python tests/kill_anywhere.py --kills 20 --out kills.csv

A place is a part of the run: the building of the index, a training step, the writing of
a checkpoint, the saving of what was trained, the evaluation, the time between two
notebooks. SIGKILL goes to the run's whole process group; the same command then goes on,
and is killed again, until it ends by itself. No notebook that was complete and no step
that a checkpoint covers may be done again ("resumed"), and all is compared exactly, but
for seconds and memory ("equal")."""

import argparse
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
from kr1_utils.reproduce import NOTEBOOKS

SETTINGS = {
    "max_steps": 6,
    "save_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "eval_questions": 4,
    "bootstrap_samples": 20,
}
COPIES = 40  # of the corpus, so that its index takes a while
# Place: the notebook, and the code of the cells from which and up to which it is.
CELLS = {
    "index": ("01", "Retriever.build(where", "Retriever.build(where"),
    "step": ("03", "grpo.train(", "grpo.train("),
    "checkpoint": ("03", "grpo.train(", "grpo.train("),
    "saving": ("03", "models.save_adapter(", "(out / name).exists()"),
    "evaluation": ("04", "answer(base, test)", "summary.json"),
}
PLACES = (*CELLS, "between")
# PEFT notes the layers' names beside it in any order
WEIGHTS = "checkpoint/adapter_model.safetensors"
MADE = {
    "01": ["retrieval.json", "index"],
    "03": ["train_log.csv", "trajectories.jsonl", WEIGHTS],
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


def untimed(value):
    """A JSON value without what tells of time or memory."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def content(file: Path):
    """What a file, or each file of a folder, holds, less time and memory."""
    if file.is_dir():
        return {f.name: f.read_bytes() for f in file.iterdir()}
    if file.suffix == ".csv":
        return [untimed(row) for row in csv.DictReader(file.open())]
    return (
        untimed(json.loads(file.read_text()))
        if file.suffix == ".json"
        else file.read_bytes()
    )


def differences(one: Path, other: Path, numbers=tuple(MADE)) -> list[str]:
    """Outputs of these notebooks that are not equal."""
    return [
        name
        for n in numbers
        for name in MADE[n]
        if content(one / name) != content(other / name)
    ]


def descendants(pid: int) -> list[int]:
    """Its children and theirs: a kernel is in no group of its parent's."""
    try:
        children = [
            int(c)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for c in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return children + [d for c in children for d in descendants(c)]


def lives(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


class Killer:
    """Runs, kills and compares in one folder."""

    def __init__(self, folder: Path, seed: int = 0, settings: dict = SETTINGS):
        self.folder, self.out, self.whole = (
            folder,
            folder / "out",
            folder / "undisturbed",
        )
        self.data, self.random = folder / "data", random.Random(seed)
        self.sets = [
            word
            for k, v in settings.items()
            for word in ("--set", f"{k}={json.dumps(v)}")
        ]
        self.steps = (
            settings["max_steps"] // settings["save_steps"]
        )  # checkpoints of a run
        self.data.mkdir(parents=True)
        world = REPO / "data" / "miniwiki"
        for name in ("train", "test", "test_single"):
            shutil.copy(world / f"{name}.jsonl", self.data)
        passages = [json.loads(line) for line in (world / "passages.jsonl").open()]
        with (self.data / "passages.jsonl").open("w") as file:
            for n in range(
                COPIES
            ):  # the later ones are noise: their words are their own
                for p in passages:
                    text = (
                        p["text"]
                        if not n
                        else " ".join(f"{word}{n}" for word in p["text"].split())
                    )
                    row = {
                        "id": f"{n}-{p['id']}",
                        "title": p["title"] + n * " copy",
                        "text": text,
                    }
                    file.write(json.dumps(row) + "\n")

    def start(self, only: str = "") -> subprocess.Popen:
        self.began = time.time_ns()
        words = [
            "--profile",
            "tiny",
            "--data",
            str(self.data),
            "--out",
            str(self.out),
            *self.sets,
        ]
        log = (self.folder / "log.txt").open("a")
        self.run = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kr1_utils.reproduce",
                *words,
                *(["--only", only] if only else []),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return self.run

    def finish(self, only: str = "") -> None:
        if self.start(only).wait():
            raise RuntimeError(f"The run stopped: see {self.folder / 'log.txt'}.")

    def undisturbed(self) -> None:
        """Run it notebook after notebook, and keep what there is before each."""
        for number in NOTEBOOKS:
            if self.out.exists():
                shutil.copytree(self.out, self.folder / f"before{number}")
            else:
                (self.folder / f"before{number}").mkdir()
            self.finish(number)
        shutil.copytree(self.out, self.whole)

    def restore(self, number: str) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.folder / f"before{number}", self.out)

    def fresh(self, file: Path) -> bool:
        """Whether this attempt wrote the file."""
        try:
            return file.stat().st_mtime_ns > self.began
        except OSError:  # not there, or just removed: the run goes on while we look
            return False

    def cells(self, number: str, folder: Path) -> list[dict]:
        """The code cells of a notebook that runs, as papermill last saved it."""
        file = (
            folder / f"{number}.failed.ipynb"
            if folder == self.out
            else folder / f"{number}.ipynb"
        )
        try:
            return [
                c
                for c in json.loads(file.read_text())["cells"]
                if c["cell_type"] == "code"
            ]
        except (OSError, ValueError):  # not yet, or being written
            return []

    def inside(self, place: str) -> bool:
        """Whether the run is in this place now."""
        number, first, last = CELLS[place]
        cells = (
            self.cells(number, self.out)
            if self.fresh(self.out / f"{number}.failed.ipynb")
            else []
        )
        at = [
            i
            for i, c in enumerate(cells)
            if c["metadata"]["papermill"]["status"] == "running"
        ]
        source = ["".join(c["source"]) for c in cells]
        bounds = [
            next(i for i, s in enumerate(source) if word in s)
            for word in (first, last)
            if source
        ]
        return bool(at) and bounds[0] <= at[0] <= bounds[1]

    def length(self, place: str) -> float:
        """Seconds that the undisturbed run spent there."""
        number, first, last = CELLS[place]
        cells = self.cells(number, self.whole)
        source = ["".join(c["source"]) for c in cells]
        bounds = [
            next(i for i, s in enumerate(source) if word in s) for word in (first, last)
        ]
        return sum(
            c["metadata"]["papermill"]["duration"]
            for c in cells[bounds[0] : bounds[1] + 1]
        )

    def half_written(self) -> set[str]:
        """Checkpoints that do not say that they are complete."""

        def whole(folder):
            try:
                return bool(json.loads((folder / "trainer_state.json").read_text()))
            except (OSError, ValueError):
                return False

        try:
            folders = list((self.out / "training").glob("checkpoint-*"))
        except OSError:  # removed while it was listed
            return set()
        return {f.name for f in folders if not whole(f)}

    def complete(self) -> tuple[dict, list[str]]:
        """What is done, and must not be done again: notebooks, by the time at which
        they were written, and training steps that a checkpoint covers, by the seconds
        that they took."""
        books = {
            f.stem: (self.out / f"{f.stem}.ipynb").stat().st_mtime_ns
            for f in (self.out / ".done").glob("*.json")
        }
        whole = {
            f.name for f in (self.out / "training").glob("checkpoint-*")
        } - self.half_written()
        steps = max((int(name.split("-")[1]) for name in whole), default=0)
        log = self.out / "train_log.csv"
        rows = (
            [row["step_time"] for row in csv.DictReader(log.open())]
            if log.exists()
            else []
        )
        return books, rows if "03" in books else rows[:steps]

    def went_on(self, before: tuple[dict, list[str]]) -> bool:
        """Whether nothing of what was complete has been done again."""
        (books, rows), (books_now, rows_now) = before, self.complete()
        return books.items() <= books_now.items() and rows_now[: len(rows)] == rows

    def kill(self, run: subprocess.Popen) -> bool:
        """SIGKILL for its process group; whether it still ran."""
        family, running = descendants(run.pid), run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        until = time.monotonic() + 5
        while any(map(lives, family)):
            if time.monotonic() > until:
                raise RuntimeError("A process of the killed run goes on.")
            time.sleep(0.005)
        return running

    def wait(self, run: subprocess.Popen, ready, seconds: float) -> bool:
        """Wait until `ready()`, and for so long after it; False if the run ends
        first."""
        while not ready():
            if run.poll() is not None:
                return False
            time.sleep(0.002 if seconds < 0.1 else 0.05)
        try:
            run.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            return True

    def attempt(self, place: str, spans: dict) -> str:
        """Start the command and kill it in this place: "killed", "missed", or "ended"
        by itself."""
        if place == "between":
            waiting = [
                n for n in NOTEBOOKS if not (self.out / ".done" / f"{n}.json").exists()
            ]
            run, number = self.start(), waiting[0] if waiting else "05"
            file = self.out / f"{number}.ipynb"
            hit = self.wait(run, lambda: self.fresh(file), self.random.uniform(0, 2))
            following = f"{int(number) + 1:02d}"
            landed = hit and self.kill(run)
            started = self.fresh(self.out / f"{following}.failed.ipynb")
            cells = self.cells(following, self.out) if started else []
            landed = landed and not any(c["execution_count"] for c in cells)
        elif place == "checkpoint":
            before, seen, skip = (
                self.half_written(),
                set(),
                self.random.randrange(self.steps),
            )
            run = self.start(CELLS[place][0])

            def ready():
                seen.update(
                    self.half_written() - before
                    if self.fresh(self.out / "training")
                    else ()
                )
                return len(seen) > skip and self.half_written()

            hit = self.wait(
                run, ready, self.random.uniform(0, spans.setdefault(place, 0.05))
            )
            landed = hit and self.kill(run) and bool(self.half_written())
            spans[place] *= 1 if landed or not hit else 0.7
        else:
            run = self.start(CELLS[place][0])
            hit = self.wait(
                run,
                lambda: self.inside(place),
                self.random.uniform(0, self.length(place)),
            )
            landed = hit and self.inside(place) and self.kill(run)
        if hit and run.poll() is None:
            self.kill(run)
        if not hit and run.returncode:
            raise RuntimeError(f"The run stopped: see {self.folder / 'log.txt'}.")
        return "killed" if landed else "missed" if hit else "ended"

    def torment(self, place: str, kills: int, killed=lambda: None) -> dict:
        """Kill runs so often in this place; each goes on until it ends, and is
        compared."""
        try:
            return self._torment(place, kills, killed)
        # what goes wrong here must leave no run behind that writes to the next one's
        # folder
        finally:
            if self.run.poll() is None:
                self.kill(self.run)

    def _torment(self, place: str, kills: int, killed) -> dict:
        numbers = list(MADE) if place == "between" else [CELLS[place][0]]
        row, spans, ended = (
            {"place": place, "kills": 0, "resumed": 0, "equal": 0},
            {},
            True,
        )
        kept, resumed = ({}, []), 0
        while row["kills"] < kills or not ended:
            if ended:
                self.restore("01" if place == "between" else numbers[0])
                chain, resumed, kept, ended = 0, 0, self.complete(), False
            if row["kills"] < kills:
                result = self.attempt(place, spans)
            else:  # the last one runs to the end of all
                self.finish()
                result, numbers = "ended", list(MADE)
            if not self.went_on(kept):
                print(place, "did again what was complete", flush=True)
                resumed = -kills  # none of this chain counts
            kept = self.complete()
            chain, resumed = (
                chain + (result == "killed"),
                resumed + (result == "killed"),
            )
            if result == "killed":
                row["kills"] += 1
                killed()
            ended = result == "ended"
            if ended:
                left = [
                    f.name for f in self.out.glob("*") if f.suffix in (".part", ".old")
                ]
                bad = differences(self.out, self.whole, numbers) + left
                if bad:
                    print(place, "differs in", *bad, flush=True)
                row["resumed"] += max(0, resumed)
                row["equal"] += chain * (not bad)
        return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="in each place")
    parser.add_argument(
        "--place", action="append", choices=PLACES, help="only there; may come twice"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", default="", help="CSV with a line a place")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder, "kill"), args.seed)
        killer.undisturbed()
        for place in args.place or PLACES:
            with progress(args.kills, place, " kills") as bar:
                rows.append(killer.torment(place, args.kills, bar.update))
            print(
                "{place}: {kills} kills, {resumed} resumed, {equal} equal".format(
                    **rows[-1]
                ),
                flush=True,
            )
    if args.out:
        with Path(args.out).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return int(any(min(row["equal"], row["resumed"]) < row["kills"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
