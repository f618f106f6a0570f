"""Owns the whole run: the notebooks 01–05 in order, finished ones skipped."""

import argparse
import fcntl
import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from kr1_utils.corpus import locate_files
from kr1_utils.files import REPO, in_repository, write_text
from kr1_utils.notebook import index_folder, setup
from kr1_utils.profiles import PROFILES
from kr1_utils.reproduce.accelerate import launch
from kr1_utils.reproduce.papermill import NOTEBOOKS, run_notebook
from kr1_utils.retriever.build import fingerprint

REQUIRED_OUTPUTS = {
    "01": ["retrieval.json"],
    "03": ["train_log.csv", "trajectories.jsonl", "checkpoint"],
    "04": ["predictions.jsonl", "summary.json"],
}  # what a notebook must have left, to be complete


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kr1_utils.reproduce", description=__doc__
    )
    parser.add_argument("--profile", default="tiny", help=", ".join(PROFILES))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--out", default="", help="folder for outputs; data/runs/<profile> if not given"
    )
    parser.add_argument(
        "--data", default="", help="folder with your own passages and questions"
    )
    parser.add_argument("--only", choices=NOTEBOOKS, help="run this notebook alone")
    parser.add_argument(
        "--force", action="store_true", help="run again what is complete"
    )
    parser.add_argument(
        "--num-processes", type=int, default=1, help="that train together, one a GPU"
    )
    parser.add_argument(
        "--accelerate-config",
        default="",
        help="how, for example data/accelerate/fsdp.yaml",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what it would take, and touch nothing",
    )
    parser.add_argument(
        "--gpu-gib",
        type=int,
        help="for --dry-run: the GPU's memory; this one's or 80 GiB",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="over the profile's settings, for example --set max_steps=5",
    )
    args = parser.parse_args(argv)
    overrides = {}
    for item in args.overrides:
        key, equals, value = item.partition("=")
        if not equals:
            parser.error(f"--set takes KEY=VALUE, not {item!r}")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    args.overrides = overrides
    return args


def is_complete(out: Path, number: str, stamp: str) -> float | None:
    """Seconds that notebook `number` took, if it ran to its end with this stamp and
    what it made is there."""
    done = out / ".done" / f"{number}.json"
    made = [
        done,
        out / f"{number}.ipynb",
        index_folder(out),
        *(out / name for name in REQUIRED_OUTPUTS.get(number, ())),
    ]
    if not all(file.exists() for file in made):
        return None
    record = json.loads(done.read_text())
    return record["seconds"] if record["stamp"] == stamp else None


def reproduce(args: argparse.Namespace) -> dict:
    """Run what is asked for and return what summary.json then holds.

    Raises:
        ValueError, OSError: for a bad parameter, before any notebook runs.
    """
    parameters = {
        "PROFILE": args.profile,
        "SEED": args.seed,
        "OUT": args.out,
        "DATA": args.data,
        "OVERRIDES": args.overrides,
    }
    profile, out = setup(parameters)
    rows, processes = profile.grpo["per_device_train_batch_size"], args.num_processes
    config = args.accelerate_config and str(
        Path(args.accelerate_config).resolve(strict=True)
    )
    if processes < 1 or rows % processes:
        raise ValueError(
            f"--num-processes {processes} must divide the {rows} trajectories of a"
            " batch."
        )
    # Notebooks run in their own folder, so relative paths are made absolute here.
    parameters["OUT"] = args.out and str(out.resolve())
    if args.data and Path(args.data).is_dir():
        parameters["DATA"] = str(Path(args.data).resolve())
    (out / ".done").mkdir(exist_ok=True)
    lock = (out / ".done" / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except BlockingIOError:
        raise OSError(
            f"OUT={out} is another run's, which has not ended: wait, or choose another."
        ) from None
    model, found = (
        in_repository(profile.model),
        locate_files(profile, parameters["DATA"]),
    )  # what a run is made of
    files = [
        *filter(None, found.values()),
        *(sorted(model.glob("*.*")) if model.is_dir() else ()),
    ]
    earlier = json.dumps(
        [asdict(replace(profile, expected={})), [*map(fingerprint, files)]],
        sort_keys=True,
    )
    for number, name in NOTEBOOKS.items():
        source = (REPO / "notebooks" / f"{name}.ipynb").read_bytes()
        # A notebook also depends on the ones before it, so their stamps go into its
        # own.
        own = (
            (processes, config, rows // processes)
            if number == "03" and (processes > 1 or config)
            else ()
        )
        how = f"{own}{Path(config).read_text() if config else ''}" if own else ""
        code = [
            c["source"] for c in json.loads(source)["cells"] if c["cell_type"] == "code"
        ]
        depends = f"{earlier}{json.dumps([parameters, code], sort_keys=True)}{how}"
        earlier = stamp = hashlib.sha256(depends.encode()).hexdigest()
        if args.only not in (None, number):
            continue
        taken = None if args.force else is_complete(out, number, stamp)
        if taken is not None:
            print(f"{name:20} complete already, {taken:.0f} s", flush=True)
        else:
            print(f"{name:20} …", end=" ", flush=True)
            for after in (
                number,
                *("04", "05") * (number == "03"),
            ):  # what they show is of what 03 makes
                (out / ".done" / f"{after}.json").unlink(missing_ok=True)
            run = launch if own else run_notebook
            taken = round(run(number, parameters, out, *own), 1)
            write_text(
                out / ".done" / f"{number}.json",
                json.dumps({"stamp": stamp, "seconds": taken}),
            )
            print(f"{taken:.0f} s", flush=True)
        if (
            number == "03"
            and len(pd.read_csv(out / "train_log.csv")) == profile.grpo["max_steps"]
        ):
            # Only now, for until it was noted as complete, a run that is killed goes on
            # from there.
            (out / "training" / "settings.json").unlink(
                missing_ok=True
            )  # without it nothing there counts
            shutil.rmtree(out / "training", ignore_errors=True)
    return _add_seconds(out)


def _add_seconds(out: Path) -> dict:
    """Put the time of each notebook that is done into summary.json."""
    file = out / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    done = {n: out / ".done" / f"{n}.json" for n in NOTEBOOKS}
    seconds = {
        n: json.loads(f.read_text())["seconds"] for n, f in done.items() if f.exists()
    }
    summary["seconds"] = {**seconds, "total": round(sum(seconds.values()), 1)}
    if file.exists():  # 04 makes it
        write_text(file, json.dumps(summary, indent=1))
    return summary


def show(summary: dict) -> str:
    """The summary as a small text table: before, after."""
    rows = {
        "exact match, multi-hop": "em",
        "exact match, single-hop": "em_single",
        "F1, multi-hop": "f1",
        "searches, multi-hop": "searches",
        "sampled tokens, multi-hop": "response_length",
    }
    table = pd.DataFrame(
        {
            when: {label: summary.get(f"{key}_{when}") for label, key in rows.items()}
            for when in ("before", "after")
        },
        dtype=float,
    )
    return table.to_string(float_format="{:.3f}".format, na_rep="–")
