"""Owns what every notebook does first: parameters, output folder, progress bars."""

import ast
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from kr1_utils.corpus import load_questions, load_split, named_files
from kr1_utils.files import (
    REPO,
    data_folder,
    display_path,
    expand_home,
    in_repository,
)
from kr1_utils.profiles import PARAMETERS, Profile, resolve
from kr1_utils.runs import SHIPPED_RUN

# In the folder of a run: the adapter (or model) that A3 trains, and beside it the
# questions that it has left to train on.
COLD_START_MODEL = Path("cold_start", "checkpoint")
COLD_START_QUESTIONS = "train.jsonl"


def start() -> None:
    """Do what a notebook wants done before it imports anything heavy.

    transformers, datasets and others draw their progress bars with `tqdm.auto`. In a
    notebook without ipywidgets, its first import warns that "IProgress not found"; the
    plain bars that it draws then are what we want, so the warning is silenced.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")


def setup(parameters: dict) -> tuple[Profile, Path]:
    """Check a notebook's parameters, resolve its profile, and make its output folder.

    Args:
        parameters: PROFILE, SEED, OUT, DATA and OVERRIDES; "~" in OUT and DATA is the
            home folder. A notebook passes its `globals()`; then the names that
            papermill injected are checked too, for papermill itself only warns of
            unknown ones.

    Returns:
        (the profile, the output folder).

    Raises:
        ValueError: for an unknown parameter, profile or override, one that is not of
            its type, or a bad seed.
        FileNotFoundError: if DATA has no passages.
        OSError: if OUT cannot be written.
    """
    _check_names(parameters)
    _check_seed(parameters.get("SEED", 42))
    name = parameters["PROFILE"]
    if not isinstance(name, str):
        raise ValueError(f"PROFILE must be text, not {name!r}.")
    out = expand_home(parameters.get("OUT", ""), "OUT")
    data = expand_home(parameters.get("DATA", ""), "DATA")
    profile = resolve(name, parameters.get("OVERRIDES"))
    named_files(profile, data)
    out = out or data_folder() / "runs" / profile.name
    return profile, _make_output_folder(Path(out))


def after_cold_start(profile: Profile, out: Path) -> Profile:
    """The profile with the adapter that its cold start has trained, if it has one.

    Args:
        out: the folder of the run, where A3 leaves that model.

    Raises:
        FileNotFoundError: if the cold start has not been run, or its folder is not
            there.
    """
    folder = cold_start_folder(profile, out)
    if folder is None:
        return profile
    if (folder / "adapter_config.json").is_file():
        return replace(profile, adapter=str(folder))
    if (folder / "config.json").is_file():
        return replace(profile, model=str(folder))
    if profile.cold_start is True:
        raise FileNotFoundError(
            f"{display_path(folder)} is not there: run A3_cold_start first, or set"
            " cold_start to a folder that it made earlier."
        )
    raise FileNotFoundError(
        f"cold_start={profile.cold_start} is no folder of an adapter or a model."
    )


def cold_start_folder(profile: Profile, out: Path) -> Path | None:
    """Where the cold start of a profile lies, or will lie; None if it has none."""
    if not profile.cold_start:
        return None
    if isinstance(profile.cold_start, str):
        return in_repository(expand_home(profile.cold_start, "cold_start")).resolve()
    return (out / COLD_START_MODEL).resolve()


def training_questions(
    profile: Profile, where: dict[str, Path | None], out: Path
) -> list[dict]:
    """The questions that GRPO trains on: those that the cold start has left, or the
    run's own.

    Args:
        where: the files of a run, from `corpus.locate_files`.
        out: the folder of the run.
    """
    folder = cold_start_folder(profile, out)
    if folder is not None and (folder.parent / COLD_START_QUESTIONS).is_file():
        return load_questions(folder.parent / COLD_START_QUESTIONS)
    return load_split(where, "train", profile.eval_questions)


def _check_names(parameters: dict) -> None:
    if "In" in parameters:
        # The globals of a notebook: IPython keeps the code of its cells in `In`.
        given = _injected_names(parameters["In"])
    elif "__name__" in parameters:
        # The globals of a script, which hold much that is no parameter.
        given = set()
    else:
        given = set(parameters)
    unknown = sorted(given - set(PARAMETERS))
    if unknown:
        raise ValueError(
            f"Unknown parameter {unknown[0]!r}: the notebooks take"
            f" {', '.join(PARAMETERS)}."
        )


def _injected_names(cells: list[str]) -> set[str]:
    """Names that the cell injected by papermill assigns."""
    names = set()
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            for statement in ast.parse(cell).body:
                if isinstance(statement, ast.Assign):
                    names.update(target.id for target in statement.targets)
    return names


def _check_seed(seed) -> None:
    is_whole = isinstance(seed, int) and not isinstance(seed, bool)
    if not is_whole or not 0 <= seed < 2**32:
        raise ValueError(
            f"SEED must be a whole number from 0 to 2**32 - 1, not {seed!r}."
        )


def _make_output_folder(out: Path) -> Path:
    """Make the folder, and find out now, not after an hour, whether it can be written.

    Raises:
        OSError: if it cannot.
    """
    probe = out / ".write-test"
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        # Another process may have been faster.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise type(error)(
            f"OUT={out} cannot be written: {error.strerror or error}."
        ) from None
    return out


def index_folder(out: Path) -> Path:
    """Where the index of a run lies.

    Runs in data/runs have theirs in data/index, others in their own folder.
    """
    out = out.resolve()
    runs = (data_folder() / "runs").resolve()
    if out.parent == runs:
        return data_folder() / "index" / out.name
    return out / "index"


def run_or_shipped(file: Path) -> Path:
    """The run's own `file`, or until there is one, that of the shipped reference run.

    Raises:
        FileNotFoundError: if neither is there.
    """
    if file.exists():
        return file
    reference = REPO / SHIPPED_RUN / file.name
    if not reference.exists():
        raise FileNotFoundError(
            f"{display_path(file)} is not there: run 03_train_grpo first."
        )
    print(
        f"{display_path(file)} is not there yet: showing the shipped run's"
        f" {display_path(reference)}."
    )
    return reference


def progress(total: int | None, what: str, unit: str = "it", **more) -> tqdm:
    """A plain progress bar on stderr.

    In a notebook or a log, where every state of it stays, it moves every 3 s only.

    Args:
        total: how many units it takes; None if that is not known.
        what: is done, shown before the bar.
        more: other arguments of `tqdm`.
    """
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        mininterval=0.1 if sys.stderr.isatty() else 3,
        **more,
    )
