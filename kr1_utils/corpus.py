"""Owns passages and questions: every format they come in, and their splits."""

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from kr1_utils.files import REPO, in_repository
from kr1_utils.profiles import Profile

KINDS = (
    "jsonl",
    "json",
    "tsv",
    "jsonl.gz",
    "json.gz",
    "tsv.gz",
)  # of files in a folder of yours


def read_rows(source: str | os.PathLike, split: str = "train") -> Iterator[dict]:
    """The rows of a file, one at a time: JSON (an object a line, or one list) or TSV
    with a header; or .gz.

    Args:
        source: a file; else a folder or hub id, of which `datasets` streams `split`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        ValueError: naming the first line that can not be read.
    """
    file = Path(source)
    if not file.is_file():
        if not file.is_dir() and (
            file.name.endswith(KINDS) or str(source).count("/") != 1
        ):
            raise FileNotFoundError(f"No file {source}.")
        from datasets import (
            load_dataset,
        )  # here, for the processes that make an index need none of it

        try:
            yield from load_dataset(str(source), split=split, streaming=True)
            return
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"No data set {source} with a split {split!r}: {error}"
            ) from None
    kind, number = file.name.removesuffix(".gz").rpartition(".")[2], 0
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        try:
            if (
                kind == "json"
                and lines.peek(99)[:99].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
                == b"["
            ):
                yield from (dict(row) for row in json.load(lines))
            elif kind == "tsv":
                csv.field_size_limit(2**31 - 1)  # a passage may be long
                yield from csv.DictReader(
                    io.TextIOWrapper(lines, "utf-8-sig", newline=""), delimiter="\t"
                )
            else:
                for line in lines:
                    number += 1
                    if line.strip():
                        row = json.loads(line.decode("utf-8"))
                        if not isinstance(row, dict):
                            raise ValueError(f"not an object but {line[:40]!r}")
                        yield row
        except (
            ValueError,
            TypeError,
            EOFError,
            csv.Error,
            gzip.zlib.error,
            gzip.BadGzipFile,
        ) as error:
            at = f", line {number}" * (number > 0)
            raise ValueError(f"{file}{at} is not {kind.upper()[:4]}: {error}") from None


def read_passages(source: str | os.PathLike, split: str = "train") -> Iterator[dict]:
    """Passages `{"id", "title", "text"}`, one at a time: so that 21 million never lie
    in memory.

    Read are ours; DPR's psgs_w100.tsv (`id, text, title`); FlashRAG's and Search-R1's
    (`id, contents`, the quoted title on its first line); and `{"title", "text"}`,
    numbered.

    Raises:
        ValueError: naming the first row that is none of these.
    """
    for number, row in enumerate(read_rows(source, split), 1):
        if isinstance(row.get("contents"), str):
            title, _, text = row["contents"].partition("\n")
            title, name = (
                title.strip().removeprefix('"').removesuffix('"'),
                row.get("id"),
            )
            row = {
                "id": str(number - 1 if name is None else name),
                "title": title,
                "text": text.strip(),
            }
        elif "id" not in row:
            row = {"id": str(number - 1), **row}
        for key in ("id", "title", "text"):
            if not isinstance(row.get(key), str):
                has = ", ".join(map(str, row))
                raise ValueError(
                    f"{source}, passage {number} has no text under {key!r}: it has"
                    f" {has}."
                )
        yield row


def load_passages(source: str | os.PathLike, split: str = "train") -> list[dict]:
    """All passages of a source, see `read_passages`; a ValueError if there is none."""
    if rows := list(read_passages(source, split)):
        return rows
    raise ValueError(f"The corpus {source} is empty.")


def _question(row: dict, number: int, aliases: dict[str, list[str]]) -> dict:
    """One question from the columns it comes in, see `load_questions`."""
    if "problem" in row:
        row = {"id": str(number - 1), **row, "question": row["problem"]}
    elif "_id" in row:
        row = {
            "id": row["_id"],
            "question": row.get("question"),
            "type": row.get("type", ""),
            "golden_answers": [
                row.get("answer"),
                *aliases.get(row.get("answer_id"), []),
            ],
            "supporting_titles": list(
                dict.fromkeys(t for t, _ in row.get("supporting_facts", []))
            ),
        }
    elif isinstance(row.get("metadata"), dict) and "type" in row["metadata"]:
        row = {"type": row["metadata"]["type"], **row}
    return row


