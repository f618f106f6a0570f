"""Owns questions and passages: reading them, checking them, and writing files whole or
not at all."""

import ast
import csv
import ctypes
import gzip
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from kr1_utils.profiles import PARAMETERS, REPO, Profile, path, resolve

csv.field_size_limit(2**31 - 1)  # a passage may be long
LOG_COLUMNS = {  # column of train_log.csv: TRL's name for it
    "step": "step",
    "reward": "reward",
    "accuracy_reward": "rewards/accuracy_reward/mean",
    "format_reward": "rewards/format_reward/mean",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "retrieved_length": "retrieved_length",
    "searches": "searches",
    "truncated": "truncated",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "step_time": "step_time",
    "peak_memory_gib": "peak_memory_gib",
}
KINDS = (
    "jsonl",
    "json",
    "tsv",
    "jsonl.gz",
    "json.gz",
    "tsv.gz",
)  # of files in a folder of yours
# a file beside the checkpoints of a run that stopped so, until its next step
OUT_OF_MEMORY = "out_of_memory"
LOWERED = (
    "max_response_tokens",
    "tokens_per_micro_batch",
    "overlong_tokens",
    "gradient_checkpointing",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "expected",
)


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


def sources(profile: Profile, data: str = "") -> dict[str, Path | None]:
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
            "passages": path(profile.corpus),
            "train": path(profile.train_questions),
            "test": path(profile.test_questions),
            "test_single": path(profile.test_single_questions),
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


def questions_of(
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
    sources(profile, parameters.get("DATA", ""))
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


def shown(file: str | os.PathLike) -> str:
    """A path for showing: relative to the repository or the working folder where it
    lies below."""
    file = Path(file).resolve()
    for base in (REPO, Path.cwd()):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return file.name


def reference(file: Path) -> Path:
    """The run's own `file`, or the one of the shipped reference run where there is none
    yet.

    Raises:
        FileNotFoundError: if neither is there.
    """
    if file.exists():
        return file
    shipped = REPO / "data" / "reference" / "tiny" / "seed42" / file.name
    if not shipped.exists():
        raise FileNotFoundError(f"{shown(file)} is not there: run 03_train_grpo first.")
    print(
        f"{shown(file)} is not there yet: showing the shipped run's {shown(shipped)}."
    )
    return shipped


def write_whole(file: str | os.PathLike, write) -> None:
    """Let `write` fill a file, whole or not at all: beside it first, synced, then
    renamed over it."""
    file = Path(file)
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as out:
            write(out)
        sync(part)
        sync(part.replace(file).parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise type(error)(
            f"{shown(file)} can not be written: {error.strerror or error}."
        ) from None


def sync(*files: str | os.PathLike) -> None:
    """Wait until the disk holds these files or folders."""
    for file in files:
        number = os.open(file, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def replace(folder: Path, part: Path) -> None:
    """Put `part` in the place of `folder`; a folder that is only half there never bears
    the name."""
    old = folder.with_name(
        f".{folder.name}.old"
    )  # hidden: `.old` may be a copy of yours
    sync(*part.rglob("*"), part)  # first, for it may find the disk full
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    sync(part.rename(folder).parent)
    shutil.rmtree(old, ignore_errors=True)


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends: no two may write
    to one place."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(
        file, lambda out: out.write(text.encode("utf-8", "backslashreplace"))
    )  # as JSON has it


def write_jsonl(file: str | os.PathLike, rows: list[dict]) -> None:
    """One JSON object a line, written whole or not at all."""
    write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


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


def before_step(file: Path, step: int) -> None:
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


def resume_point(folder: Path, settings: dict) -> str | None:
    """The last complete checkpoint in `folder` of a run with these settings; else clear
    the folder. Where several processes train, the first one looks, and tells the
    others.

    transformers writes trainer_state.json last, so a checkpoint without a readable one
    was cut off. A run that ran out of memory may go on with other values of `LOWERED`.
    """
    import accelerate  # here, for the processes that make an index need none of it

    found = [
        _resume_point(folder, settings)
        if accelerate.PartialState().is_main_process
        else None
    ]
    return accelerate.utils.broadcast_object_list(found)[0]


def _resume_point(folder: Path, settings: dict) -> str | None:
    note, stopped, text = (
        folder / "settings.json",
        folder / OUT_OF_MEMORY,
        _plain(settings),
    )
    before = note.read_text() if note.exists() else ""
    if before != text and not (
        stopped.exists()
        and before
        and _plain(json.loads(before), LOWERED) == _plain(settings, LOWERED)
    ):
        note.unlink(
            missing_ok=True
        )  # first, for without it nothing in the folder counts
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    write_text(note, text)
    for checkpoint in sorted(
        folder.glob("checkpoint-[0-9]*"), key=lambda c: -int(c.name.split("-")[1])
    ):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def _plain(settings: dict, without: tuple[str, ...] = ()) -> str:
    """Nested settings as one text, without some keys."""

    def keep(value):
        inside = isinstance(value, dict)
        return (
            {k: keep(v) for k, v in value.items() if k not in without}
            if inside
            else value
        )

    return json.dumps(keep(settings), sort_keys=True, default=str)
