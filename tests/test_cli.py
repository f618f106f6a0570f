"""The command line: what it takes, what it refuses, and how it ends."""

import shlex
import subprocess
import sys
import webbrowser

import pytest
from helpers import kr1

from kr1_utils import __version__, cli, reproduce, scoring
from kr1_utils.files import REPO

COMMANDS = [
    ["run"],
    ["score"],
    ["memory"],
    ["bench"],
    ["bench", "agent"],
    ["bench", "ask"],
    ["bench", "retrieval"],
    ["bench", "training"],
    ["bench", "gpu"],
    ["ask"],
    ["push"],
    ["bench", "serving"],
    ["serve"],
    ["miniwiki"],
    ["mine"],
    ["data"],
    ["figures"],
    ["browse"],
    ["watch"],
    ["doctor"],
]
# `python -m` of a module, and the command that is the same.
DOORS = {
    "kr1_utils.reproduce": "run",
    "kr1_utils.evaluation": "score",
    "kr1_utils.memory": "memory",
    "kr1_utils.bench": "bench",
    "kr1_utils.miniwiki": "miniwiki",
    "kr1_utils.browse": "browse",
    "kr1_utils.watch": "watch",
}


def help_of(words, capsys) -> str:
    """What `kr1 … --help` prints."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def refused(words, capsys) -> str:
    """What `kr1 …` says of words that it does not take."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


# --- help ---


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_a_command_has_an_example_that_it_takes(words, capsys):
    text = help_of(words, capsys)
    example = shlex.split(text.partition("Example: ")[2])
    assert example[: 1 + len(words)] == ["kr1", *words]
    # Had it another word that is unknown, that word would be named too.
    said = refused([*example[1:], "--no-such-word"], capsys)
    assert "unrecognized arguments: --no-such-word (" in said


def test_help_names_every_command(capsys):
    text = help_of([], capsys)
    assert all(f"\n    {words[0]} " in text for words in COMMANDS)


