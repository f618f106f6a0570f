"""Owns files: where things lie, and writing them whole or not at all."""

import csv
import io
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def in_repository(value: str) -> Path:
    """A path of a profile: relative ones start at the repository."""
    return Path(value) if Path(value).is_absolute() else REPO / value


def display_path(file: str | os.PathLike) -> str:
    """A path for showing: relative to the repository or the working folder where it
    lies below."""
    file = Path(file).resolve()
    for base in (REPO, Path.cwd()):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return file.name


def atomic_write(file: str | os.PathLike, write) -> None:
    """Let `write` fill a file, whole or not at all: beside it first, synced, then
    renamed over it."""
    file = Path(file)
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as out:
            write(out)
        fsync(part)
        fsync(part.replace(file).parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise type(error)(
            f"{display_path(file)} can not be written: {error.strerror or error}."
        ) from None


def fsync(*files: str | os.PathLike) -> None:
    """Wait until the disk holds these files or folders."""
    for file in files:
        number = os.open(file, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def replace_folder(folder: Path, part: Path) -> None:
    """Put `part` in the place of `folder`; a folder that is only half there never bears
    the name."""
    old = folder.with_name(
        f".{folder.name}.old"
    )  # hidden: `.old` may be a copy of yours
    fsync(*part.rglob("*"), part)  # first, for it may find the disk full
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fsync(part.rename(folder).parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all."""
    atomic_write(
        file, lambda out: out.write(text.encode("utf-8", "backslashreplace"))
    )  # as JSON has it


def write_jsonl(file: str | os.PathLike, rows: list[dict]) -> None:
    """One JSON object a line, written whole or not at all."""
    write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def append_log(file: Path, row: dict) -> None:
    """Put `row` behind the rows of earlier steps; rows of its own step or later ones
    are from a run that was cut off after its last checkpoint, and go.

    Raises:
        ValueError: if earlier rows have other columns.
    """
    rows = []
    if file.exists():
        with file.open(newline="") as lines:
            rows = [r for r in csv.DictReader(lines) if int(r["step"]) < row["step"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_text(file, text.getvalue())


def drop_from_step(file: Path, step: int) -> None:
    """Take out of a file of trajectories what a cut-off run wrote from `step` on, and
    what can't be read."""

    def kept(line):
        with suppress(
            ValueError, KeyError, TypeError
        ):  # a machine that lost its power can leave anything
            return line.endswith("\n") and json.loads(line)["step"] < step

    if file.exists():
        lines = io.StringIO(
            file.read_text("utf-8", errors="replace")
        ).readlines()  # U+2028 ends no line
        if not all(map(kept, lines)):
            write_text(file, "".join(filter(kept, lines)))


def append_rows(file: Path, rows: list[dict]) -> None:
    """Put JSON objects, one a line, behind those of a file, and wait until the disk
    holds them."""
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        out.flush()
        os.fsync(out.fileno())
