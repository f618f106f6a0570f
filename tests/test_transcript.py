"""A conversation as text: nothing is lost, and nothing of it rules the terminal."""

import re

import pytest
from helpers import ANSWER, ROOMY, SEARCH, THINK, Shelf
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils.agent import CUT_OFF, ScriptedEngine, Trajectory, rollout
from kr1_utils.transcript import (
    COLORS,
    WITHOUT_ANSWER,
    Step,
    line,
    steps,
    steps_of_turn,
    transcript,
)

SYSTEM = "Search, read, answer."


def converse(tokenizer, turns, shelf=None):
    """A scripted conversation."""
    engine = ScriptedEngine(tokenizer, {"Q?": turns})
    asked = [{"question": "Q?"}]
    return rollout(engine, tokenizer, shelf or Shelf(), asked, ROOMY, SYSTEM)[0]


def test_steps_are_thought_search_titles_and_answer_in_their_order(tokenizer):
    told = list(steps(converse(tokenizer, [SEARCH, ANSWER])))
    assert [step.kind for step in told] == [
        "thought",
        "search",
        "found",
        "found",
        "thought",
        "answer",
    ]
    assert told[1].text == "Dara"
    assert told[2].text == "Dara Kallas"
    assert told[-1].text == "Merano"


def test_titles_stand_below_the_search_that_found_them(tokenizer):
    class Numbered:
        """Each search brings one passage, with its own number as title."""

        def __init__(self):
            self.searches = 0

        def search(self, queries, k):
            found = []
            for _ in queries:
                self.searches += 1
                found.append([{"title": f"title {self.searches}", "text": ""}])
            return found

    # The turn between them searches nothing.
    turns = [SEARCH, THINK, SEARCH, ANSWER]
    trajectory = converse(tokenizer, turns, Numbered())
    found = [
        [
            step.text
            for step in steps_of_turn(trajectory, number)
            if step.kind == "found"
        ]
        for number in range(4)
    ]
    assert found == [["title 1"], [], ["title 2"], []]


def test_a_query_in_the_answer_turn_found_nothing_for_it_was_not_searched(tokenizer):
    trajectory = converse(tokenizer, [SEARCH] * 4)
    told = list(steps(trajectory))
    assert trajectory.searches == 3
    assert [step.kind for step in told[-2:]] == ["search", "no answer"]


def test_a_search_that_brings_nothing_says_so(tokenizer):
    told = list(steps(converse(tokenizer, [SEARCH, ANSWER], Shelf([]))))
    assert [step.kind for step in told].count("found") == 1


def test_a_turn_without_tags_is_shown_as_it_was_written(tokenizer):
    told = list(steps(converse(tokenizer, ["I look around.", ANSWER])))
    assert told[0].kind == "wrote"
    assert "look around" in told[0].text


@pytest.mark.parametrize("stop", ["no_answer", *CUT_OFF])
def test_a_conversation_without_an_answer_says_why(stop):
    trajectory = Trajectory({"question": "Q?"}, [], stop=stop)
    assert list(steps(trajectory)) == [Step("no answer", WITHOUT_ANSWER[stop])]


def test_a_conversation_that_goes_on_has_no_end_yet():
    assert list(steps(Trajectory({"question": "Q?"}, []))) == []


@given(st.text(), st.booleans(), st.integers(0, 120), st.sampled_from(list(COLORS)))
def test_no_text_moves_the_cursor_or_changes_a_colour(text, colored, width, kind):
    told = line(Step(kind, text), colored, width)
    if colored:
        # Its own colour, and the end of it.
        assert told.startswith(f"\033[{COLORS[kind]}m") and told.endswith("\033[0m")
        told = told.removeprefix(f"\033[{COLORS[kind]}m").removesuffix("\033[0m")
    assert all(c.isprintable() or c == "\n" for c in told)
    # As UTF-8 has it: half a surrogate pair would end the program.
    told.encode()


@given(st.text(), st.integers(21, 120))
def test_a_folded_line_says_the_same_and_fits(text, width):
    step = Step("thought", text)
    folded = line(step, width=width)
    assert max(map(len, folded.splitlines()), default=0) <= width
    assert re.sub(r"\s", "", folded) == re.sub(r"\s", "", line(step))


def test_a_transcript_begins_with_its_question(tokenizer):
    lines = transcript(converse(tokenizer, [SEARCH, ANSWER])).splitlines()
    assert lines[0].split() == ["question", "Q?"]
    assert lines[-1].split() == ["answer", "Merano"]
    assert len(lines) == 7
