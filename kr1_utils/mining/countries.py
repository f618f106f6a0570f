"""Owns countries: what their people are called, and which are hard to tell apart."""

import json
import re
from pathlib import Path

_DATA = json.loads(Path(__file__).with_name("countries.json").read_text("utf-8"))


def _split(text: str) -> list[str]:
    return text.split("|")


# Adjective -> country.
COUNTRY_OF: dict[str, str] = {
    adjective: country
    for country, adjectives, *_ in _DATA["countries"]
    for adjective in _split(adjectives)
}

# Country -> other names for it.
ALSO: dict[str, list[str]] = {
    country: _split(more[0]) if more else [] for country, _, *more in _DATA["countries"]
}

# A state or province -> its country.
_PART_OF: dict[str, str] = {
    part: country for country, parts in _DATA["parts"].items() for part in _split(parts)
}


def _any_of(words) -> str:
    longest_first = sorted(words, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first))


ADJECTIVE = rf"(?:{_any_of(COUNTRY_OF)})"
# "American football" and "Greek Orthodox" say nothing of the country, nor does
# "English-language"; "Swiss-born" and "Anglo-Irish" say too much.
_NO_ADJECTIVE = re.compile(
    r"(?:American|Canadian|Australian|Gaelic|Irish) (?:rules )?football"
    r"|Australian rules|(?:Greek|Russian) Orthodox|Native American|American Indian"
    r"|Indian classical|French horn|(?:English|French|German|Spanish) language"
)
_ADJECTIVE = re.compile(rf"(?<![\w-]){ADJECTIVE}(?![\w-])")
_HYPHENATED = re.compile(rf"{ADJECTIVE}-(?!language)|(?<!African)-{ADJECTIVE}\b")
_COUNTRY = re.compile(rf"\b(?:{_any_of([*ALSO, *_PART_OF])})\b")


def adjective_in(phrase: str) -> str:
    """The one adjective of a country in a phrase; "" if there is none, or several."""
    phrase = _NO_ADJECTIVE.sub("", phrase).replace("African-American", "American")
    found = set(_ADJECTIVE.findall(phrase))
    if len(found) != 1 or _HYPHENATED.search(phrase):
        return ""
    return found.pop()


def country_in(sentence: str) -> str:
    """The one country in which a sentence lies; "" if it names none, or several."""
    found = set()
    for name in _COUNTRY.findall(sentence):
        found.add(_PART_OF.get(name, name))
    return found.pop() if len(found) == 1 else ""


def are_near(a: str, b: str) -> bool:
    """Whether it may be argued if two countries are the same, as of Russia and the
    Soviet Union."""
    return any(a in group and b in group for group in _DATA["near"])
