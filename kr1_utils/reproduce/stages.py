"""Owns the whole run: the notebooks 01–05 in order, finished ones skipped.

Where a cold start belongs to the profile, A3 runs behind 01.

Each notebook is a `Stage`. When it has run to its end, OUT/.done/<number>.json notes
how long it took and a stamp: one hash of everything the notebook depends on. A stage
with the same stamp, whose files are still there, is not run again.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from kr1_utils.corpus import locate_files
from kr1_utils.files import expand_home, in_repository, shipped, write_text
from kr1_utils.notebook import COLD_START_MODEL, index_folder, setup
from kr1_utils.profiles import Profile, resolve
from kr1_utils.reproduce import downloads
from kr1_utils.reproduce.accelerate import Spread, launch
from kr1_utils.reproduce.papermill import run_notebook
from kr1_utils.retriever.build import fingerprint


@dataclass(frozen=True)
class Stage:
    """One notebook of the run.

    Attributes:
        number: "01" to "05", or "A3"; OUT/<number>.ipynb is the notebook once it has
            run.
        notebook: its name in notebooks/, without the ending.
        outputs: what it must have left in OUT to be complete; the first one also has
            left the index.
        invalidates: stages that show what this one makes, and so are outdated when it
            runs.
    """

    number: str
    notebook: str
    outputs: tuple[str, ...] = ()
    invalidates: tuple[str, ...] = ()


INDEXING = Stage("01", "01_build_index", outputs=("retrieval.json",))
TRAINING = Stage(
    "03",
    "03_train_grpo",
    outputs=("train_log.csv", "trajectories.jsonl", "checkpoint"),
    invalidates=("04", "05"),
)
COLD_START = Stage(
    "A3",
    "A3_cold_start",
    outputs=(str(COLD_START_MODEL), "cold_start_log.csv"),
    invalidates=("02", "03", "04", "05"),
)
STAGES = (
    INDEXING,
    COLD_START,
    Stage("02", "02_agent_loop"),
    TRAINING,
    Stage("04", "04_evaluate", outputs=("predictions.jsonl", "summary.json")),
    Stage("05", "05_response_length"),
)


@dataclass(frozen=True)
class Request:
    """What a run is asked to do.

    Attributes:
        profile: a name in profiles.toml.
        seed: from 0 to 2**32 - 1.
        out: folder for outputs; "" is data/runs/<profile>.
        data: folder with passages and questions; "" is the profile's own.
        only: number of the one notebook to run; None runs all.
        force: run finished notebooks again.
        num_processes: how many train together, one per GPU.
        accelerate_config: Accelerate's file that says how they train; "" is DDP.
        overrides: settings of the profile to change.
    """

    profile: str = "tiny"
    seed: int = 42
    out: str = ""
    data: str = ""
    only: str | None = None
    force: bool = False
    num_processes: int = 1
    accelerate_config: str = ""
    overrides: dict = field(default_factory=dict)


def reproduce(request: Request) -> dict:
    """Run what is asked for, stage by stage, and say how each went.

    What the profile names on the hub is fetched first.

    Returns:
        what summary.json then holds, with the seconds of each notebook.

    Raises:
        ValueError, OSError: for a bad request, before any notebook runs; also if
            another run has this OUT.
        RuntimeError: if a notebook fails; the same request goes on from there.
        ImportError: without the extra [notebooks].
    """
    stages = stages_of(resolve(request.profile, request.overrides))
    _check_only(request.only, stages)
    # Where the package is installed alone, it says here that there are no notebooks.
    shipped("notebooks")
    parameters = {
        "PROFILE": request.profile,
        "SEED": request.seed,
        "OUT": request.out,
        "DATA": request.data,
        "OVERRIDES": request.overrides,
    }
    profile, out = setup(parameters)
    spread = _spread(request, profile)
    parameters = _with_absolute_paths(parameters)
    with _acquire_lock(out):
        downloads.fetch(profile, parameters["DATA"], index_folder(out))
        current_stamp = _stamp_of_inputs(profile, parameters["DATA"])
        for stage in stages:
            stage_spread = spread if stage is TRAINING else None
            current_stamp = stamp(stage, current_stamp, parameters, stage_spread)
            if request.only not in (None, stage.number):
                continue
            print(f"{stage.notebook:20}", end=" ", flush=True)
            if stage is INDEXING and profile.retriever and not request.only:
                print("not needed: another process serves the index", flush=True)
                continue
            if is_complete(stage, out, current_stamp) and not request.force:
                seconds = _read_record(out, stage.number)["seconds"]
                print(f"complete already, {seconds:.0f} s", flush=True)
            else:
                print("…", end=" ", flush=True)
                seconds = run_stage(stage, out, parameters, current_stamp, stage_spread)
                print(f"{seconds:.0f} s", flush=True)
            if stage is TRAINING:
                _remove_training_state(out, profile.grpo["max_steps"])
        return _add_seconds(out)


def stages_of(profile: Profile) -> list[Stage]:
    """The stages of a profile's run; A3 only where it has to make a cold start."""
    return [
        stage
        for stage in STAGES
        if stage is not COLD_START or profile.cold_start is True
    ]


