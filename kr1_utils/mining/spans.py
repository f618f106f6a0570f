"""Owns how names, places and dates are written, and where they end in a text."""

import re
from dataclasses import dataclass

MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November"
    "|December"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Small words inside the name of a person, and of a place.
NAME_LINKS = _words(
    "of de da di do du dos das del della der den van von zu zum ter ten la le el al bin"
    " ibn bint y e och af av no"
)
PLACE_LINKS = _words(
    "of de da di do du dos das del della der den la le les el upon sur sous unter am an"
    " im bei ob nad y e"
)

# They begin a sentence or a heading, and are no part of the name before them.
_BEGINNINGS = _words(
    "He She It They His Her Its Their The This In On At After As When While During From"
    " Since Early Life Career Biography Background Family Personal Plot Cast Death"
    " Filmography Selected External References"
)
_ABBREVIATION = re.compile(
    r"(?:\w\.)+|(?:St|Ste|Mt|Ft|Dr|Mr|Mrs|Ms|Jr|Sr|Rev|Hon|Gen|Lt|Col|Capt|Sgt|Prof)\."
)
_SMALL_PREFIX = re.compile(r"(?:d['’]|l['’]|dell['’]|al-|el-|ad-|an-|as-|ar-|ash-|'s-)")
_WORD = re.compile(r"[^\s,;:()\[\]]+|[,;:()\[\]]")
_QUOTES = "\"'“”‘’"

# "William III, Duke of Bavaria", "John Petre, 8th Baron Petre".
_RANKS = (
    "Duke|Duchess|Count|Countess|Earl|King|Queen|Prince|Princess|Baron|Baroness"
    "|Marquess|Marquis|Margrave|Margravine|Landgrave|Viscount|Viscountess|Elector"
    "|Electress|Lord|Lady|Grand Duke|Grand Duchess|Archduke|Archduchess|Emperor"
    "|Holy Roman Emperor|Burgrave|Dauphin|Hereditary|Baronet|Count Palatine|Despot"
    "|Marchioness"
)
_RANK = re.compile(rf",? (?=(?:\d+(?:st|nd|rd|th) )?(?:{_RANKS})\b)")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)\s")


def clean(text: str) -> str:
    """A text without the stray blanks that some corpora have around punctuation."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ?\( ?", " (", text)
    text = re.sub(r" ([,.;)])", r"\1", text)
    text = re.sub(r"([^\W\d_])- (?!and |or )(?=[^\W\d_])", r"\1-", text)
    return re.sub(r"([dlDLO][’']) (?=[^\W\d_])", r"\1", text)


# --- dates ---


@dataclass(frozen=True)
class Date:
    """A day or a year, as a text has it."""

    text: str
    year: int
    # "" where only the year is known.
    month: str = ""
    day: str = ""

    @property
    def is_full(self) -> bool:
        """Whether the day is known."""
        return bool(self.day)

    def forms(self) -> list[str]:
        """Ways of writing it, as the text has it first."""
        if not self.is_full:
            return [str(self.year)]
        forms = [
            self.text,
            f"{self.day} {self.month} {self.year}",
            f"{self.month} {self.day}, {self.year}",
        ]
        return list(dict.fromkeys(forms))


DATE = re.compile(
    rf"(?<![\d/])(?:(?P<day>\d{{1,2}}) (?P<month>{MONTHS}),? (?P<year>\d{{3,4}})"
    rf"|(?P<month2>{MONTHS}) (?P<day2>\d{{1,2}}),? (?P<year2>\d{{3,4}})"
    rf"|(?P<year3>\d{{3,4}}))(?![\d/]|[–-]\d\d\b(?!\d))"
)


def to_date(match: re.Match) -> Date:
    """What a match of `DATE` says."""
    day = match["day"] or match["day2"] or ""
    month = match["month"] or match["month2"] or ""
    year = match["year"] or match["year2"] or match["year3"]
    return Date(match.group(), int(year), month, day)


# --- names and places ---


def name_at(text: str) -> str:
    """The name of a person with which a text begins, "" if there is none.

    A rank belongs to it: "William III, Duke of Bavaria".
    """
    end = _run_end(text, NAME_LINKS)
    if not end:
        return ""
    suffix = re.match(r",? (?:Jr|Sr)\.", text[end:])
    if suffix:
        end += suffix.end()
    rank = _RANK.match(text, end)
    while rank:
        start = rank.end()
        ordinal = _ORDINAL.match(text, start)
        if ordinal:
            start = ordinal.end()
        end = max(end, _run_end(text, NAME_LINKS, start))
        rank = _RANK.match(text, end)
    name = text[:end].strip(_QUOTES + " ")
    return "" if re.search(r"['’]s?$", name) else name


def main_part(name: str) -> str:
    """A name without the rank behind it."""
    return _RANK.split(name, maxsplit=1)[0] if "," in name else name


def place_at(text: str, subject: str = "") -> str:
    """The place with which a text begins, with what it lies in; "" if there is none.

    Args:
        subject: the surname of whom the text is about, which may follow the place.
    """
    end = _run_end(text, PLACE_LINKS)
    for _ in range(3):
        comma = re.match(r"(?: \([^()]*\))?, (?=\S)", text[end:]) if end else None
        if not comma:
            break
        start = end + comma.end()
        further = _run_end(text, PLACE_LINKS, start)
        if further <= start or text[start:further] == subject:
            break
        end = further
    return re.sub(r" \([^()]*\)", "", text[:end]).strip(_QUOTES + " ")


def _run_end(text: str, links: frozenset[str], start: int = 0) -> int:
    """Where the capitalised words end that begin at `start`; `start` if none do."""
    end = start
    for match in _WORD.finditer(text, start):
        word = match.group().strip(_QUOTES)
        if end > start and word.rstrip(".") in _BEGINNINGS:
            break
        if links is PLACE_LINKS and re.fullmatch(MONTHS, word):
            break
        if _is_capitalised(word):
            end = match.start() + len(match.group().rstrip(_QUOTES))
            if word.endswith(".") and not _ABBREVIATION.fullmatch(word):
                return end - 1
        elif word not in links or end == start:
            break
    return end


def _is_capitalised(word: str) -> bool:
    return _SMALL_PREFIX.sub("", word, count=1)[:1].isupper()
