"""Owns titles: what questions call them, and the one title that a name fits."""

import re
import unicodedata
from collections.abc import Iterable

from kr1_utils.mining.spans import main_part

_HONORIFIC = re.compile(
    r"(?:(?:the|Grand|Holy|Roman|Sir|Dame|King|Queen|Emperor|Empress|Tsar|Sultan|Saint"
    r"|St\.|Pope|President|Dr\.|General|Lord|Lady|Prince|Princess|Count|Countess|Duke"
    r"|Duchess|Archduke|Archduchess|Infante|Infanta|Margrave|Landgrave|Elector) )+"
)


def bare(title: str) -> str:
    """A title without the bracket that tells it from others."""
    return re.sub(r"\s*\([^()]*\)$", "", title)


def key(name: str) -> str:
    """What is left of a name without accents, capitals and punctuation."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", letters))


def as_asked(title: str) -> str:
    """A title as 2WikiMultihopQA's questions write it: "Love'S Labour (Film)"."""
    return title.title()


class Titles:
    """The titles of a corpus, to be found by a name.

    Args:
        titles: each may come several times.
    """

    def __init__(self, titles: Iterable[str]):
        self._titles: dict[str, set[str]] = {}
        for title in titles:
            for name in {key(title), key(bare(title))}:
                self._titles.setdefault(name, set()).add(title)

    def only(self, name: str) -> str | None:
        """The title that a name fits, without brackets; None if there are more."""
        fitting = self._titles.get(key(name), ())
        return next(iter(fitting)) if len(fitting) == 1 else None

    def find(self, name: str) -> str | None:
        """The title that a name fits, also without its honorifics or its rank."""
        without_honorific = _HONORIFIC.sub("", name, count=1)
        shorter = main_part(without_honorific)
        candidates = [name, without_honorific]
        # "William III" alone may be anyone.
        if len(shorter.split()) > 1 and not re.search(r" [IVX]+$", shorter):
            candidates.append(shorter)
        for candidate in candidates:
            title = self.only(candidate) if candidate else None
            if title:
                return title
            if self._titles.get(key(candidate)):
                # Several fit.
                return None
        return None
