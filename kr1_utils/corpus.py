"""Owns passages and questions: every format they come in, and their splits."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import in_repository, shipped
from kr1_utils.profiles import Profile

# Endings of the files that can be read. Where a folder has several files of one name,
# the first ending here counts.
SUFFIXES = (".jsonl", ".json", ".tsv", ".jsonl.gz", ".json.gz", ".tsv.gz")

# What reading raises: for bad JSON or UTF-8, a bad TSV, a .gz that is cut off or broken
# inside, and one that is no .gz.
_UNREADABLE = (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile)

# A file opened for reading bytes; both kinds can `peek`.
_Stream = io.BufferedReader | gzip.GzipFile


class UnreadableRowError(ValueError):
    """A row that is not in the format of its file.

    Attributes:
        file: the file.
        form: what the row is not, "JSON" or "TSV".
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


# --- rows, from every kind of file ---


def read_rows(source: str | os.PathLike, split: str = "train") -> Iterator[dict]:
    """The rows of a file, a folder or a data set, one at a time.

    Args:
        source: a file, which is JSON (an object per line, or one list of objects) or
            TSV with a header, and may be compressed (.gz); or a folder or hub id, which
            `datasets` streams.
        split: the part of a folder or data set.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        UnreadableRowError: naming the first row that cannot be read.
    """
    file = Path(source)
    if file.is_file():
        yield from _read_file(file)
    elif file.is_dir() or _may_be_hub_id(str(source)):
        yield from _stream_data_set(str(source), split)
    else:
        raise FileNotFoundError(f"No file {source}.")


def _may_be_hub_id(source: str) -> bool:
    """Whether this reads as `owner/name`, and not as the name of a file."""
    return source.count("/") == 1 and not source.endswith(SUFFIXES)


def _stream_data_set(source: str, split: str) -> Iterator[dict]:
    try:
        yield from _datasets().load_dataset(source, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"No data set {source} with a split {split!r}: {error}"
        ) from None


def _datasets():
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
    read = _READERS.get(suffix, _read_json_lines)
    open_file = gzip.open if file.suffix == ".gz" else Path.open
    with open_file(file, "rb") as stream:
        yield from read(file, stream)


def _read_json_lines(file: Path, stream: _Stream) -> Iterator[dict]:
    """One object per line; blank lines are skipped."""
    number = 0
    try:
        for line in stream:
            number += 1
            if line.strip():
                yield _json_object(json.loads(line.decode("utf-8")))
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "JSON", str(error), number) from None


def _read_json(file: Path, stream: _Stream) -> Iterator[dict]:
    """One list of objects; or one object per line, as in 2WikiMultihopQA's aliases."""
    try:
        start = stream.peek(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"["):
            yield from map(_json_object, json.load(stream))
            return
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "JSON", str(error)) from None
    yield from _read_json_lines(file, stream)


def _json_object(value: object) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {json.dumps(value)[:40]}")
    return value


def _read_tsv(file: Path, stream: _Stream) -> Iterator[dict]:
    """Columns between tabs, named by the first line, quoted as in a CSV."""
    # A passage may be longer than the 128 KiB that Python allows a field.
    csv.field_size_limit(2**31 - 1)
    # A byte order mark is no part of the first column's name.
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    try:
        yield from csv.DictReader(text, delimiter="\t")
    except _UNREADABLE as error:
        raise UnreadableRowError(file, "TSV", str(error)) from None