def stamp(
    stage: Stage, previous_stamp: str, parameters: dict, spread: Spread | None = None
) -> str:
    """A hash of all that a stage depends on.

    Args:
        previous_stamp: of the stage before it, whose work this one goes on with; the
            first stage has the stamp of the run's inputs there.
        parameters: of the notebook.
        spread: of training, where several processes share it.
    """
    source = shipped(f"notebooks/{stage.notebook}.ipynb").read_text(encoding="utf-8")
    # Only code: outputs and explanations change nothing that a run makes.
    code = [
        cell["source"]
        for cell in json.loads(source)["cells"]
        if cell["cell_type"] == "code"
    ]
    processes = None
    if spread is not None:
        settings = Path(spread.config).read_text() if spread.config else ""
        processes = [asdict(spread), settings]
    return _hash([previous_stamp, parameters, code, processes])


def is_complete(stage: Stage, out: Path, current_stamp: str) -> bool:
    """Whether a stage ran to its end with this stamp, and all that it made is there."""
    record = _read_record(out, stage.number)
    if record is None or record["stamp"] != current_stamp:
        return False
    made = [out / f"{stage.number}.ipynb", *(out / name for name in stage.outputs)]
    if stage is INDEXING:
        made.append(index_folder(out))
    return all(path.exists() for path in made)


def run_stage(
    stage: Stage,
    out: Path,
    parameters: dict,
    current_stamp: str,
    spread: Spread | None = None,
) -> float:
    """Run the notebook of a stage, then note that it is complete.

    Args:
        out: the folder OUT.
        parameters: of the notebook; paths are absolute.
        current_stamp: what to note it with.
        spread: of training, where several processes share it.

    Returns:
        the seconds it took, as noted.

    Raises:
        RuntimeError: if the notebook fails.
    """
    for number in (stage.number, *stage.invalidates):
        _record_file(out, number).unlink(missing_ok=True)
    source = shipped(f"notebooks/{stage.notebook}.ipynb")
    if spread is None:
        seconds = run_notebook(source, parameters, out / f"{stage.number}.ipynb")
    else:
        seconds = launch(source, parameters, out, spread)
    record = {"stamp": current_stamp, "seconds": round(seconds, 1)}
    write_text(_record_file(out, stage.number), json.dumps(record))
    return record["seconds"]


def show(summary: dict) -> str:
    """The summary as a small text table: before and after training."""
    rows = {
        "exact match, multi-hop": "em",
        "exact match, single-hop": "em_single",
        "F1, multi-hop": "f1",
        "searches, multi-hop": "searches",
        "sampled tokens, multi-hop": "response_length",
    }
    columns = {}
    for when in ("before", "after"):
        columns[when] = {
            label: summary.get(f"{key}_{when}") for label, key in rows.items()
        }
    table = pd.DataFrame(columns, dtype=float)
    return table.to_string(float_format="{:.3f}".format, na_rep="–")


