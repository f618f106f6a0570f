"""Owns rows: read one at a time from every kind of file, bad ones named by their line.

Which columns a passage or a question has is the business of `corpus`.
"""

import csv
import gzip
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import expand_home

# Endings of the files that can be read. Where a folder has several files of one name,
# the first ending here counts.
SUFFIXES = (
    ".jsonl",
    ".json",
    ".tsv",
    ".csv",
    ".parquet",
    ".jsonl.gz",
    ".json.gz",
    ".tsv.gz",
    ".csv.gz",
)

# What reading raises: for bad JSON or UTF-8, a bad table, a .gz that is cut off or
# broken inside, one that is no .gz, and a broken archive in one.
_UNREADABLE = (
    ValueError,
    csv.Error,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    tarfile.TarError,
)

# A field in quotes, up to the next tab; within it a quote is written twice.
_QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*"(?=\t|$)')
_BARE_FIELD = re.compile(r"[^\t]*")

# owner/name:FILE
_HUB_FILE = re.compile(r"[\w.-]+/[\w.-]+:[^:]+")

# What an archive of tar says of itself, and where.
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257

# What Windows programs write before the first character of a file.
_BYTE_ORDER_MARK = "\ufeff"


class UnreadableRowError(ValueError):
    """A row that is not in the format of its file.

    Attributes:
        file: the file.
        form: what the row is not: "JSON", "TSV", "CSV" or "parquet".
        reason: what is wrong with it.
        line: the number of its line, from 1; 0 where it is not known.
    """

    def __init__(self, file: Path, form: str, reason: str, line: int = 0):
        super().__init__(file, form, reason, line)
        self.file = file
        self.form = form
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else f"{self.file}"
        return f"{place} is not {self.form}: {self.reason}"


def read_rows(source: str | os.PathLike, split: str = "train") -> Iterator[dict]:
    """The rows of a file, a folder or a data set, one at a time.

    Args:
        source: a file by the end of its name: JSON (an object per line, objects spread
            over many lines, or one list of objects), TSV or CSV with a header, or
            parquet; all but the last may be compressed (.gz). Or a folder or hub id,
            which `datasets` streams. "~" is the home folder.
        split: the part of a folder or data set.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        UnreadableRowError: naming the first row that cannot be read.
        ImportError: for a parquet file or a data set, without the extra [train].
    """
    source = expand_home(source, "The name of a file or data set")
    file = Path(source)
    if file.is_file():
        yield from _read_file(file)
    elif file.is_dir() or _may_be_hub_id(source):
        yield from _stream_data_set(source, split)
    else:
        raise FileNotFoundError(f"No file {source}.")


def is_hub_file(name: str) -> bool:
    """Whether this reads as a file of the hub, `owner/name:FILE`."""
    return _HUB_FILE.fullmatch(name) is not None


def _may_be_hub_id(source: str) -> bool:
    """Whether this reads as `owner/name`, and not as the name of a file."""
    return source.count("/") == 1 and not source.endswith(SUFFIXES)


def _stream_data_set(source: str, split: str) -> Iterator[dict]:
    try:
        yield from import_datasets().load_dataset(source, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"No data set {source} with a split {split!r}: {error}"
        ) from None


def import_datasets():
    """The library `datasets`.

    It is imported here, for that takes seconds and most runs read files only.
    """
    try:
        import datasets
    except ImportError:
        datasets = missing("train")
    return datasets


def _read_file(file: Path) -> Iterator[dict]:
    suffix = Path(file.name.removesuffix(".gz")).suffix
    read = _READERS.get(suffix, _read_json)
    if file.suffix != ".gz":
        with file.open("rb") as stream:
            yield from read(file, stream)
        return
    with gzip.open(file, "rb") as stream:
        if _holds_an_archive(stream):
            yield from _read_archive(file, stream, read)
        else:
            yield from read(file, stream)


def _holds_an_archive(stream: gzip.GzipFile) -> bool:
    """Whether a .gz holds an archive of tar, whatever its name says.

    What cannot be read is left to the reader, which names it.
    """
    try:
        head = stream.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
        stream.seek(0)
    except _UNREADABLE:
        stream.seek(0)
        return False
    return head.endswith(_TAR_MAGIC) and len(head) > _TAR_MAGIC_AT


