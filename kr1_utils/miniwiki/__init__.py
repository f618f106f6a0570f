"""Owns miniwiki: a fictional world, its passages, and questions about it."""

from kr1_utils.miniwiki.known import FACTS as KNOWN
from kr1_utils.miniwiki.questions import (
    ASK,
    KIN,
    NO_ANSWER,
    make_questions,
)
from kr1_utils.miniwiki.world import (
    ADJECTIVES,
    CITIES,
    COUNTRIES,
    CURRENCIES,
    MEN,
    MONTHS,
    NOUNS,
    SENTENCES,
    SHIPPED_SEED,
    SURNAMES,
    TRADES,
    WOMEN,
    World,
    base_name,
    make_world,
    year,
)

__all__ = [
    "ADJECTIVES",
    "ASK",
    "CITIES",
    "COUNTRIES",
    "CURRENCIES",
    "KIN",
    "KNOWN",
    "MEN",
    "MONTHS",
    "NOUNS",
    "NO_ANSWER",
    "SENTENCES",
    "SHIPPED_SEED",
    "SURNAMES",
    "TRADES",
    "WOMEN",
    "World",
    "base_name",
    "make_questions",
    "make_world",
    "year",
]