def _check_only(only: str | None, stages: list[Stage]) -> None:
    """Refuse the number of a notebook that is not part of the run."""
    numbers = [stage.number for stage in stages]
    if only is not None and only not in numbers:
        raise ValueError(f"No notebook {only!r}: choose one of {', '.join(numbers)}.")


def _spread(request: Request, profile: Profile) -> Spread | None:
    """How training is spread over processes; None where one process trains alone."""
    rows = profile.grpo["per_device_train_batch_size"]
    processes = request.num_processes
    if processes < 1 or rows % processes != 0:
        raise ValueError(
            f"--num-processes {processes} must divide the {rows} trajectories of a"
            " batch."
        )
    config = ""
    if request.accelerate_config:
        file = Path(expand_home(request.accelerate_config)).resolve()
        if not file.is_file():
            raise FileNotFoundError(
                f"No file {request.accelerate_config}, given as --accelerate-config."
            )
        config = str(file)
    if processes == 1 and not config:
        return None
    return Spread(processes, rows // processes, config)


def _with_absolute_paths(parameters: dict) -> dict:
    """Parameters for notebooks, which run in a folder of their own."""
    absolute = dict(parameters)
    if parameters["OUT"]:
        absolute["OUT"] = str(Path(expand_home(parameters["OUT"])).resolve())
    data = expand_home(parameters["DATA"])
    # DATA may also be the name of a data set on the hub.
    if data and Path(data).is_dir():
        absolute["DATA"] = str(Path(data).resolve())
    return absolute


def _acquire_lock(out: Path):
    """Take OUT for this run: a context manager that gives it back.

    The system gives it back too when the process ends, however it ends.
    """
    folder = out / ".done"
    folder.mkdir(exist_ok=True)
    try:
        return FileLock(folder / "lock").acquire(blocking=False)
    except Timeout:
        raise OSError(
            f"OUT={out} is another run's, which has not ended: wait, or choose another."
        ) from None


def _stamp_of_inputs(profile: Profile, data: str) -> str:
    """A hash of what a run is made of: profile, passages, questions and model."""
    files = [file for file in locate_files(profile, data).values() if file]
    model = in_repository(profile.model)
    if model.is_dir():
        files.extend(sorted(model.glob("*.*")))
    return _hash([asdict(profile), [fingerprint(file) for file in files]])


def _hash(value: list) -> str:
    """One hash of any JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _record_file(out: Path, number: str) -> Path:
    """Where it is noted that a stage is complete."""
    return out / ".done" / f"{number}.json"


def _read_record(out: Path, number: str) -> dict | None:
    """Stamp and seconds of a stage that ran to its end, else None."""
    file = _record_file(out, number)
    return json.loads(file.read_text()) if file.exists() else None


def _remove_training_state(out: Path, max_steps: int) -> None:
    """Remove what only a run that was cut off needs, if training reached its last step.

    It is called after the stage was noted as complete: until then, a run that is killed
    goes on from this state.
    """
    if len(pd.read_csv(out / "train_log.csv")) != max_steps:
        return
    # First, for without this file nothing in the folder counts.
    (out / "training" / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(out / "training", ignore_errors=True)


def _add_seconds(out: Path) -> dict:
    """Put the seconds of each complete notebook, and their sum, into summary.json."""
    seconds = {}
    for stage in STAGES:
        record = _read_record(out, stage.number)
        if record is not None:
            seconds[stage.number] = record["seconds"]
    seconds["total"] = round(sum(seconds.values()), 1)
    file = out / "summary.json"
    if not file.exists():
        # 04_evaluate makes it.
        return {"seconds": seconds}
    summary = json.loads(file.read_text())
    summary["seconds"] = seconds
    write_text(file, json.dumps(summary, indent=1))
    return summary