def _read_archive(
    file: Path,
    stream: gzip.GzipFile,
    read: Callable[[Path, io.BufferedIOBase], Iterator[dict]],
) -> Iterator[dict]:
    """The rows of the one file in an archive.

    Search-R1's wiki-18.jsonl.gz is one: gzip over tar over one file of JSON lines.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            members = (member for member in archive if member.isfile())
            member = next(members, None)
            if member is None:
                raise ValueError("it holds no file.")
            yield from read(file, archive.extractfile(member))
            for other in members:
                raise ValueError(f"it holds {other.name} too.")
            # The archive ends before the .gz, whose checksum is looked at here.
            while stream.read(2**20):
                pass
    except UnreadableRowError:
        raise
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "an archive of one file", str(error)) from None


class _Lines:
    """The lines of a file as text, one at a time.

    Attributes:
        number: of the line that was read last, from 1.
    """

    def __init__(self, stream: Iterable[bytes]):
        self.number = 0
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self.number += 1
            # Also inside, for files are put behind each other.
            yield line.decode("utf-8").removeprefix(_BYTE_ORDER_MARK)


# --- JSON ---


def _read_json(file: Path, stream: io.BufferedIOBase) -> Iterator[dict]:
    """An object per line, objects spread over many lines, or one list of objects.

    A file whose first line is an opening bracket, or begins with that of a list, is
    taken into memory as a whole.
    """
    lines = _Lines(stream)
    try:
        first = _first_line_with_text(lines)
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "JSON", str(error), lines.number) from None
    if first.startswith("[") or first.strip() == "{":
        yield from _read_whole_json(file, first, lines)
    else:
        yield from _read_json_lines(file, first, lines)


def _first_line_with_text(lines: _Lines) -> str:
    for line in lines:
        if line.strip():
            return line.lstrip()
    return ""


def _read_whole_json(file: Path, first: str, lines: _Lines) -> Iterator[dict]:
    line_of_first = lines.number
    try:
        # With the blank lines before it, so that an error names the right line.
        text = "\n" * (line_of_first - 1) + first + "".join(lines)
        for value in _json_values(text):
            rows = value if isinstance(value, list) else [value]
            yield from map(_json_object, rows)
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "JSON", str(error)) from None


def _json_values(text: str) -> Iterator[object]:
    """The values of a text with one or more of them behind each other."""
    decoder = json.JSONDecoder()
    place = _skip_blanks(text, 0)
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        yield value
        place = _skip_blanks(text, place)


def _skip_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _read_json_lines(file: Path, first: str, lines: _Lines) -> Iterator[dict]:
    """One object per line; blank lines are skipped."""
    try:
        if first:
            yield _json_object(json.loads(first))
        for line in lines:
            if line.strip():
                yield _json_object(json.loads(line))
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "JSON", str(error), lines.number) from None


def _json_object(value: object) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {json.dumps(value)[:40]}")
    return value


# --- tables ---


def _read_tsv(file: Path, stream: io.BufferedIOBase) -> Iterator[dict]:
    """Columns between tabs, named by the first line; a row is a line.

    Quotes are text, but for those around a whole field, within which a quote is written
    twice: DPR writes its texts so, others write quotes as they are.
    """
    lines = _Lines(stream)
    names: list[str] = []
    try:
        for line in lines:
            line = line.rstrip("\r\n")
            if not line.strip(" "):
                continue
            if names:
                yield dict(zip(names, _tsv_fields(line, len(names)), strict=True))
            else:
                names = _checked_names([_unquoted(n) for n in line.split("\t")])
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "TSV", str(error), lines.number) from None


def _tsv_fields(line: str, columns: int) -> list[str]:
    """The fields of a line.

    Raises:
        ValueError: if there are not as many as there are columns.
    """
    fields = line.split("\t")
    if len(fields) > columns:
        # Perhaps some tabs lie within quotes.
        fields = _fields_with_quoted_tabs(line)
    if len(fields) != columns:
        raise ValueError(
            f"the first line names {columns} columns, this one has {len(fields)} (a"
            " field cannot hold a line break: write such rows as CSV or JSON)."
        )
    return [_unquoted(field) for field in fields]


def _fields_with_quoted_tabs(line: str) -> list[str]:
    """The fields of a line, still quoted, where tabs within quotes are text."""
    fields = []
    start = 0
    # Behind the last field there is no tab.
    while start <= len(line):
        match = _QUOTED_FIELD.match(line, start) or _BARE_FIELD.match(line, start)
        fields.append(match.group())
        start = match.end() + 1
    return fields


def _unquoted(field: str) -> str:
    """A field without the quotes around it, if it is quoted as a whole."""
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field.startswith('"') and field.endswith('"')
    if is_quoted and '"' not in inner:
        return field[1:-1].replace('""', '"')
    return field


def _read_csv(file: Path, stream: io.BufferedIOBase) -> Iterator[dict]:
    """Columns between commas, named by the first line, quoted as RFC 4180 says it."""
    # A passage may be longer than the 128 KiB that Python allows a field.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_Lines(stream), strict=True)
    names: list[str] = []
    line_before = 0
    try:
        for fields in reader:
            if fields and names:
                _check_count(fields, names)
                yield dict(zip(names, fields, strict=True))
            elif fields:
                names = _checked_names(fields)
            line_before = reader.line_num
    except _UNREADABLE as error:
        # A row that a stray quote spreads over many lines began here.
        raise UnreadableRowError(file, "CSV", str(error), line_before + 1) from None


def _check_count(fields: list[str], names: list[str]) -> None:
    if len(fields) != len(names):
        raise ValueError(
            f"the first line names {len(names)} columns, this row has {len(fields)}."
        )


def _checked_names(names: list[str]) -> list[str]:
    """The names of columns.

    Raises:
        ValueError: if two are equal, for one of the columns would be lost.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"it names the column {name!r} twice.")
    return names


def _read_parquet(file: Path, stream: io.BufferedIOBase) -> Iterator[dict]:
    parquet = _import_parquet()
    try:
        for batch in parquet.ParquetFile(stream).iter_batches():
            yield from batch.to_pylist()
    except (ValueError, OSError) as error:
        raise UnreadableRowError(file, "parquet", str(error)) from None


def _import_parquet():
    """The part of `pyarrow` that reads parquet; it comes with `datasets`."""
    try:
        from pyarrow import parquet
    except ImportError:
        parquet = missing("train")
    return parquet


_READERS: dict[str, Callable[[Path, io.BufferedIOBase], Iterator[dict]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
