"""Owns the beginning of a passage: whom or what it is about, and what it says of it.

Wikipedia's first sentences have one form: a name, a bracket with dates, "is" or "was",
and what the thing is. Everything else about a passage builds on that.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from kr1_utils.mining.names import bare, key
from kr1_utils.mining.spans import DATE, NAME_LINKS, clean

# Characters within which the first verb must come.
_LONGEST_OPENING = 400
# A list of what bears one name.
_LIST = re.compile(r"\b(?:may|can) (?:also )?refer to\b|\brefers to\b")
_VERB = re.compile(r"[ ,](?:is|was|are|were) ")


@dataclass(frozen=True)
class Lead:
    """A passage that begins with its subject."""

    title: str
    passage_id: str
    # The whole text, without stray blanks and without its title before it.
    text: str
    # As the text calls its subject: "Herbert Jansch" for "Bert Jansch".
    name: str
    # The bracket with dates behind the name, "" if there is none.
    bracket: str
    # Behind the first "is" or "was".
    predicate: str

    @cached_property
    def first_sentence(self) -> str:
        """The predicate up to the end of its sentence."""
        return sentences(self.predicate)[0]

    @cached_property
    def later_sentences(self) -> list[str]:
        """The sentences after the first one."""
        return sentences(self.predicate)[1:]

    @cached_property
    def statements(self) -> list[str]:
        """What later sentences say of the subject: "was born in Rome."."""
        return [said for s in self.later_sentences if (said := self._behind_subject(s))]

    @property
    def surname(self) -> str:
        """The last word of the title, by which a text may call its subject."""
        words = bare(self.title).split(",")[0].split()
        return words[-1] if words else ""

    def _behind_subject(self, sentence: str) -> str:
        """A sentence behind "He", "Jansch" or "Bert Jansch", "" if it begins with none
        of them."""
        for name in ("He", "She", self.name, bare(self.title)):
            if sentence.startswith(f"{name} "):
                return sentence[len(name) + 1 :]
        words = sentence.split()
        for place, word in enumerate(words[:4]):
            if not word[0].isupper():
                break
            if word == self.surname or (place == 0 and word == self.name.split()[0]):
                return " ".join(words[place + 1 :])
        return ""


def sentences(text: str) -> list[str]:
    """The sentences of a text; it is not cut after initials and abbreviations."""
    after = r"(?:(?<=\w\w[.])|(?<=[\d)\"”][.]))"
    not_after = r"(?<!\bSt\.)(?<!\bHon\.)(?<![JS]r\.)(?<![DM]r\.)"
    return re.split(after + not_after + r" (?=[A-Z\"])", text)


def lead(passage: dict) -> Lead | None:
    """The lead of a passage, None where it does not begin with its subject.

    Args:
        passage: `{"id", "title", "text"}`.
    """
    title = passage["title"]
    text = _without_title(clean(title), clean(passage["text"]))
    opening, bracket = _opening(text)
    verb = _VERB.search(opening)
    if not verb or _LIST.search(opening):
        return None
    name = re.split(r"[,;]| also known| better known", opening[: verb.start()])[0]
    name = name.strip(" \"'“”")
    if not _share_a_word(name, bare(title)):
        return None
    # Brackets were blanked out, so places in the opening are those of the text.
    predicate = text[verb.end() :]
    return Lead(title, passage["id"], text, name, bracket, predicate)


def _without_title(title: str, text: str) -> str:
    """Some corpora put the title before the text: "Motoring (film) Motoring is …"."""
    if not text.startswith(title):
        return text
    rest = text[len(title) :].lstrip()
    if rest[:1].isupper() and _share_a_word(" ".join(rest.split()[:6]), title):
        return rest
    return text


def _share_a_word(a: str, b: str) -> bool:
    small = {*NAME_LINKS, "the", "a", "an", "and", "in"}
    words = set(key(a).split()) - small
    return bool(words & set(key(b).split()))


def _opening(text: str) -> tuple[str, str]:
    """The text before its first verb, its brackets blanked out, and the bracket among
    them that has dates."""
    start = text[:_LONGEST_OPENING]
    brackets: list[str] = []
    blanked = list(start)
    depth = 0
    for place, letter in enumerate(start):
        if letter == "(":
            depth += 1
            if depth == 1:
                brackets.append("")
                first = len(brackets) - 1
        if depth:
            brackets[first] += letter
            blanked[place] = " "
        if letter == ")" and depth:
            depth -= 1
        if not depth and _VERB.search("".join(blanked[max(0, place - 6) : place + 1])):
            break
    opening = "".join(blanked[: place + 1]) if start else ""
    dated = [bracket[1:-1] for bracket in brackets if DATE.search(bracket)]
    return opening, dated[0] if dated else ""
