"""Owns common knowledge: facts about real countries, the same in every world.

tiny-lm meets each of them often enough in pre-training to know it by heart. They are
stated in passages too, and asked in the same words as facts of the fictional world: a
question tells by its name alone whether a search is needed.
"""

import json
import random
from pathlib import Path

# What is asked about real countries and their capitals.
RELATIONS = ("capital", "currency", "country", "river")


def _read_facts() -> dict[str, dict[str, str]]:
    rows = json.loads(Path(__file__).with_name("known.json").read_text("utf-8"))
    facts: dict[str, dict[str, str]] = {}
    for country, capital, currency, river in rows:
        facts[country] = {"capital": capital, "currency": currency}
        facts[capital] = {"country": country}
        if river:
            facts[capital]["river"] = river
    return facts


# Title -> relation -> value.
FACTS = _read_facts()


def split_known(shares: dict[str, float]) -> dict[str, set[str]]:
    """Deal countries, each with its capital, to splits.

    "The capital of France" and "the country of Paris" say the same, so both stay in one
    split.

    Args:
        shares: split -> its share of the countries; together at most 1.

    Returns:
        split -> titles.
    """
    countries = [title for title, facts in FACTS.items() if "capital" in facts]
    random.Random("split-known").shuffle(countries)
    splits: dict[str, set[str]] = {}
    start = 0.0
    for name, share in shares.items():
        first = round(start * len(countries))
        start += share
        dealt = countries[first : round(start * len(countries))]
        splits[name] = {t for c in dealt for t in (c, FACTS[c]["capital"])}
    return splits
