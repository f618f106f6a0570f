"""Owns files: where they lie, and how they are written whole or not at all."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# The folder above the package: the repository, unless the package was installed alone.
REPO = Path(__file__).resolve().parents[1]


# --- where things lie ---


def expand_home(path: str | os.PathLike, name: str = "A path") -> str:
    """A path or a name as text, with the home folder for a "~" at its start.

    Args:
        path: what a user gave.
        name: of the setting or argument, for the sentence of an error.

    Raises:
        ValueError: if it is not text (nor a `Path`).
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} must be text, not {path!r}.")
    # Unlike Path.expanduser, this leaves the name of an unknown user as it is.
    return os.path.expanduser(os.fspath(path))  # noqa: PTH111


def in_repository(path: str) -> Path:
    """A path of a profile: a relative one starts at the repository."""
    return REPO / expand_home(path)


def shipped(path: str) -> Path:
    """A file or folder that comes with the repository, or one of your own.

    Args:
        path: relative to the repository, or absolute.

    Raises:
        FileNotFoundError: if it is not there, as when the package is installed alone.
    """
    file = in_repository(path)
    if file.exists():
        return file
    if _repository_is_here() or Path(expand_home(path)).is_absolute():
        raise FileNotFoundError(f"No file or folder {path}.")
    raise FileNotFoundError(
        f"{path} belongs to the Knowledge-R1 repository, which is not here: clone it,"
        " or name a path of your own."
    )


def data_folder() -> Path:
    """Where runs and indexes go unless told otherwise: `data` in the repository.

    Where the package is installed alone it is `data` in the current folder.
    """
    base = REPO if _repository_is_here() else Path.cwd()
    return base / "data"


def _repository_is_here() -> bool:
    # The package's pyproject.toml is not installed with it.
    return (REPO / "kr1_utils" / "pyproject.toml").is_file()


def display_path(file: str | os.PathLike) -> str:
    """A path to show: relative to the repository or the current folder if it lies below
    one of them, else the bare name."""
    file = Path(file).resolve()
    for base in (REPO, Path.cwd()):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return file.name


# --- whole or not at all ---


def atomic_write(file: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file, whole or not at all.

    `write` fills a file beside it, which is synced to the disk and then renamed.

    Args:
        write: gets the open binary file.

    Raises:
        OSError: in one sentence, of the kind that the disk raised.
    """
    file = Path(file)
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as out:
            write(out)
        fsync(part)
        part.replace(file)
        fsync(file.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise type(error)(
            f"{display_path(file)} cannot be written: {error.strerror or error}."
        ) from None


def fsync(*files: str | os.PathLike) -> None:
    """Wait until the disk holds these files or folders."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(folder: Path, part: Path) -> None:
    """Put the folder `part` in the place of `folder`.

    A folder that is only half there never bears the name.

    Raises:
        OSError: if the disk cannot hold `part`; then `folder` is as it was.
    """
    # Hidden, for a folder called NAME.old may be a copy of the user's own.
    old = folder.with_name(f".{folder.name}.old")
    # Before anything is moved, for this may find the disk full.
    fsync(*part.rglob("*"), part)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    # Half a surrogate pair, which UTF-8 does not have, is written as JSON escapes it.
    content = text.encode("utf-8", "backslashreplace")
    atomic_write(file, lambda out: out.write(content))


def write_jsonl(file: str | os.PathLike, rows: list[dict]) -> None:
    """Write one JSON object per line, whole or not at all."""
    write_text(file, "".join(map(_json_line, rows)))


def _json_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


# --- logs that a run adds to, step by step ---


def append_log(file: Path, row: dict) -> None:
    """Put `row` behind the rows of earlier steps in a CSV.

    Rows of its own step or later ones go: they are from a run that was cut off after
    its last checkpoint.

    Args:
        row: has the key "step".

    Raises:
        ValueError: if earlier rows have other columns.
    """
    earlier = []
    if file.exists():
        with file.open(newline="") as lines:
            earlier = [
                old for old in csv.DictReader(lines) if int(old["step"]) < row["step"]
            ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(earlier)
    writer.writerow(row)
    write_text(file, text.getvalue())


def append_rows(file: Path, rows: list[dict]) -> None:
    """Put one JSON object per line behind those of a file.

    Returns when the disk holds them.
    """
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.writelines(map(_json_line, rows))
        out.flush()
        os.fsync(out.fileno())


def drop_from_step(file: Path, step: int) -> None:
    """Take out of a JSONL file what a cut-off run wrote from `step` on.

    Lines that cannot be read go too.
    """
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as text:
        lines = list(text)
    kept = [line for line in lines if _is_before(line, step)]
    if len(kept) < len(lines):
        write_text(file, "".join(kept))


def _is_before(line: str, step: int) -> bool:
    """Whether a line is whole and of a step before `step`."""
    if not line.endswith("\n"):
        return False
    try:
        return json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):
        # A machine that lost its power can leave anything.
        return False