_READERS: dict[str, Callable[[Path, _Stream], Iterator[dict]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".tsv": _read_tsv,
}


# --- passages ---


def read_passages(source: str | os.PathLike, split: str = "train") -> Iterator[dict]:
    """Passages `{"id", "title", "text"}`, one at a time, for 21 million do not fit in
    memory.

    Four forms are known: ours; DPR's psgs_w100.tsv (`id, text, title`); FlashRAG's and
    Search-R1's (`id, contents`, with the quoted title on the first line); and
    `{"title", "text"}`, which are numbered.

    Args:
        source: see `read_rows`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        ValueError: naming the first row that is none of these.
    """
    for number, row in enumerate(read_rows(source, split), 1):
        passage = _passage(row, number)
        for key in ("id", "title", "text"):
            if not isinstance(passage.get(key), str):
                raise ValueError(
                    f"{source}, passage {number} has no text under {key!r}: it has"
                    f" {_keys(passage)}."
                )
        yield passage


def load_passages(source: str | os.PathLike, split: str = "train") -> list[dict]:
    """All passages of a source, see `read_passages`; a ValueError if there is none."""
    passages = list(read_passages(source, split))
    if not passages:
        raise ValueError(f"The corpus {source} is empty.")
    return passages


def _passage(row: dict, number: int) -> dict:
    """One passage from the columns it comes in; `number` counts from 1."""
    if isinstance(row.get("contents"), str):
        return _passage_of_flashrag(row, number)
    if "id" not in row:
        return {"id": _own_id(number), **row}
    # Ours, and DPR's.
    return row


def _passage_of_flashrag(row: dict, number: int) -> dict:
    """FlashRAG's and Search-R1's: the first line of `contents` is the quoted title."""
    title, _, text = row["contents"].partition("\n")
    given = row.get("id")
    return {
        "id": _own_id(number) if given is None else str(given),
        "title": title.strip().removeprefix('"').removesuffix('"'),
        "text": text.strip(),
    }


def _own_id(number: int) -> str:
    """The id of a row that brings none: rows are counted from 0."""
    return str(number - 1)


def _keys(row: dict) -> str:
    return ", ".join(map(str, row))


# --- questions ---


def load_questions(source: str | os.PathLike, split: str = "train") -> list[dict]:
    """All questions of a source: `{"id", "question", "golden_answers"}`, and whatever
    else a row holds, such as `type` and `supporting_titles`.

    Four forms are known: ours; FlashRAG's; `hzy/kr1_2wiki`'s (`problem`, numbered); and
    2WikiMultihopQA's own (`_id, answer, supporting_facts, …`), with the aliases of its
    answers in id_aliases.json beside it.

    Args:
        source: see `read_rows`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        ValueError: if a row has no question, no id, another's id or no golden answer,
            or if there is no row.
    """
    aliases = _read_aliases(Path(source).parent / "id_aliases.json")
    questions = {}
    for number, row in enumerate(read_rows(source, split), 1):
        question = _question(row, number, aliases)
        _check_question(question, f"{source}, question {number}", questions)
        if "type" in question:
            question = {**question, "type": str(question["type"] or "")}
        questions[question["id"]] = question
    if not questions:
        raise ValueError(f"{source} holds no questions.")
    return list(questions.values())


def _read_aliases(file: Path) -> dict[str, list[str]]:
    """Other names of an answer by the answer's id, as 2WikiMultihopQA lists them."""
    if not file.is_file():
        return {}
    return {
        row.get("Q_id"): [*(row.get("aliases") or []), *(row.get("demonyms") or [])]
        for row in read_rows(file)
    }


def _question(row: dict, number: int, aliases: dict[str, list[str]]) -> dict:
    """One question from the columns it comes in; `number` counts from 1."""
    if "problem" in row:
        return _question_of_knowledge_r1(row, number)
    if "_id" in row:
        return _question_of_2wiki(row, aliases)
    if isinstance(row.get("metadata"), dict) and "type" in row["metadata"]:
        return _question_of_flashrag(row)
    # Ours.
    return row


def _question_of_knowledge_r1(row: dict, number: int) -> dict:
    """`hzy/kr1_2wiki`, what Knowledge-R1 trained on: no ids."""
    return {"id": _own_id(number), **row, "question": row["problem"]}


def _question_of_2wiki(row: dict, aliases: dict[str, list[str]]) -> dict:
    """2WikiMultihopQA as published: one answer; facts are [title, sentence number]."""
    titles = [title for title, _ in row.get("supporting_facts", [])]
    return {
        "id": row["_id"],
        "question": row.get("question"),
        "type": row.get("type", ""),
        "golden_answers": [
            row.get("answer"),
            *aliases.get(row.get("answer_id"), []),
        ],
        # Each title once, in the order in which they come.
        "supporting_titles": list(dict.fromkeys(titles)),
    }


def _question_of_flashrag(row: dict) -> dict:
    """`RUC-NLPIR/FlashRAG_datasets`: as ours, but the type is in `metadata`."""
    return {"type": row["metadata"]["type"], **row}


def _check_question(question: dict, place: str, others: dict) -> None:
    """Raise a ValueError that names the question if something is missing.

    Args:
        place: the question's file and number, to name it by.
        others: questions before it, by id.
    """
    text = question.get("question")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{place} has no text under 'question': it has {_keys(question)}."
        )
    own_id = question.get("id")
    if not isinstance(own_id, str | int) or own_id in others:
        raise ValueError(f"{place} has no id of its own: {own_id!r}.")
    golden = question.get("golden_answers")
    is_list = isinstance(golden, list) and len(golden) > 0
    if not is_list or not all(isinstance(answer, str) for answer in golden):
        raise ValueError(
            f"{place} ({own_id}) has no golden answers: "
            "'golden_answers' must be a list of at least one text."
        )


