"""The command line of the measurements: `python -m kr1_utils.bench agent` leads the
same conversations in four ways, `… bench retrieval` builds and searches the same index
with four engines, side by side in one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import runpy
import sys
from pathlib import Path

import pandas as pd
import torch

from kr1_utils.data import write_text
from kr1_utils.profiles import REPO


def machine() -> str:
    """What these figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kr1_utils.bench", description=__doc__
    )
    parser.add_argument("what", choices=["agent", "retrieval"])
    parser.add_argument(
        "--profile", default="tiny", help="agent: whose model and limits"
    )
    parser.add_argument("--questions", type=int, default=256, help="agent: how many")
    parser.add_argument(
        "--data", default="", help="agent: folder with your own passages and questions"
    )
    parser.add_argument(
        "--model", help="agent: a folder or hub id instead of the profile's"
    )
    parser.add_argument(
        "--adapter", help="agent: a trained adapter, merged into the model first"
    )
    parser.add_argument(
        "--passages",
        type=int,
        default=100_000,
        help="retrieval: how many made-up passages",
    )
    parser.add_argument(
        "--corpus", type=Path, help="retrieval: take them from this file instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument(
        "--csv",
        type=Path,
        help="put the table here too, beside other profiles' or sizes'",
    )
    args = parser.parse_args(argv)
    measure = runpy.run_path(
        str(REPO / "data" / "reference" / f"bench_{args.what}.py")
    )["main"]
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # what libraries print is not the result
        run, engines = measure(args)
    rows = [
        {
            **run,
            "way": way,
            **{k: v for k, v in row.items() if not isinstance(v, dict)},
            **{
                f"{k}_{n}": v
                for k, part in row.items()
                if isinstance(part, dict)
                for n, v in part.items()
            },
            "machine": machine(),
        }
        for way, row in engines.items()
    ]
    table = pd.DataFrame(rows)
    speed = [
        c
        for c in table
        if c.startswith("queries_per_second") or c == "questions_per_second"
    ][-1]
    print(
        json.dumps({**run, "machine": machine(), "engines": engines})
        if args.json
        else table.assign(times=table[speed] / table[speed][0])
        .round(2)
        .to_string(index=False)
    )
    if args.csv:
        if args.csv.is_file():  # other profiles or sizes stay
            before, (key, mine) = pd.read_csv(args.csv), next(iter(run.items()))
            table = pd.concat([before[before[key] != mine], table])
        write_text(args.csv, table.to_csv(index=False))


if __name__ == "__main__":
    main()
