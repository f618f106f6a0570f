"""Owns the command line, `kr1`: it reads the words, and calls what does the work."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

EXAMPLES = {
    "run": "kr1 run --profile tiny --set max_steps=5",
    "score": "kr1 score predictions.jsonl --questions questions.jsonl",
    "memory": "kr1 memory --profile 7b --response-tokens 8192 --gpu-gib 80",
    "bench": "kr1 bench agent --questions 64",
    "miniwiki": "kr1 miniwiki --out my_world",
    "figures": "kr1 figures",
}
BENCHMARKS = ("agent", "retrieval", "training", "gpu")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0 only if everything asked for was done.

    Bad input ends in one sentence on stderr and status 2, a failed run in status 1,
    Ctrl-C in 130.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.call(arguments) or 0
    except RuntimeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kr1", description="Knowledge-R1 in notebooks, from the command line."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_run, _score, _memory, _bench, _miniwiki, _figures):
        add(commands)
    return parser


def _command(commands, name: str, what: str, call) -> argparse.ArgumentParser:
    """A subcommand: what it does in plain words, with an example."""
    parser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"Example: {EXAMPLES[name]}",
    )
    parser.set_defaults(call=call)
    return parser


def _run(commands) -> None:
    from kr1_utils.profiles import PROFILES

    def call(arguments) -> int:
        from kr1_utils import reproduce

        arguments.overrides = dict(arguments.overrides)
        if arguments.dry_run:
            from kr1_utils.reproduce.dry_run import dry_run

            print(dry_run(arguments))
            return 0
        summary = reproduce.reproduce(arguments)
        seconds = summary["seconds"]["total"]
        print(f"\n{reproduce.show(summary)}\n\nin all {seconds:.0f} s")
        return 0

    parser = _command(
        commands,
        "run",
        "run the notebooks 01–05 in order; finished ones are skipped",
        call,
    )
    parser.add_argument("--profile", default="tiny", help=", ".join(PROFILES))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--out",
        default="",
        help="folder for outputs; data/runs/<profile> if not given",
    )
    parser.add_argument(
        "--data", default="", help="folder with your own passages and questions"
    )
    parser.add_argument(
        "--only", choices=("01", "02", "03", "04", "05"), help="run this notebook alone"
    )
    parser.add_argument(
        "--force", action="store_true", help="run finished notebooks again"
    )
    parser.add_argument(
        "--num-processes", type=int, default=1, help="that train together, one per GPU"
    )
    parser.add_argument(
        "--accelerate-config",
        default="",
        help="how they train, for example data/accelerate/fsdp.yaml",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what it would take, and touch nothing",
    )
    parser.add_argument(
        "--gpu-gib",
        type=int,
        help="for --dry-run: the GPU's memory; this machine's, or 80 GiB",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting of the profile, for example --set max_steps=5",
    )


def _setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, where the value is JSON if it can be read as JSON, else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"--set takes KEY=VALUE, not {text!r}")
    with contextlib.suppress(ValueError):
        return key, json.loads(value)
    return key, value


def _score(commands) -> None:
    def call(arguments) -> int:
        from kr1_utils import scoring

        result = scoring.score_files(arguments.predictions, arguments.questions)
        print(json.dumps(result) if arguments.json else scoring.show(result))
        return 0

    parser = _command(
        commands,
        "score",
        "score anyone's predictions as three papers do, or compare two files",
        call,
    )
    parser.add_argument(
        "predictions", nargs="+", help="one JSONL file, or two to compare"
    )
    parser.add_argument(
        "--questions", required=True, help="JSONL with id, question, golden_answers"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _memory(commands) -> None:
    def call(arguments) -> int:
        from kr1_utils import memory
        from kr1_utils.profiles import resolve

        if arguments.table:
            from kr1_utils.memory.table import write_table

            write_table(arguments.table)
            return 0
        result = memory.forecast(
            resolve(arguments.profile),
            arguments.response_tokens,
            arguments.gpu_gib,
            arguments.num_gpus,
            arguments.zero,
        )
        timeline = result.pop("timeline")
        del timeline  # too long to print
        print(json.dumps(result) if arguments.json else memory.show(result))
        return 0

    parser = _command(
        commands, "memory", "forecast the GPU memory that a run will need", call
    )
    parser.add_argument("--profile", default="7b")
    parser.add_argument(
        "--response-tokens",
        type=int,
        default=0,
        help="of one trajectory; the profile's max_response_tokens if not given",
    )
    parser.add_argument("--gpu-gib", type=int, default=80)
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--zero", type=int, default=0, help="DeepSpeed's stage")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="instead, write the table of Qwen2.5-7B over lengths (ten minutes)",
    )


def _bench(commands) -> None:
    def call(arguments) -> int:
        from kr1_utils.bench import run

        return run.run(arguments)

    parser = _command(
        commands, "bench", "measure ways of doing the same side by side", call
    )
    parser.add_argument("what", choices=BENCHMARKS)
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
        "--corpus", type=Path, help="retrieval: take passages from this file instead"
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="gpu: lengths of a response"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--csv",
        type=Path,
        help="write the table here too, beside other profiles' or sizes'",
    )


def _miniwiki(commands) -> None:
    def call(arguments) -> int:
        from kr1_utils.files import REPO
        from kr1_utils.miniwiki.make import write_world

        print(write_world(arguments.out or REPO / "data" / "miniwiki"))
        return 0

    parser = _command(
        commands, "miniwiki", "write the fictional world: passages and questions", call
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="folder; the shipped one if not given"
    )


def _figures(commands) -> None:
    def call(arguments) -> int:
        from kr1_utils import plots

        for file in plots.draw_figures():
            print(file)
        return 0

    _command(commands, "figures", "draw the README's figures from data/reference", call)