def test_help_loads_no_heavy_library():
    code = (
        "import sys\n"
        "from kr1_utils import cli\n"
        "try:\n"
        "    cli.main(['--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'transformers', 'pandas', 'numpy'}\n"
        "    sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == ["kr1", __version__]


@pytest.mark.parametrize("module", DOORS)
def test_a_module_that_is_a_command_too_is_the_same_one(module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == help_of([DOORS[module]], capsys)


# --- how it ends ---


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--profile", "tyni"], "Unknown profile 'tyni'"),
        (["--set", "max_step=3"], "did you mean 'max_steps'"),
        (["--set", "max_steps=many"], "max_steps='many' must be"),
        (["--set", "max_turns=-1"], "must not be negative"),
        (["--set", "max_steps"], "takes KEY=VALUE"),
        (["--seed", "-1"], "SEED must be a whole number"),
        (["--data", "no/such/folder"], "no passages.jsonl"),
        (["--out", str(REPO / "LICENSE" / "below")], "be written"),
        (["--only", "06"], "choose one of 01, 02, 03, 04, 05"),
        (["--num-processes", "3"], "must divide the 64 trajectories"),
        (["--accelerate-config", "no.yaml"], "No file no.yaml"),
        (["--profil-e", "tiny"], "unrecognized arguments: --profil-e"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_of_a_run_ends_in_one_sentence_before_any_work(
    words, sentence, tmp_path
):
    done = kr1("run", "--out", str(tmp_path / "out"), *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "01.ipynb").exists()


@pytest.mark.parametrize("words", [[], ["jump"], ["bench"], ["bench", "speed"]])
def test_a_missing_or_unknown_command_is_refused_in_one_sentence(words, capsys):
    assert len(refused(words, capsys).splitlines()) == 1


@pytest.mark.parametrize(
    "error, status",
    [
        (RuntimeError("It broke."), 1),
        (ValueError("Bad value."), 2),
        (FileNotFoundError("No such file."), 2),
        (ImportError("This needs an extra."), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_sentence_and_its_status(error, status, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(scoring, "score_files", fail)
    assert cli.main(["score", "p.jsonl", "--questions", "q.jsonl"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert str(error) in printed.err


def test_a_run_that_is_interrupted_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(request):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "reproduce", interrupt)
    assert cli.main(["run"]) == 130
    assert "goes on from here" in capsys.readouterr().err


# --- what it hands over ---


def request_of(*words, monkeypatch) -> reproduce.Request:
    """The request that `kr1 run …` makes."""
    seen = []

    def remember(request):
        seen.append(request)
        return {"seconds": {"total": 1.0}}

    monkeypatch.setattr(reproduce, "reproduce", remember)
    assert cli.main(["run", *words]) == 0
    return seen[0]


def test_run_without_words_asks_for_the_defaults(monkeypatch):
    assert request_of(monkeypatch=monkeypatch) == reproduce.Request()


def test_run_hands_every_word_over(monkeypatch):
    words = (
        "--profile 7b --seed 7 --out o --data d --only 03 --force"
        " --num-processes 2 --accelerate-config a.yaml"
    )
    request = request_of(*words.split(), monkeypatch=monkeypatch)
    assert request == reproduce.Request(
        profile="7b",
        seed=7,
        out="o",
        data="d",
        only="03",
        force=True,
        num_processes=2,
        accelerate_config="a.yaml",
    )


def test_tilde_in_the_words_of_a_run_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    # A shell leaves it as it is behind "=".
    words = ["--out=~/o", "--data=~/d", "--accelerate-config=~/a.yaml"]
    request = request_of(*words, monkeypatch=monkeypatch)
    assert request.out == str(tmp_path / "o")
    assert request.data == str(tmp_path / "d")
    assert request.accelerate_config == str(tmp_path / "a.yaml")


def test_tilde_in_the_words_of_other_commands_is_the_home_folder(monkeypatch, tmp_path):
    from kr1_utils.bench import run as bench_run
    from kr1_utils.miniwiki import make

    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    monkeypatch.setattr(bench_run, "run", seen.append)
    words = ["--data=~/d", "--model=~/m", "--adapter=~/a", "--csv=~/t.csv"]
    assert cli.main(["bench", "agent", *words]) == 0
    given = vars(seen.pop())
    names = {"data": "d", "model": "m", "adapter": "a", "csv": "t.csv"}
    assert {key: str(given[key]) for key in names} == {
        key: str(tmp_path / name) for key, name in names.items()
    }
    monkeypatch.setattr(make, "write_world", seen.append)
    assert cli.main(["miniwiki", "--out=~/w"]) == 0
    assert seen == [tmp_path / "w"]


def test_a_setting_is_json_if_it_can_be_read_so_else_text(monkeypatch):
    given = ["max_steps=5", "use_lora=false", "model=a/b", "name=", "x=1=2", "y=[1]"]
    words = [f"--set={setting}" for setting in given]
    assert request_of(*words, monkeypatch=monkeypatch).overrides == {
        "max_steps": 5,
        "use_lora": False,
        "model": "a/b",
        "name": "",
        "x": "1=2",
        "y": [1],
    }


def test_the_summary_of_a_run_is_printed(monkeypatch, capsys):
    summary = {"em_before": 0.25, "em_after": 0.5, "seconds": {"total": 61.2}}
    monkeypatch.setattr(reproduce, "reproduce", lambda request: summary)
    cli.main(["run"])
    printed = capsys.readouterr().out
    assert "0.250" in printed and "0.500" in printed and "61 s" in printed


@pytest.mark.parametrize(
    "words, expected",
    [
        (["agent", "--questions", "6"], {"questions": 6, "profile": "tiny"}),
        (["retrieval", "--passages", "9"], {"passages": 9, "corpus": None}),
        (["training", "--json"], {"profile": "tiny", "json": True, "csv": None}),
        (["gpu", "--tokens", "512", "1024"], {"tokens": [512, 1024], "model": None}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bench_hands_its_words_over(words, expected, monkeypatch):
    from kr1_utils.bench import gpu
    from kr1_utils.bench import run as bench_run

    seen = []
    for module in (bench_run, gpu):
        monkeypatch.setattr(module, "run", seen.append)
    assert cli.main(["bench", *words]) == 0
    given = vars(seen[0])
    assert given["what"] == words[0]
    assert expected.items() <= given.items()


def test_figures_names_every_file_that_it_drew(monkeypatch, capsys):
    from kr1_utils import plots

    monkeypatch.setattr(plots, "draw_figures", lambda: ["a.png", "b.png"])
    assert cli.main(["figures"]) == 0
    assert capsys.readouterr().out.split() == ["a.png", "b.png"]


# --- browse, watch ---


@pytest.mark.parametrize("command", ["browse", "watch"])
def test_a_folder_that_is_not_there_is_refused_in_one_sentence(command, capsys):
    assert cli.main([command, "no/such/run", "--no-open"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("No folder no/such/run")
    assert len(said.splitlines()) == 1


def test_browse_names_the_line_that_it_cannot_read(tmp_path, capsys):
    file = tmp_path / "trajectories.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    assert cli.main(["browse", str(tmp_path), "--no-open"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{file}, line 1 is not a trajectory")
    assert not (tmp_path / "browse.html").exists()


def test_browse_writes_the_page_says_where_and_opens_it(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)
    run = str(REPO / "data" / "reference" / "tiny" / "seed42")
    assert cli.main(["browse", run, "--file", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert opened == [(tmp_path / "page.html").as_uri()]
    assert cli.main(["browse", run, "--file", "page.html", "--no-open"]) == 0
    assert len(opened) == 1


def test_watch_serves_until_it_is_interrupted(tmp_path, monkeypatch, capsys):
    from kr1_utils.watch import WatchServer

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchServer, "serve_forever", interrupt)
    assert cli.main(["watch", str(tmp_path), "--port", "0"]) == 130
    printed = capsys.readouterr()
    assert opened[0] in printed.out
    assert opened[0].startswith("http://127.0.0.1:")
    assert len(printed.err.strip().splitlines()) == 1
