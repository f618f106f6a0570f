"""Owns running a benchmark: what it measured becomes a table, printed and kept."""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kr1_utils.bench import agent, ask, busy, retrieval, serving, training
from kr1_utils.files import write_text


def times_the_first(speed: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Adds `times`: how many times faster than the first row each row is."""

    def add(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(times=table[speed] / table[speed].iloc[0]).round(2)

    return add


def parts_to_trl(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `parts/trl`: the time of each way, divided by the time of TRL's way, which
    comes first in a batch."""
    batches = table.groupby(["lengths", "mean_tokens"])
    trl_seconds = batches["seconds"].transform("first")
    return table.assign(**{"parts/trl": table["seconds"] / trl_seconds}).round(2)


def times_the_quiet_one(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `times`: the time of each row, divided by the first row's."""
    return table.assign(times=table["seconds"] / table["seconds"].iloc[0]).round(2)


@dataclass(frozen=True)
class Benchmark:
    """One of the measurements.

    Attributes:
        measure: takes the arguments of the command line, returns a table with one row
            per way.
        keys: columns that say what was measured: in a CSV, rows with other values stay.
        settings: columns that are the same in all rows.
        for_print: adds a column that compares the ways.
    """

    measure: Callable[..., pd.DataFrame]
    keys: list[str]
    settings: list[str]
    for_print: Callable[[pd.DataFrame], pd.DataFrame]


BENCHMARKS = {
    "agent": Benchmark(
        agent.measure,
        keys=["profile"],
        settings=["profile", "questions"],
        for_print=times_the_first("questions_per_second"),
    ),
    "ask": Benchmark(
        ask.measure,
        keys=["profile"],
        settings=[],
        for_print=lambda table: table,
    ),
    "retrieval": Benchmark(
        retrieval.measure,
        keys=["passages"],
        settings=["passages"],
        for_print=times_the_first("queries_per_second_512"),
    ),
    "training": Benchmark(
        training.measure,
        keys=["lengths", "mean_tokens"],
        settings=[],
        for_print=parts_to_trl,
    ),
    "busy": Benchmark(
        busy.measure,
        keys=["machine"],
        settings=[],
        for_print=times_the_quiet_one,
    ),
    "serving": Benchmark(
        serving.measure,
        keys=["passages"],
        settings=["passages"],
        for_print=times_the_first("queries_per_second_1"),
    ),
}


def run(arguments) -> int:
    """Measure `arguments.what`, print the table, and put it into `arguments.csv`.

    Raises:
        ValueError: for bad input, and if the CSV has other columns.
        OSError: if the CSV cannot be read or written.
    """
    benchmark = BENCHMARKS[arguments.what]
    if arguments.csv:
        # Refuses a wrong file before the measurement takes its time.
        read_csv(arguments.csv, benchmark.keys)
    # What libraries print is not the result.
    with contextlib.redirect_stdout(sys.stderr):
        table = benchmark.measure(arguments)
    if arguments.json:
        print(json.dumps(as_json(table, benchmark.settings)))
    else:
        print(benchmark.for_print(table).to_string(index=False))
    if arguments.csv:
        before = read_csv(arguments.csv, benchmark.keys)
        merged = merge(before, table, benchmark.keys)
        write_text(arguments.csv, merged.to_csv(index=False))
    return 0


def read_csv(file: Path, keys: list[str]) -> pd.DataFrame | None:
    """The rows of earlier measurements; None if there is no such file yet."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"--csv {file}: there is no folder {file.parent}.")
    if not file.is_file():
        return None
    before = pd.read_csv(file)
    absent = [key for key in keys if key not in before]
    if absent:
        raise ValueError(
            f"--csv {file} is the table of another benchmark: it has no column"
            f" {', '.join(absent)}."
        )
    return before


def merge(
    before: pd.DataFrame | None, table: pd.DataFrame, keys: list[str]
) -> pd.DataFrame:
    """The table, below those earlier rows that are of other profiles, sizes or
    models."""
    if before is None:
        return table
    measured = pd.MultiIndex.from_frame(table[keys])
    stays = ~pd.MultiIndex.from_frame(before[keys]).isin(measured)
    return pd.concat([before[stays], table]) if stays.any() else table


def as_json(table: pd.DataFrame, settings: list[str]) -> dict:
    """The settings, the machine, and the numbers of each way under `engines`; tables
    that have several rows per way have a list of `rows` instead."""
    # NaN is no JSON.
    plain = table.astype(object).where(table.notna(), None)
    rows = plain.drop(columns="machine").to_dict("records")
    result = {name: rows[0][name] for name in settings}
    result["machine"] = table["machine"].iloc[0]
    if not settings:
        return result | {"rows": rows}
    result["engines"] = {}
    for row in rows:
        numbers = {k: v for k, v in row.items() if k not in ("way", *settings)}
        result["engines"][row["way"]] = nested(numbers)
    return result


def nested(row: dict) -> dict:
    """Columns of one quantity as a dict: {"speed_1": x, "speed_64": y} becomes
    {"speed": {"1": x, "64": y}}."""
    out: dict = {}
    for column, value in row.items():
        name, _, size = column.rpartition("_")
        if size.isdigit():
            out.setdefault(name, {})[size] = value
        else:
            out[column] = value
    return out
