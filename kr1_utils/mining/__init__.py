"""Owns mining: questions with evidence, made by rule out of a corpus."""

from kr1_utils.mining.facts import Fact, Facts, find_facts
from kr1_utils.mining.questions import make_questions
from kr1_utils.mining.without import NamedTitles
from kr1_utils.mining.write import Mined, mine, mine_questions

__all__ = [
    "Fact",
    "Facts",
    "Mined",
    "NamedTitles",
    "find_facts",
    "make_questions",
    "mine",
    "mine_questions",
]