def load_questions(source: str | os.PathLike, split: str = "train") -> list[dict]:
    """Questions `{"id", "question", "golden_answers"}`; `type`, `supporting_titles` and
    other keys are kept.

    Read are ours and FlashRAG's; `hzy/kr1_2wiki`'s (`problem`, numbered); and
    2WikiMultihopQA's own (`_id, answer, supporting_facts, …`), whose aliases lie in
    id_aliases.json beside it.

    Raises:
        ValueError: if one has no question, no id or no golden answer, or an id comes
            twice.
    """
    beside = Path(source).parent / "id_aliases.json"
    aliases = {
        row.get("Q_id"): [*(row.get("aliases") or []), *(row.get("demonyms") or [])]
        for row in (read_rows(beside) if beside.is_file() else ())
    }
    rows: dict = {}
    for number, row in enumerate(read_rows(source, split), 1):
        row, name = _question(row, number, aliases), f"{source}, question {number}"
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(
                f"{name} has no text under 'question': it has"
                f" {', '.join(map(str, row))}."
            )
        if not isinstance(row.get("id"), str | int) or row["id"] in rows:
            raise ValueError(f"{name} has no id of its own: {row.get('id')!r}.")
        golden = row.get("golden_answers")
        if (
            not isinstance(golden, list)
            or not golden
            or not all(isinstance(g, str) for g in golden)
        ):
            raise ValueError(
                f"{name} ({row['id']}) has no golden answers: "
                "'golden_answers' must be a list of at least one text."
            )
        rows[row["id"]] = (
            row | {"type": str(row["type"] or "")} if "type" in row else row
        )
    if not rows:
        raise ValueError(f"{source} holds no questions.")
    return list(rows.values())


def locate_files(profile: Profile, data: str = "") -> dict[str, Path | None]:
    """Where passages and questions of a run lie.

    Args:
        data: a folder of yours with `passages.jsonl` and any of `questions.jsonl` (to
            test on), `train.jsonl`, `test.jsonl`, `test_single.jsonl`; empty is the
            profile's. Without train and test, a profile with `eval_questions` tests on
            so many of `questions.jsonl`, and trains on the rest.

    Raises:
        FileNotFoundError: if `data` has no passages.
        ValueError: if the profile needs `data` and there is none.
    """
    if not data and not profile.corpus:
        raise ValueError(
            f"The profile {profile.name} has no corpus of its own: name a folder with "
            "passages.jsonl and questions.jsonl in DATA."
        )
    if not data:
        return {
            "passages": in_repository(profile.corpus),
            "train": in_repository(profile.train_questions),
            "test": in_repository(profile.test_questions),
            "test_single": in_repository(profile.test_single_questions),
        }
    folder = Path(data)
    if not folder.is_absolute() and not folder.is_dir():
        folder = REPO / data
    found = {
        name: next(
            (f for kind in KINDS if (f := folder / f"{name}.{kind}").is_file()),
            folder / name,
        )
        for name in ("passages", "train", "test", "test_single", "questions")
    }
    questions = found.pop("questions")
    if not found["passages"].is_file():
        raise FileNotFoundError(f"DATA={data}: no passages.jsonl in that folder.")
    if not found["test"].is_file():
        found["test"] = questions
        if profile.eval_questions and not found["train"].is_file():
            found["train"] = found["test"]
    return {n: f if f.is_file() else None for n, f in found.items()}


def load_split(
    where: dict[str, Path | None], name: str, eval_questions: int = 0
) -> list[dict]:
    """The questions of split "train", "test" or "test_single": [] where DATA has none;
    to test on, it must.

    Args:
        eval_questions: how many of a test set, 0 for all of it. Where one file serves
            to train and to test, the others of it are trained on.
    """
    if name == "test" and not where[name]:
        raise ValueError(
            "There is nothing to test on: DATA has neither questions.jsonl nor"
            " test.jsonl."
        )
    rows = load_questions(where[name]) if where[name] else []
    if name == "train":
        return rows[eval_questions:] if where["train"] == where["test"] else rows
    return rows[:eval_questions] if eval_questions else rows


def training_set(questions: list[dict]):
    """Questions as TRL's data set: `prompt` is the question, `golden_answers` goes to
    the rewards."""
    from datasets import Dataset

    rows = [
        {
            "prompt": q["question"],
            "golden_answers": q["golden_answers"],
            "question_id": str(q["id"]),
        }
        for q in questions
    ]  # as JSON and back, for Arrow takes no half surrogate pair
    return Dataset.from_list(
        json.loads(json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace"))
    )
