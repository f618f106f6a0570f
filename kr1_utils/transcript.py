"""Owns a conversation as text: what was thought, searched, found and answered."""

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from kr1_utils.agent import Trajectory

# Why a conversation ended without an answer, by its `stop`.
WITHOUT_ANSWER = {
    "no_answer": "the last turn brought none",
    "truncated": "the last turn ran into max_turn_tokens",
    "prompt_too_long": "the conversation might not fit the model's window",
}

# Width of the names before the lines.
INDENT = 10

# What a terminal shows a line in (ECMA-48, "select graphic rendition").
COLORS = {
    "question": "1",
    "thought": "2",
    "search": "34",
    "found": "33",
    "wrote": "2",
    "answer": "1;32",
    "no answer": "1",
}


class Step(NamedTuple):
    """One thing that happened: its kind, a key of `COLORS`, and what was said."""

    kind: str
    text: str


def steps_of_turn(trajectory: Trajectory, number: int) -> Iterator[Step]:
    """What happened in one turn.

    Args:
        number: of the turn, from 0.
    """
    turn = trajectory.turns[number]
    if turn.kind == "neither":
        yield Step("wrote", trajectory.texts[number])
        return
    if turn.thought:
        yield Step("thought", turn.thought)
    yield Step(turn.kind, turn.content)
    if turn.kind == "search":
        yield from _found(trajectory, number)


def _found(trajectory: Trajectory, number: int) -> Iterator[Step]:
    """The titles that the search of a turn brought. A query in the answer turn is not
    searched."""
    kinds = [turn.kind for turn in trajectory.turns[:number]]
    searches_before = kinds.count("search")
    if searches_before < len(trajectory.passages):
        passages = trajectory.passages[searches_before]
        titles = [passage["title"] for passage in passages]
        for title in titles or ["nothing"]:
            yield Step("found", title)


def steps(trajectory: Trajectory) -> Iterator[Step]:
    """What happened in a whole conversation, and why it has no answer if it has
    none."""
    for number in range(len(trajectory.turns)):
        yield from steps_of_turn(trajectory, number)
    yield from steps_of_end(trajectory)


def steps_of_end(trajectory: Trajectory) -> Iterator[Step]:
    """Why a conversation that is over has no answer."""
    if trajectory.stop in WITHOUT_ANSWER:
        yield Step("no answer", WITHOUT_ANSWER[trajectory.stop])


def line(step: Step, colored: bool = False, width: int = 0) -> str:
    """One step as a line of text.

    What comes from a model or a corpus moves no cursor and changes no colour: blanks of
    any kind become one, other characters that print nothing a question mark.

    Args:
        colored: for a terminal.
        width: columns after which it goes on below, indented; 0 is never.
    """
    printable = "".join(
        character if character.isprintable() else "?"
        for character in " ".join(step.text.split())
    )
    text = f"{step.kind:{INDENT}}{printable}".rstrip()
    if width > 2 * INDENT:
        text = textwrap.fill(text, width, subsequent_indent=" " * INDENT)
    return f"\033[{COLORS[step.kind]}m{text}\033[0m" if colored else text


def transcript(trajectory: Trajectory) -> str:
    """A whole conversation as plain text, with the question before it."""
    question = Step("question", trajectory.question["question"])
    return "\n".join(line(step) for step in (question, *steps(trajectory)))
