"""Owns what every notebook does first: parameters, output folder, progress bars."""

import ast
import sys
from pathlib import Path

from tqdm import tqdm

from kr1_utils.corpus import locate_files
from kr1_utils.files import REPO, display_path
from kr1_utils.profiles import PARAMETERS, Profile, resolve


def setup(parameters: dict) -> tuple[Profile, Path]:
    """Check a notebook's parameters, resolve its profile, and make its output folder.

    Args:
        parameters: PROFILE, SEED, OUT, DATA and OVERRIDES; a notebook hands over its
            `globals()`, and then what papermill injected is looked at too, for
            papermill itself only warns.

    Raises:
        ValueError: for an unknown parameter, profile or override, or a bad seed.
        OSError: if OUT can not be written.
    """
    known = (
        set() if "__name__" in parameters else set(parameters)
    )  # a script's globals hold more
    given = _injected(parameters["In"]) if "In" in parameters else known
    unknown = sorted(given - set(PARAMETERS))
    if unknown:
        raise ValueError(
            f"Unknown parameter {unknown[0]!r}: the notebooks take"
            f" {', '.join(PARAMETERS)}."
        )
    seed = parameters.get("SEED", 42)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(
            f"SEED must be a whole number from 0 to 2**32 - 1, not {seed!r}."
        )
    profile = resolve(parameters["PROFILE"], parameters.get("OVERRIDES"))
    locate_files(profile, parameters.get("DATA", ""))
    out = Path(parameters.get("OUT") or REPO / "data" / "runs" / profile.name)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise type(error)(
            f"OUT={out} can not be written: {error.strerror or error}."
        ) from None
    return profile, out


def _injected(cells: list[str]) -> set[str]:
    """Names that papermill's injected cell assigns; `cells` is IPython's history
    `In`."""
    found = [c for c in cells if c.startswith("# Parameters\n")]
    return {
        target.id
        for cell in found
        for node in ast.parse(cell).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }


def index_folder(out: Path) -> Path:
    """Where the index of a run lies: in data/index for the default output folders, else
    in OUT."""
    runs, out = (REPO / "data" / "runs").resolve(), out.resolve()
    return REPO / "data" / "index" / out.name if out.parent == runs else out / "index"


def run_or_shipped(file: Path) -> Path:
    """The run's own `file`, or the one of the shipped reference run where there is none
    yet.

    Raises:
        FileNotFoundError: if neither is there.
    """
    if file.exists():
        return file
    shipped = REPO / "data" / "reference" / "tiny" / "seed42" / file.name
    if not shipped.exists():
        raise FileNotFoundError(
            f"{display_path(file)} is not there: run 03_train_grpo first."
        )
    print(
        f"{display_path(file)} is not there yet: showing the shipped run's"
        f" {display_path(shipped)}."
    )
    return shipped


def progress(total: int | None, what: str, unit: str = "it", **more) -> tqdm:
    """A plain bar on stderr; in a notebook or a log, where what is written stays, it
    moves every 10 s."""
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        **more,
    )
