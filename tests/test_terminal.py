"""`kr1 ask` answers on a terminal, in a pipe and at its prompt."""

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from helpers import ANSWER, ROOMY, SEARCH, Shelf, kr1

from kr1_utils import ask, cli, terminal
from kr1_utils.agent import ScriptedEngine

SYSTEM = "Search, read, answer."
QUESTION = "Who directed The Lonely Voyage?"


@pytest.fixture
def agent(tokenizer):
    """Knows two questions by heart."""
    scripts = {"Where?": [SEARCH, ANSWER], "Who?": [ANSWER]}
    engine = ScriptedEngine(tokenizer, scripts)
    return ask.Agent(engine, tokenizer, Shelf(), ROOMY, SYSTEM, about="the two")


@pytest.fixture
def opened(monkeypatch, agent):
    """What `kr1 ask` opened: its words, one dict each time; it gets the agent."""
    calls = []

    def open_agent(**words):
        # As libraries do.
        print("Loading …")
        calls.append(words)
        return agent

    monkeypatch.setattr(terminal, "open_agent", open_agent)
    return calls


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def kinds(printed):
    return [line.split()[0] for line in printed.splitlines() if line]


# --- one question ---


def test_a_question_is_answered_step_by_step(opened, capsys):
    assert cli.main(["ask", "Where?"]) == 0
    printed = capsys.readouterr()
    wanted = ["thought", "search", "found", "found", "thought", "answer"]
    assert kinds(printed.out) == wanted
    assert "Loading" not in printed.out
    assert "the two" in printed.err


def test_words_of_a_question_need_no_quotes(opened, agent, capsys):
    agent.engine.scripts["Where is it?"] = agent.engine.scripts["Where?"]
    assert cli.main(["ask", "Where", "is", "it?"]) == 0
    assert "Merano" in capsys.readouterr().out


def test_json_is_the_record_of_the_conversation_and_nothing_else(opened, agent, capsys):
    assert cli.main(["ask", "Where?", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(agent.ask("Where?").to_record()))


def test_a_turn_is_shown_before_the_next_one_is_written(opened, agent, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    seen = []
    generate = agent.engine.generate

    def look_and_generate(*arguments):
        seen.append(kinds(shown.getvalue()))
        return generate(*arguments)

    monkeypatch.setattr(agent.engine, "generate", look_and_generate)
    terminal.print_reply(agent, "Where?")
    assert seen == [[], ["thought", "search", "found", "found"]]


def test_every_word_is_handed_over(opened):
    given = {
        "profile": "p",
        "run": "r",
        "model": "m",
        "adapter": "a",
        "data": "d",
        "index": "i",
        "retriever": "",
    }
    words = [f"--{name}={value}" for name, value in given.items()]
    assert cli.main(["ask", "Where?", *words]) == 0
    assert cli.main(["ask", "Where?"]) == 0
    assert opened == [given, dict.fromkeys(given, "")]


# --- colours ---


@pytest.mark.parametrize(
    "stream, no_color, colored",
    [
        (Terminal, None, True),
        (Terminal, "", True),
        (Terminal, "1", False),
        (io.StringIO, None, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    agent, monkeypatch, stream, no_color, colored
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    shown = stream()
    terminal.Screen(shown).show(agent.ask("Where?").trajectory)
    assert ("\033[" in shown.getvalue()) == colored


def test_a_terminal_is_not_overrun(agent, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = Terminal()
    screen = terminal.Screen(shown)
    screen.print([terminal.Step("thought", "word " * 40)])
    assert max(map(len, shown.getvalue().splitlines())) <= 30
    assert shown.getvalue().count("word") == 40


# --- questions from a pipe ---


def test_each_line_of_a_pipe_is_a_question(opened, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where?\n\n  Who?  \n"))
    assert cli.main(["ask", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["Where?", "Who?"]


def test_replies_to_a_pipe_stand_below_their_questions(opened, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\nWho?"))
    assert cli.main(["ask"]) == 0
    wanted = ["question", "thought", "answer"]
    assert kinds(capsys.readouterr().out) == wanted * 2


@pytest.mark.parametrize("words", [[""], [" ", ""]])
def test_a_blank_question_is_refused_before_anything_is_loaded(opened, words, capsys):
    assert cli.main(["ask", *words]) == 2
    assert not opened
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_empty_pipe_is_refused(opened, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["ask"]) == 2
    assert "No question" in capsys.readouterr().err


# --- the prompt ---


def typed(monkeypatch, *lines):
    """What `input` gives, in turn; then Ctrl-D. An exception is raised."""
    waiting = [*lines, EOFError()]

    def read(prompt=""):
        line = waiting.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(terminal, "HISTORY", os.devnull)
    return waiting


def test_the_prompt_answers_until_it_is_closed(agent, monkeypatch):
    waiting = typed(monkeypatch, "Where?", " ", "Who?")
    asked = []
    terminal.converse(agent, lambda _, question: asked.append(question))
    assert asked == ["Where?", "Who?"]
    assert not waiting


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError("gone"), RuntimeError()]
)
def test_the_prompt_outlives_a_reply_that_fails_or_is_stopped(
    agent, monkeypatch, error, capsys
):
    waiting = typed(monkeypatch, "Where?", "Who?")
    asked = []

    def fail_once(_, question):
        asked.append(question)
        if len(asked) == 1:
            raise error

    terminal.converse(agent, fail_once)
    assert asked == ["Where?", "Who?"]
    assert not waiting
    assert str(error) in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_ends_it(agent, monkeypatch):
    typed(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        terminal.converse(agent, lambda *_: None)


def test_the_prompt_is_no_part_of_replies_that_go_elsewhere(agent, monkeypatch, capsys):
    typed(monkeypatch)
    terminal.converse(agent, lambda *_: None)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert terminal.PROMPT in printed.err


def read_until(screen, pattern, seconds=120):
    """What a terminal shows up to a pattern."""
    shown = ""
    end = time.monotonic() + seconds
    while not re.search(pattern, shown):
        ready, _, _ = select.select([screen], [], [], max(0, end - time.monotonic()))
        assert ready, f"{pattern!r} did not come: {shown[-2000:]!r}"
        with contextlib.suppress(OSError):
            shown += os.read(screen, 65536).decode()
    return shown


def test_on_a_terminal_the_arrow_brings_the_last_question_back(tmp_path):
    screen, own = pty.openpty()
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "kr1_utils", "ask"],
        env=environment,
        stdin=own,
        stdout=own,
        stderr=own,
        start_new_session=True,
    )
    try:
        read_until(screen, re.escape(terminal.PROMPT))
        os.write(screen, f"{QUESTION}\n".encode())
        first = read_until(screen, rf"\x1b\[0m\s+.*{re.escape(terminal.PROMPT)}")
        assert "search" in first
        up = b"\x1b[A"
        os.write(screen, up + b"\n")
        again = read_until(screen, rf"\x1b\[0m\s+.*{re.escape(terminal.PROMPT)}")
        assert QUESTION in again
        os.write(screen, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(screen)
        os.close(own)
    assert (tmp_path / ".kr1_history").read_text().count(QUESTION) >= 1


# --- as a reader starts it ---


def test_far_from_the_repository_the_shipped_agent_answers(tmp_path):
    done = kr1("ask", QUESTION, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = kinds(done.stdout)
    assert "search" in said and "found" in said
    assert said[-1] in ("answer", "no")
    assert "\033" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_bad_input_ends_in_one_sentence(tmp_path):
    done = kr1("ask", QUESTION, "--data", "no/such/data", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no/such/data" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