# --- the files and splits of a run ---


def locate_files(profile: Profile, data: str = "") -> dict[str, Path | None]:
    """The files of a run: "passages", "train", "test" and "test_single", None where it
    has none.

    Args:
        data: a folder of yours with `passages.jsonl` and any of `questions.jsonl` (to
            test on), `train.jsonl`, `test.jsonl`, `test_single.jsonl`, or files of
            these names that end as in SUFFIXES; if empty, the profile's own files.
            With neither train nor test, a profile with `eval_questions` tests on that
            number of `questions.jsonl` and trains on the others.

    Raises:
        FileNotFoundError: if `data` has no passages, or the profile's files belong to a
            repository that is not here.
        ValueError: if the profile needs `data` and there is none.
    """
    if data:
        return _files_of_folder(data, profile.eval_questions)
    if not profile.corpus:
        raise ValueError(
            f"The profile {profile.name} has no corpus of its own: name a folder with "
            "passages.jsonl and questions.jsonl in DATA."
        )
    own = {
        "passages": profile.corpus,
        "train": profile.train_questions,
        "test": profile.test_questions,
        "test_single": profile.test_single_questions,
    }
    return {name: shipped(file) if file else None for name, file in own.items()}


def _files_of_folder(data: str, eval_questions: int) -> dict[str, Path | None]:
    folder = Path(data)
    if not folder.is_dir():
        folder = in_repository(data)
    found = {
        name: _first_file(folder, name)
        for name in ("passages", "train", "test", "test_single")
    }
    if not found["passages"]:
        raise FileNotFoundError(f"DATA={data}: no passages.jsonl in that folder.")
    if not found["test"]:
        found["test"] = _first_file(folder, "questions")
        if eval_questions and not found["train"]:
            # One file for both, which `load_split` divides.
            found["train"] = found["test"]
    return found


def _first_file(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        file = folder / f"{name}{suffix}"
        if file.is_file():
            return file
    return None


def load_split(
    where: dict[str, Path | None], name: str, eval_questions: int = 0
) -> list[dict]:
    """The questions of one split; [] if there is no file, except for "test".

    Args:
        where: the files of a run, from `locate_files`.
        name: "train", "test" or "test_single".
        eval_questions: how many of a test set to take, 0 for all. If one file serves
            to train and to test, its other questions are trained on.

    Raises:
        ValueError: if there is nothing to test on.
    """
    file = where[name]
    if not file:
        if name == "test":
            raise ValueError(
                "There is nothing to test on: DATA has neither questions.jsonl nor"
                " test.jsonl."
            )
        return []
    questions = load_questions(file)
    if name == "train":
        is_shared = where["train"] == where["test"]
        return questions[eval_questions:] if is_shared else questions
    return questions[:eval_questions] if eval_questions else questions


def training_set(questions: list[dict]):
    """Questions as a `datasets.Dataset`, which TRL trains on.

    Its columns are `prompt` (the question), `golden_answers` (for the rewards) and
    `question_id`.
    """
    rows = [
        {
            "prompt": question["question"],
            "golden_answers": question["golden_answers"],
            "question_id": str(question["id"]),
        }
        for question in questions
    ]
    # As UTF-8 and back, for Arrow takes no half surrogate pair.
    clean = json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace")
    return _datasets().Dataset.from_list(json.loads(clean))
