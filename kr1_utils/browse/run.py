"""Owns reading a run back: its trajectories, in training and in evaluation."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kr1_utils.files import display_path
from kr1_utils.protocol import parse_turn
from kr1_utils.rows import UnreadableRowError

# Where a trajectory comes from: the file of a run that holds it.
SOURCES = {
    "training": "trajectories.jsonl",
    "before": "predictions_before.jsonl",
    "after": "predictions.jsonl",
}


@dataclass(frozen=True)
class Row:
    """A trajectory as the browser shows it. "" and None are what is not known.

    Attributes:
        source: a name in `SOURCES`.
        step: of the training, from 1; None in an evaluation.
        reward: what training gave for it; in an evaluation, exact match.
        rewards: of each function, before weighting.
        observations: what was read after each turn.
        token_lengths: for each turn, the characters of each sampled token.
        logprobs: for each turn, the log-probability of each sampled token.
    """

    source: str
    question: str
    answer: str | None
    step: int | None = None
    id: str = ""
    type: str = ""
    outcome: str = ""
    stop: str = ""
    golden_answers: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    searches: int = 0
    sampled: int | None = None
    retrieved: int | None = None
    reward: float | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    advantage: float | None = None
    token_lengths: list[list[int]] | None = None
    logprobs: list[list[float | None]] | None = None


def read_run(out: Path) -> list[Row]:
    """All trajectories of a run, in the order of its files.

    A run may be writing: what is behind the last line break of a file is left out.

    Args:
        out: the folder of the run.

    Raises:
        FileNotFoundError: if there is no such folder, or no trajectory in it.
        UnreadableRowError: naming the first line that holds no trajectory.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"No folder {out}.")
    found = {}
    for source, name in SOURCES.items():
        if (out / name).is_file():
            found[source] = list(_read_file(source, out / name))
    rows = [row for rows_of_file in found.values() for row in rows_of_file]
    if not rows:
        raise FileNotFoundError(
            f"{display_path(out)} has no trajectories: notebook 03 writes"
            f" {SOURCES['training']} there, 04 {SOURCES['after']}."
        )
    return rows


def _read_file(source: str, file: Path) -> Iterator[Row]:
    read = _training_row if source == "training" else _evaluation_row
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") or not line.strip():
                continue
            try:
                yield read(source, _object(line))
            except KeyError as error:
                raise _unreadable(file, f"it has no {error}.", number) from None
            except (ValueError, TypeError, AttributeError) as error:
                raise _unreadable(file, str(error), number) from None


def _unreadable(file: Path, reason: str, line: int) -> UnreadableRowError:
    return UnreadableRowError(file, "a trajectory", reason, line)


def _object(line: bytes) -> dict:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {json.dumps(value)[:40]}")
    return value


def _training_row(source: str, row: dict) -> Row:
    turns = _texts(row, "turns", required=True)
    # In the last turn a query is not searched.
    searches = [turn for turn in turns[:-1] if parse_turn(turn).kind == "search"]
    return Row(
        source=source,
        step=_number(row["step"]),
        question=_text(row, "question", required=True),
        answer=_answer(row["answer"]),
        turns=turns,
        searches=len(searches),
        sampled=_number(row.get("sampled")),
        retrieved=_number(row.get("retrieved")),
        reward=_number(row.get("reward")),
        rewards={k: _number(v) for k, v in row.get("rewards", {}).items()},
        advantage=_number(row.get("advantage")),
        **_common(row),
    )


def _evaluation_row(source: str, row: dict) -> Row:
    """An older run's row has neither the question nor the turns."""
    return Row(
        source=source,
        question=_text(row, "question"),
        answer=_answer(row["prediction"]),
        turns=_texts(row, "turns"),
        searches=_number(row["searches"]),
        sampled=_number(row.get("sampled_length")),
        retrieved=_number(row.get("retrieved_length")),
        reward=_number(row["em"]),
        rewards={"F1": _number(row["f1"])},
        **_common(row),
    )


def _common(row: dict) -> dict:
    """What both kinds of rows call by the same name."""
    texts = {name: _text(row, name) for name in ("outcome", "stop")}
    names = {name: _name(row, name) for name in ("id", "type")}
    lists = {name: _texts(row, name) for name in ("golden_answers", "observations")}
    return {
        **texts,
        **names,
        **lists,
        "token_lengths": _per_turn(row, "token_lengths"),
        "logprobs": _per_turn(row, "logprobs"),
    }


def _text(row: dict, name: str, required: bool = False) -> str:
    value = row[name] if required else row.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is not text: {value!r:.40}.")
    return value


def _name(row: dict, name: str) -> str:
    """Who writes questions may number them and their types, or name no type."""
    value = row.get(name)
    return "" if value is None else str(value)


def _texts(row: dict, name: str, required: bool = False) -> list[str]:
    value = row[name] if required else row.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{name!r} is not a list of texts: {value!r:.40}.")
    return value


def _answer(value) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its answer is not text: {value!r:.40}.")
    return value


def _number(value) -> float | None:
    """A number, or None where it is not known, as for NaN."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is not a number, but a number belongs there.")
    return value if math.isfinite(value) else None


def _per_turn(row: dict, name: str) -> list[list[float | None]] | None:
    """For each turn a list of numbers, if the row has them."""
    if row.get(name) is None:
        return None
    return [[_number(value) for value in turn] for turn in row[name]]
