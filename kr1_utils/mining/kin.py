"""Owns who is related to whom: parents, spouses, brothers and sisters."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kr1_utils.mining.countries import ADJECTIVE
from kr1_utils.mining.lead import Lead
from kr1_utils.mining.names import key
from kr1_utils.mining.spans import name_at

_MALE = re.compile(
    r"\b(?:king|emperor|prince|duke|count|lord|archduke|infante|sir|baron|earl"
    r"|marquess|marquis|sultan|tsar|caliph|margrave|landgrave|elector|pharaoh|shah"
    r"|khan|pasha|bishop|actor|businessman|viscount|baronet)\b",
    re.IGNORECASE,
)
_FEMALE = re.compile(
    r"\b(?:queen|empress|princess|duchess|countess|lady|archduchess|infanta|actress"
    r"|mother|baroness|mrs|dame|tsarina|marchioness|margravine|landgravine|electress"
    r"|abbess|viscountess)\b",
    re.IGNORECASE,
)

# These between subject and "son of" tell of somebody else.
_OTHERS = (
    r"(?!\b(?:who|whose|whom|wife|husband|mother|father|brother|sister|nephew|niece"
    r"|cousin|uncle|aunt|widow|widower|married|adopted|foster|alleged|possibly|perhaps"
    r"|said|claimed|supposed|reputed|friend|successor|descendant|not|grand\w+)\b)"
)
_TO_KIN = rf"(?:{_OTHERS}[^.;()]){{0,110}}?"
_CHILD = re.compile(rf"{_TO_KIN}(?<![\w-])(?:son|daughter|child) (?:born )?(?:of|to) ")
_SIBLING = re.compile(rf"{_TO_KIN}(?<![\w-])(?:brother|sister) of ")
_HIS_SIBLING = re.compile(r"(?:His|Her) (?:\w+ )?(?:brother|sister) (?:is|was) ")
# "Queen consort of Spain" names no person.
_RULER = r"(?:King|Emperor|Tsar|Sultan|Grand|Prince|Duke|Archduke|Count|Elector)\b"
_TO_MARRIED = (
    r"(?:(?!\b(?:who|whose|whom|mother|father|brother|sister|son|daughter|child|of)\b)"
    r"[^.;()]){0,60}?"
)
_SPOUSE = re.compile(
    rf"(?:{_TO_MARRIED}(?:wife|husband|spouse|consort(?= of {_RULER})) of"
    r"|married to) "
)
_MARRIED = re.compile(r"(?:(?:is|was) )?(?:later )?married(?: to)? ")
_THEN_MARRIED = re.compile(
    r"(?:(?:On|In) [^.;]{3,25}?,? (?:he|she) married"
    r"|(?:His|Her) (?:wife|husband|spouse) (?:is|was)) "
)
_PROFESSION = (
    r"(?:(?!(?:the|a|an|his|her|their|its|one|two|both) )"
    rf"(?:{ADJECTIVE} |[a-z][\w-]+,? ))*"
)
_SECOND_PARENT = re.compile(
    r"(?: \([^()]*\))?,?(?: and| by)(?: of)?"
    r"(?P<whose> his| her)?(?:,? (?:first|second|third|fourth|late|only))?"
    r"(?: and (?:first|second|third|only))?(?P<word> wife| husband| consort)?,? "
)
_SEVERAL_SPOUSES = re.compile(
    r"\b(?:first|second|third|former|ex)[ -](?:wife|husband|marriage)|remarried"
    r"|married (?:twice|three|four|again|first|second)|firstly|secondly|divorce"
    r"|previously married|formerly married|widow of",
    re.IGNORECASE,
)
# They stand where a name should.
_NO_NAME = re.compile(r"(?:The.*|First Lady|Queen|King|Lady|Prime Minister|President)$")
_FEW = 3


@dataclass(frozen=True)
class Kin:
    """One relative, as the text calls them."""

    # father, mother, spouse or sibling.
    relation: str
    name: str


class Genders:
    """Who is called "he" and who "she", learned from the leads of a corpus."""

    def __init__(self, leads: Iterable[Lead]):
        self._by_title: dict[str, str] = {}
        counts: dict[str, Counter] = defaultdict(Counter)
        for lead in leads:
            gender = _pronoun(lead.predicate)
            if gender:
                self._by_title[lead.title] = gender
                counts[_first_name(lead.name)][gender] += 1
        self._by_first_name = {}
        for name, seen in counts.items():
            gender, most = seen.most_common(1)[0]
            if most >= _FEW and most >= 0.9 * seen.total():
                self._by_first_name[name] = gender

    def of_title(self, title: str) -> str:
        """ "m", "f", or "" where it is not known."""
        return self._by_title.get(title, "")

    def of_name(self, name: str, profession: str = "") -> str:
        """The gender that a rank, a profession or a first name tells."""
        told = f"{profession} {name}"
        is_male = bool(_MALE.search(told))
        is_female = bool(_FEMALE.search(told))
        if is_male != is_female:
            return "m" if is_male else "f"
        return self._by_first_name.get(_first_name(name), "")


def _first_name(name: str) -> str:
    return key(name).split(" ")[0]


def _pronoun(text: str) -> str:
    """The gender of most pronouns of a text."""
    he = len(re.findall(r"\b(?:[Hh]e|[Hh]is|[Hh]im)\b", text))
    she = len(re.findall(r"\b(?:[Ss]he|[Hh]er)\b", text))
    if max(he, she) < 1 or min(he, she) * 2 > max(he, she):
        return ""
    return "m" if he > she else "f"


def relatives(lead: Lead, genders: Genders) -> list[Kin]:
    """The relatives that a lead names."""
    found = _parents(lead, genders)
    spouse = _spouse(lead)
    if spouse:
        found.append(Kin("spouse", spouse))
    found += [Kin("sibling", name) for name in _siblings(lead)]
    return found


def _descriptions(lead: Lead) -> list[str]:
    """What the lead says that its subject is or was, one sentence each."""
    told = [lead.first_sentence]
    for statement in lead.statements:
        match = re.match(r"(?:is|was) ", statement)
        if match:
            told.append(statement[match.end() :])
    for sentence in lead.later_sentences:
        match = re.match(r"Born [^.;]*?, (?:he|she) (?:is|was) ", sentence)
        if match:
            told.append(sentence[match.end() :])
    return told


# --- parents ---


def _parents(lead: Lead, genders: Genders) -> list[Kin]:
    for description in _descriptions(lead):
        match = _CHILD.match(description)
        if match:
            return _two_parents(description[match.end() :], genders)
    return []


def _two_parents(text: str, genders: Genders) -> list[Kin]:
    """Father and mother of "… NAME and his wife NAME", where the text tells which."""
    profession, name = _named(text)
    if not name:
        return []
    first = genders.of_name(name, profession)
    rest = text[text.index(name) + len(name) :]
    match = _SECOND_PARENT.match(rest)
    if not match:
        return [Kin("father" if first == "m" else "mother", name)] if first else []
    other_profession, other = _named(rest[match.end() :])
    second = genders.of_name(other, other_profession) if other else ""
    whose = (match["whose"] or "").strip()
    word = (match["word"] or "").strip()
    if other and " " not in other and not word and "," in name:
        # "Earl of Strathmore and Kinghorne": is it one person or two?
        return []
    if word == "husband" or whose == "her":
        first_told = "f"
    elif word or whose == "his":
        first_told = "m"
    else:
        first_told = ""
    first = _agreed(first_told, first, _opposite(second))
    if not first:
        return []
    pair = [Kin("father" if first == "m" else "mother", name)]
    if other:
        pair.append(Kin("mother" if first == "m" else "father", other))
    return pair


def _opposite(gender: str) -> str:
    return {"m": "f", "f": "m"}.get(gender, "")


def _agreed(*genders: str) -> str:
    """The gender that all say who say one; "" where they differ or none does."""
    said = set(genders) - {""}
    return said.pop() if len(said) == 1 else ""


def _named(text: str) -> tuple[str, str]:
    """A profession and the name behind it, ("", "") if no name follows that ends."""
    match = re.match(_PROFESSION, text)
    name = name_at(text[match.end() :])
    rest = text[match.end() + len(name) :]
    ends = re.match(
        r"$|[.;)]|,(?! [A-Z]\w+ and [A-Z])| \(|,? (?:and|by|with|who|from|in|of|born|on"
        r"|at|as|whom|was|is|until)\b",
        rest,
    )
    if not ends or re.match(_NO_NAME, name):
        return "", ""
    return (match.group(), name) if name else ("", "")


# --- spouses, brothers and sisters ---


def _spouse(lead: Lead) -> str:
    """The one spouse that a lead names, "" if it speaks of several."""
    if _SEVERAL_SPOUSES.search(lead.text):
        return ""
    told = [(_SPOUSE, text) for text in _descriptions(lead)]
    told += [(_MARRIED, text) for text in lead.statements]
    told += [(_THEN_MARRIED, text) for text in lead.later_sentences]
    found = _names_behind(told)
    names = {key(name) for name in found}
    return found[0] if len(names) == 1 else ""


def _siblings(lead: Lead) -> list[str]:
    told = [(_SIBLING, text) for text in _descriptions(lead)]
    told += [(_HIS_SIBLING, text) for text in lead.later_sentences]
    # Of "Alexander and Zoltan Korda" the first has no surname.
    return [name for name in _names_behind(told) if " " in name]


def _names_behind(told: list[tuple[re.Pattern, str]]) -> list[str]:
    """The names that stand behind a pattern at the start of a text."""
    found = []
    for pattern, text in told:
        match = pattern.match(text)
        name = _named(text[match.end() :])[1] if match else ""
        if name:
            found.append(name)
    return found
