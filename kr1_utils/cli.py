"""Owns the command line, `kr1`: it reads the words and calls what does the work.

Each command has two functions: `_add_run` says which words it takes, `_run` hands them
over. What does the work is imported there, so that `kr1 --help` answers at once.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from kr1_utils import __version__
from kr1_utils.files import expand_home

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `kr1`; None takes them from the command line.

    Returns:
        the exit status: 0 if everything asked for was done; 1 if a run failed; 2 for
        bad input; 130 after Ctrl-C. All but 0 come with one sentence on stderr.

    Raises:
        SystemExit: with status 2 and one sentence for words that no command takes, and
            with status 0 after --help and --version.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.call(arguments)
    except RuntimeError as error:
        # A run may have left a line unfinished.
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{arguments.interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that refuses bad words in one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="kr1", description="Knowledge-R1 in notebooks, from the command line."
    )
    parser.add_argument("--version", action="version", version=f"kr1 {__version__}")
    commands = parser.add_subparsers(
        title="commands, each with its own --help", metavar="COMMAND", required=True
    )
    _add_run(commands)
    _add_score(commands)
    _add_memory(commands)
    _add_bench(commands)
    _add_ask(commands)
    _add_push(commands)
    _add_serve(commands)
    _add_miniwiki(commands)
    _add_mine(commands)
    _add_question_set(commands)
    _add_figures(commands)
    _add_browse(commands)
    _add_watch(commands)
    _add_doctor(commands)
    return parser


def _add_command(commands, name: str, does: str, example: str, more: str = ""):
    """Add a command.

    Args:
        does: what it does, for the list of commands and the first sentence of its help.
        example: a line that a reader can copy.
        more: further sentences of its help.
    """
    return commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}. {more}".strip(),
        epilog=f"Example: {example}",
    )


# --- run ---


def _add_run(commands) -> None:
    from kr1_utils.profiles import PROFILES

    parser = _add_command(
        commands,
        "run",
        "run the notebooks 01–05 in order",
        "kr1 run --profile tiny --set max_steps=5",
        "Finished notebooks are skipped unless settings, files or code changed. A run"
        " that was cut off goes on where it was.",
    )
    parser.set_defaults(
        call=_run, interrupted="Interrupted: the same command goes on from here."
    )
    parser.add_argument(
        "--profile", default="tiny", help=f"the scale: {', '.join(PROFILES)}"
    )
    parser.add_argument("--seed", type=int, default=42, help="42 if not given")
    parser.add_argument(
        "--out",
        type=expand_home,
        default="",
        help="folder for outputs; data/runs/<profile> if not given",
    )
    _add_data(parser)
    parser.add_argument(
        "--only", metavar="NUMBER", help="run this notebook alone, for example 03"
    )
    parser.add_argument(
        "--force", action="store_true", help="run finished notebooks again"
    )
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        metavar="N",
        help="how many processes train together, one per GPU",
    )
    parser.add_argument(
        "--accelerate-config",
        type=expand_home,
        default="",
        metavar="FILE",
        help="how they train, for example data/accelerate/fsdp.yaml",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what the run would take, and write nothing",
    )
    parser.add_argument(
        "--gpu-gib",
        type=int,
        metavar="GIB",
        help="for --dry-run: the GPU's memory; this machine's, or 80, if not given",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        dest="overrides",
        help=(
            "change a setting of the profile, or any argument of TRL's GRPOConfig; may"
            " be given many times"
        ),
    )


def _path(text: str) -> Path:
    """A path, also where the shell has left a "~" as it was, as in --csv=~/a.csv."""
    return Path(expand_home(text))


def _setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, where the value is JSON if it can be read as JSON, else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"takes KEY=VALUE, not {text!r}")
    with contextlib.suppress(ValueError):
        return key, json.loads(value)
    return key, value


def _run(arguments) -> None:
    from kr1_utils import reproduce

    request = reproduce.Request(
        profile=arguments.profile,
        seed=arguments.seed,
        out=arguments.out,
        data=arguments.data,
        only=arguments.only,
        force=arguments.force,
        num_processes=arguments.num_processes,
        accelerate_config=arguments.accelerate_config,
        overrides=dict(arguments.overrides),
    )
    if arguments.dry_run:
        from kr1_utils.reproduce.dry_run import dry_run

        print(dry_run(request, arguments.gpu_gib))
        return
    summary = reproduce.reproduce(request)
    seconds = summary["seconds"]["total"]
    print(f"\n{reproduce.show(summary)}\n\nin all {seconds:.0f} s")


# --- score ---


def _add_score(commands) -> None:
    parser = _add_command(
        commands,
        "score",
        "score anyone's predictions, or compare two files of them",
        "kr1 score predictions.jsonl --questions questions.jsonl",
        "Answers are scored as three papers do it, with intervals, also by type of"
        " question.",
    )
    parser.set_defaults(call=_score, interrupted="Interrupted.")
    parser.add_argument(
        "predictions", nargs="+", help="a file of JSON lines, or two to compare"
    )
    parser.add_argument(
        "--questions", required=True, help="JSONL with id, question, golden_answers"
    )
    parser.add_argument(
        "--key",
        action="append",
        help="where a row has its answer, for example output.pred; prediction if not"
        " given; give it twice for two files that differ",
    )
    _add_json(parser)


def _score(arguments) -> None:
    from kr1_utils import scoring

    keys = arguments.key or ["prediction"]
    result = scoring.score_files(arguments.predictions, arguments.questions, keys)
    print(json.dumps(result) if arguments.json else scoring.show(result))


# --- memory ---


def _add_memory(commands) -> None:
    parser = _add_command(
        commands,
        "memory",
        "forecast the GPU memory that a run will need",
        "kr1 memory --profile 7b --response-tokens 8192 --gpu-gib 80",
        "Training is simulated without a GPU and without the model's weights.",
    )
    parser.set_defaults(call=_memory, interrupted="Interrupted.")
    parser.add_argument("--profile", default="7b", help="7b if not given")
    parser.add_argument(
        "--response-tokens",
        type=int,
        default=0,
        metavar="N",
        help="length of one trajectory; the profile's max_response_tokens if not given",
    )
    parser.add_argument(
        "--gpu-gib",
        type=int,
        default=80,
        metavar="GIB",
        help="memory of one GPU; 80 if not given",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="1 if not given"
    )
    parser.add_argument(
        "--zero", type=int, default=0, help="DeepSpeed's stage: 0, 2 or 3"
    )
    parser.add_argument(
        "--table",
        type=_path,
        metavar="CSV",
        help="instead, write a table of Qwen2.5-7B over lengths (two minutes)",
    )
    _add_json(parser)


def _memory(arguments) -> None:
    if arguments.table is not None:
        from kr1_utils.memory.table import write_table

        write_table(arguments.table)
        return
    from kr1_utils import memory
    from kr1_utils.profiles import resolve

    result = memory.forecast(
        resolve(arguments.profile),
        arguments.response_tokens,
        arguments.gpu_gib,
        arguments.num_gpus,
        arguments.zero,
    )
    if arguments.json:
        # The timeline is too long to print.
        del result["timeline"]
        print(json.dumps(result))
    else:
        print(memory.show(result))


# --- bench ---


def _add_bench(commands) -> None:
    parser = _add_command(
        commands,
        "bench",
        "measure ways of doing the same thing side by side",
        "kr1 bench agent --questions 64",
        "Every way does the same work in one run, on this machine.",
    )
    benchmarks = parser.add_subparsers(
        title="benchmarks, each with its own --help",
        metavar="WHAT",
        dest="what",
        required=True,
    )
    _add_bench_agent(benchmarks)
    _add_bench_ask(benchmarks)
    _add_bench_retrieval(benchmarks)
    _add_bench_training(benchmarks)
    _add_bench_busy(benchmarks)
    _add_bench_gpu(benchmarks)
    _add_bench_serving(benchmarks)
    for benchmark in benchmarks.choices.values():
        benchmark.set_defaults(call=_bench, interrupted="Interrupted.")
        benchmark.add_argument(
            "--csv",
            type=_path,
            help="write the table here too, beside other profiles' or sizes'",
        )
        _add_json(benchmark)
    # It runs where little is installed, and keeps each row as it comes.
    benchmarks.choices["gpu"].set_defaults(call=_bench_gpu)


def _add_bench_agent(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "agent",
        "lead the same conversations one by one, in a batch, with TRL's tools and vLLM",
        "kr1 bench agent --profile tiny --questions 64",
    )
    parser.add_argument(
        "--profile", default="tiny", help="whose model and limits; tiny if not given"
    )
    parser.add_argument(
        "--questions", type=int, default=256, metavar="N", help="256 if not given"
    )
    _add_data(parser)
    parser.add_argument(
        "--model", type=expand_home, help="a folder or hub id instead of the profile's"
    )
    parser.add_argument(
        "--adapter",
        type=expand_home,
        help="a trained adapter, merged into the model first",
    )


def _add_bench_ask(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "ask",
        "measure how long kr1 ask takes to its first answer, and to each next one",
        "kr1 bench ask --starts 3 --questions 20",
    )
    parser.add_argument(
        "--profile", default="tiny", help="whose agent; tiny if not given"
    )
    _add_run_folder(parser)
    _add_data(parser)
    parser.add_argument(
        "--starts", type=int, default=3, metavar="N", help="3 if not given"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=20,
        metavar="N",
        help="asked after the first one, at each start; 20 if not given",
    )


def _add_bench_retrieval(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "retrieval",
        "build and search one index with several engines",
        "kr1 bench retrieval --passages 100000",
    )
    parser.add_argument(
        "--passages",
        type=int,
        default=100_000,
        metavar="N",
        help="how many made-up passages; 100000 if not given",
    )
    parser.add_argument(
        "--corpus", type=_path, help="take the passages from this file instead"
    )


def _add_bench_training(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "training",
        "update a model with whole batches and with parts of them",
        "kr1 bench training --profile tiny",
        "It shows time and memory of an update, for rows of equal and of mixed"
        " lengths.",
    )
    parser.add_argument(
        "--profile", default="tiny", help="whose model and batch; tiny if not given"
    )


def _add_bench_busy(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "busy",
        "training beside a busy process, with and without threads that spin",
        "kr1 bench busy --csv busy.csv",
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="of each of the four trainings"
    )


def _add_bench_gpu(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "gpu",
        "measure memory and time of long training steps on a GPU, beside the forecast",
        "kr1 bench gpu --csv gpu.csv",
        "Weights are random, so that nothing is downloaded. What --csv has already is"
        " not measured again.",
    )
    parser.add_argument(
        "--model",
        type=expand_home,
        help="a folder or hub id instead of three sizes of Qwen2.5",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        metavar="N",
        help="lengths of a row, its prompt included; 1024 to 16384 if not given",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=25,
        metavar="N",
        help="nothing more is begun then; 25 if not given",
    )
    parser.add_argument(
        "--forecasts",
        action="store_true",
        help="only put the forecasts into --csv that it lacks; this needs no GPU",
    )


def _add_bench_serving(benchmarks) -> None:
    parser = _add_command(
        benchmarks,
        "serving",
        "search one index in this process, and over HTTP from many clients",
        "kr1 bench serving --passages 100000",
        "It also shows the memory of two trainings, each with its own index and with a"
        " served one.",
    )
    parser.add_argument(
        "--passages",
        type=int,
        default=100_000,
        metavar="N",
        help="how many passages; 100000 if not given",
    )


def _bench(arguments) -> None:
    from kr1_utils.bench.run import run

    run(arguments)


def _bench_gpu(arguments) -> None:
    from kr1_utils.bench.gpu import run

    run(arguments)


# --- serve ---


def _add_serve(commands) -> None:
    parser = _add_command(
        commands,
        "serve",
        "serve an index to other processes, in Search-R1's protocol",
        "kr1 serve --profile tiny --port 8000",
        "A run uses it with --set retriever=http://127.0.0.1:8000.",
    )
    parser.set_defaults(call=_serve, interrupted="Interrupted.")
    parser.add_argument(
        "--profile", default="tiny", help="whose passages; tiny if not given"
    )
    _add_data(parser)
    parser.add_argument(
        "--index",
        type=expand_home,
        default="",
        metavar="FOLDER",
        help="the index; that of the profile's runs if not given",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; only this machine reaches 127.0.0.1, the default",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="8000 if not given; 0 takes a free one"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that answer; 1 if not given",
    )


def _serve(arguments) -> None:
    from kr1_utils.retriever.serve import serve

    serve(
        arguments.profile,
        arguments.data,
        arguments.index,
        arguments.host,
        arguments.port,
        arguments.workers,
    )


# --- ask, push ---


def _add_ask(commands) -> None:
    parser = _add_command(
        commands,
        "ask",
        "ask a trained agent",
        'kr1 ask "Who directed The Lonely Voyage?"',
        "Thoughts, searches and titles are printed as they come. Without a question it"
        " is a prompt; questions may also come through a pipe, one per line.",
    )
    parser.set_defaults(call=_ask, interrupted="Interrupted.")
    parser.add_argument("question", nargs="*", help="in your own words")
    parser.add_argument(
        "--profile",
        default="",
        help="whose limits and corpus; the run's, or tiny, if not given",
    )
    _add_run_folder(parser)
    parser.add_argument(
        "--model",
        type=expand_home,
        default="",
        help="a folder, GGUF file or hub id instead of the run's",
    )
    parser.add_argument(
        "--adapter",
        type=expand_home,
        default="",
        help="the folder of a trained adapter instead of the run's",
    )
    parser.add_argument(
        "--data",
        type=expand_home,
        default="",
        help="your own passages: a file of them, or a folder with passages.jsonl",
    )
    parser.add_argument(
        "--index",
        type=expand_home,
        default="",
        metavar="FOLDER",
        help="where to keep their index; if not given, it is made anew each time",
    )
    parser.add_argument(
        "--retriever",
        default="",
        metavar="URL",
        help="search a served index instead, see kr1 serve",
    )
    _add_json(parser)


def _ask(arguments) -> None:
    from kr1_utils import terminal

    terminal.run(arguments)


def _add_push(commands) -> None:
    parser = _add_command(
        commands,
        "push",
        "publish a trained agent on the Hugging Face hub",
        "kr1 push data/runs/tiny --to user/name --dry-run",
        "What is uploaded is made in OUT/hub first: the weights, the tokenizer, and a"
        " model card with the scores of the run.",
    )
    parser.set_defaults(call=_push, interrupted="Interrupted.")
    parser.add_argument("out", type=expand_home, help="the folder of a run")
    parser.add_argument(
        "--to", required=True, metavar="USER/NAME", help="the model's name on the hub"
    )
    parser.add_argument(
        "--base",
        default="",
        metavar="ID",
        help="the base model on the hub, if it was loaded from a folder",
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="ID",
        help="such as apache-2.0; the base model's, as the hub has it, if not given",
    )
    parser.add_argument(
        "--private", action="store_true", help="for you alone, if it is new there"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only make OUT/hub, and list what would be uploaded",
    )


def _push(arguments) -> None:
    from kr1_utils import publish

    request = publish.Request(
        out=arguments.out,
        to=arguments.to,
        base=arguments.base,
        licence=arguments.license,
        private=arguments.private,
    )
    print(publish.push(request, arguments.dry_run))


# --- miniwiki, mine, data, figures ---


def _add_miniwiki(commands) -> None:
    parser = _add_command(
        commands,
        "miniwiki",
        "write the fictional world: passages and questions",
        "kr1 miniwiki --out my_world",
        "The same files come out every time.",
    )
    parser.set_defaults(call=_miniwiki, interrupted="Interrupted.")
    parser.add_argument(
        "--out", type=_path, help="folder; the repository's own if not given"
    )


def _miniwiki(arguments) -> None:
    from kr1_utils.files import shipped
    from kr1_utils.miniwiki.make import write_world

    folder = arguments.out
    if folder is None:
        folder = shipped("data/miniwiki")
    print(write_world(folder))


def _add_mine(commands) -> None:
    parser = _add_command(
        commands,
        "mine",
        "make questions to train on from the passages of a corpus",
        "kr1 mine --corpus passages.jsonl --out mined --without questions.jsonl",
        "Facts are read out of passages in the style of Wikipedia's first paragraphs.",
    )
    parser.set_defaults(call=_mine, interrupted="Interrupted: nothing was written.")
    parser.add_argument(
        "--corpus", required=True, help="a file of passages, with id, title and text"
    )
    parser.add_argument("--out", type=_path, required=True, help="folder for outputs")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="QUESTIONS",
        help="leave out whatever names a title that these questions name",
    )
    parser.add_argument("--seed", type=int, default=42, help="42 if not given")


def _mine(arguments) -> None:
    from kr1_utils.mining import mine

    said = mine(arguments.corpus, arguments.out, arguments.without, arguments.seed)
    print(said)


def _add_question_set(commands) -> None:
    parser = _add_command(
        commands,
        "data",
        "fetch the test questions of a public data set from the hub",
        "kr1 data bamboogle --out data/bamboogle",
        "A run can be tested on them, and anyone's answers be scored.",
    )
    parser.set_defaults(
        call=_question_set, interrupted="Interrupted: the same command goes on."
    )
    parser.add_argument("name", help="2wiki, hotpotqa, musique or bamboogle")
    parser.add_argument(
        "--out", type=_path, required=True, help="folder for test.jsonl"
    )


def _question_set(arguments) -> None:
    from kr1_utils.question_sets import fetch_test_set

    print(fetch_test_set(arguments.name, arguments.out))


def _add_figures(commands) -> None:
    parser = _add_command(
        commands,
        "figures",
        "draw the README's figures from data/reference",
        "kr1 figures",
        "They are written into figures/.",
    )
    parser.set_defaults(call=_figures, interrupted="Interrupted.")


def _figures(arguments) -> None:
    from kr1_utils.files import display_path
    from kr1_utils.plots import draw_figures

    for file in draw_figures():
        print(display_path(file))


def _add_run_folder(parser) -> None:
    parser.add_argument(
        "--run",
        type=expand_home,
        default="",
        metavar="FOLDER",
        help=(
            "the folder of a run; data/runs/<profile> if not given, or for tiny, if"
            " there is none, the shipped run"
        ),
    )


# --- browse, watch ---


def _add_browse(commands) -> None:
    parser = _add_command(
        commands,
        "browse",
        "write all trajectories of a run into one HTML file, and open it",
        "kr1 browse data/runs/tiny",
        "The file needs no network and no server.",
    )
    parser.set_defaults(call=_browse, interrupted="Interrupted.")
    parser.add_argument("out", type=_path, metavar="OUT", help="folder of the run")
    parser.add_argument(
        "--file", type=_path, help="write it here; OUT/browse.html if not given"
    )
    _add_no_open(parser)


def _browse(arguments) -> None:
    import webbrowser

    from kr1_utils import browse
    from kr1_utils.files import display_path

    file = browse.write_page(arguments.out, arguments.file)
    print(display_path(file))
    if not arguments.no_open:
        webbrowser.open(file.resolve().as_uri())


def _add_watch(commands) -> None:
    parser = _add_command(
        commands,
        "watch",
        "show how far a run has come, on a page that renews itself",
        "kr1 watch data/runs/tiny",
        "It shows the six panels of train_log.csv until Ctrl-C, to this machine only.",
    )
    parser.set_defaults(call=_watch, interrupted="Stopped watching.")
    parser.add_argument("out", type=_path, metavar="OUT", help="folder of the run")
    parser.add_argument(
        "--port", type=int, default=8770, help="8770 if not given; 0 takes a free one"
    )
    _add_no_open(parser)


def _watch(arguments) -> None:
    import webbrowser

    from kr1_utils.watch import WatchServer

    with WatchServer(arguments.out, arguments.port) as server:
        print(f"{server.address} (Ctrl-C ends it)", flush=True)
        if not arguments.no_open:
            webbrowser.open(server.address)
        server.serve_forever()


# --- doctor ---


def _add_doctor(commands) -> None:
    parser = _add_command(
        commands,
        "doctor",
        "say what this machine has, and which profiles fit it",
        "kr1 doctor",
        "It takes a few seconds, and works without PyTorch.",
    )
    parser.set_defaults(call=_doctor, interrupted="Interrupted.")
    _add_json(parser)


def _doctor(arguments) -> None:
    from kr1_utils import doctor

    told = doctor.report()
    print(json.dumps(told) if arguments.json else doctor.show(told))


def _add_no_open(parser) -> None:
    parser.add_argument(
        "--no-open", action="store_true", help="open no window of the web browser"
    )


def _add_data(parser) -> None:
    parser.add_argument(
        "--data",
        type=expand_home,
        default="",
        help="folder with your own passages and questions",
    )


def _add_json(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
