"""Owns asking on a terminal: replies as they come, a prompt, questions from a pipe."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from kr1_utils.agent import Trajectory
from kr1_utils.ask import Agent, open_agent
from kr1_utils.extras import missing
from kr1_utils.transcript import Step, line, steps_of_end, steps_of_turn

try:
    from transformers.utils.logging import disable_progress_bar
except ImportError:
    disable_progress_bar = missing("train")

PROMPT = "kr1> "
# Of the prompt, in the home folder.
HISTORY = "~/.kr1_history"
# Questions that it keeps.
HISTORY_LENGTH = 1000

# Prints what an agent replies to a question.
Answer = Callable[[Agent, str], None]


def run(arguments) -> None:
    """Answer the question of `kr1 ask`; without one, those that are typed or piped.

    Raises:
        ValueError: for a blank question or an empty pipe, and as `open_agent` does.
        OSError: as `open_agent` does.
    """
    question = " ".join(arguments.question)
    if arguments.question and not question.strip():
        raise ValueError("The question is blank: ask something.")
    agent = _open(arguments)
    answer = print_record if arguments.json else print_reply
    if question:
        answer(agent, question)
    elif sys.stdin.isatty():
        converse(agent, answer)
    else:
        answer_all(agent, sys.stdin, print_record if arguments.json else _print_both)


def _open(arguments) -> Agent:
    """The agent that was asked for. What libraries print meanwhile is no answer."""
    with contextlib.redirect_stdout(sys.stderr):
        disable_progress_bar()
        agent = open_agent(
            profile=arguments.profile,
            run=arguments.run,
            model=arguments.model,
            adapter=arguments.adapter,
            data=arguments.data,
            index=arguments.index,
            retriever=arguments.retriever,
        )
        print(agent.about, flush=True)
    return agent


# --- one question ---


def print_record(agent: Agent, question: str) -> None:
    """Print a reply as one line of JSON."""
    print(json.dumps(agent.ask(question).to_record()), flush=True)


def print_reply(agent: Agent, question: str) -> None:
    """Print each turn of a reply as soon as it is over."""
    screen = Screen(sys.stdout)
    screen.show(agent.ask(question, screen.show).trajectory)


def _print_both(agent: Agent, question: str) -> None:
    """Print a question and its reply, for a reader who did not type it."""
    Screen(sys.stdout).print([Step("question", question)])
    print_reply(agent, question)
    print(flush=True)


class Screen:
    """Shows one conversation, turn by turn.

    On a terminal it is folded to the terminal's width, and in colour unless NO_COLOR is
    set (https://no-color.org); elsewhere it is plain.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        on_terminal = stream.isatty()
        self.colored = on_terminal and not os.environ.get("NO_COLOR")
        self.width = shutil.get_terminal_size().columns if on_terminal else 0
        self.turns_shown = 0

    def show(self, trajectory: Trajectory) -> None:
        """Print the turns that came since the last call, and the end if it is over."""
        for number in range(self.turns_shown, len(trajectory.turns)):
            self.print(steps_of_turn(trajectory, number))
        self.turns_shown = len(trajectory.turns)
        self.print(steps_of_end(trajectory))

    def print(self, steps: Iterable[Step]) -> None:
        """Print what happened, a line for each step."""
        for step in steps:
            text = line(step, self.colored, self.width)
            print(text, file=self.stream, flush=True)


# --- many questions ---


def answer_all(agent: Agent, questions: Iterable[str], answer: Answer) -> None:
    """Answer each line as soon as it comes; blank ones are skipped.

    Raises:
        ValueError: if none came.
    """
    asked = 0
    for question in questions:
        if question.strip():
            answer(agent, question.strip())
            asked += 1
    if not asked:
        raise ValueError("No question came: the input is empty.")


def converse(agent: Agent, answer: Answer) -> None:
    """A prompt with a history, until Ctrl-D closes it. Ctrl-C ends a reply."""
    with _history():
        while True:
            try:
                question = _read_question()
            except EOFError:
                print(file=sys.stderr)
                return
            if not question.strip():
                continue
            try:
                answer(agent, question.strip())
            except KeyboardInterrupt:
                print("\nStopped; Ctrl-D closes the prompt.", file=sys.stderr)
            except (RuntimeError, OSError) as error:
                # Such as a search engine that does not reply: the next question may
                # find it there again.
                print(error, file=sys.stderr)


def _read_question() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    # `input` would write its prompt among the replies.
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Within it, the arrow keys bring earlier questions back, also of other days."""
    try:
        import readline
    except ImportError:
        # Python was built without it.
        yield
        return
    file = Path(HISTORY).expanduser()
    readline.set_history_length(HISTORY_LENGTH)
    # There may be none yet, or no place for one.
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(file)
