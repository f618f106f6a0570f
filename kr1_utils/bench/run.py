"""Owns running a benchmark: what it measured becomes a table, printed and kept."""

import contextlib
import json
import sys

import pandas as pd

from kr1_utils.bench import agent, gpu, retrieval, training
from kr1_utils.bench.machine import machine_name
from kr1_utils.files import write_text

MEASURES = {
    "agent": agent.main,
    "retrieval": retrieval.main,
    "training": training.main,
    "gpu": gpu.main,
}


def run(args) -> int:
    """Measure `args.what`, print the table, and put it into `args.csv`."""
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # what libraries print is not the result
        run, engines = MEASURES[args.what](args)
    rows = [
        {**run, "way": way, **_flat(row), "machine": machine_name()}
        for way, row in engines.items()
    ]
    table = pd.DataFrame(rows)
    if args.json:
        print(json.dumps({**run, "machine": machine_name(), "engines": engines}))
    else:
        print(_with_ratios(table).round(2).to_string(index=False))
    if args.csv:
        _keep(table, next(iter(run.items())), args.csv)
    return 0


def _flat(row: dict) -> dict:
    """Nested numbers as columns of their own: {"a": {"1": x}} becomes {"a_1": x}."""
    plain = {k: v for k, v in row.items() if not isinstance(v, dict)}
    nested = {k: v for k, v in row.items() if isinstance(v, dict)}
    return plain | {
        f"{k}_{n}": v for k, part in nested.items() for n, v in part.items()
    }


def _with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The table, and how many times faster than its first row each row is."""
    speed = [c for c in table if c.startswith("queries_per_second")]
    column = speed[-1] if speed else "questions_per_second"
    return table.assign(times=table[column] / table[column][0])


def _keep(table: pd.DataFrame, key: tuple, file) -> None:
    """Put the table into a CSV beside the rows of other profiles or sizes."""
    name, value = key
    if file.is_file():
        before = pd.read_csv(file)
        table = pd.concat([before[before[name] != value], table])
    write_text(file, table.to_csv(index=False))
