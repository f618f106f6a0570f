"""Owns the facts about persons: dates and places of birth and death, nationality."""

import re

from kr1_utils.mining.countries import adjective_in
from kr1_utils.mining.lead import Lead
from kr1_utils.mining.spans import DATE, MONTHS, Date, place_at, to_date

_UNCERTAIN = re.compile(
    r"\b(?:c|ca|fl|r|bap|aft|bef|abt)\."
    r"|\b(?:circa|about|around|before|after|between|or|floruit|flourished|bapti[sz]ed"
    r"|disappeared|unknown|possibly|probably|early|late|century|traditionally"
    r"|approximately|likely)\b|[/?†~]",
    re.IGNORECASE,
)
_OTHER_DATES = re.compile(r"\b(?:reign\w*|ruled|BC|BCE|B\.C\.|AH|active|term)\b", re.I)
_BETWEEN_DATES = re.compile(r"\s*[–—]\s*|\s+-\s*|(?<=\d)-\s*(?=[A-Z\d])")
_LONGEST_LIFE = 112

_DAY = rf"(?:\d{{1,2}} (?:{MONTHS}),? \d{{4}}|(?:{MONTHS}) \d{{1,2}},? \d{{4}})"
_WHEN = rf"(?:,? (?:on |in )?(?:{_DAY}|(?:{MONTHS}) \d{{4}}|\d{{4}}),?)?"
_HOW = r"(?: suddenly| peacefully)?(?: (?:of|from) [^.,;]{3,40}?)?"
_AGE = r"(?:,? (?:at (?:the )?age (?:of )?|at |aged? )\d+,?)?"
_IN = r"(?: and raised)?,? (?:in|at) (?:the (?:city|town|village|parish|district) of )?"
_BORN = re.compile(rf"was (?:also )?born{_WHEN}{_IN}")
_BORN_FIRST = re.compile(rf"Born{_WHEN}{_IN}")
_BORN_AND_DIED = re.compile(rf"was (?:both )?born and died{_IN}")
_DIED = re.compile(rf"(?:later |also )?died{_HOW}{_WHEN}{_AGE}{_WHEN}{_IN}")
_THEN_DIED = re.compile(rf"was born\b[^.;]*? and (?:he |she )?died{_WHEN}{_IN}")
_NO_PLACE = re.compile(
    r"World|Battle|Hospital|House|Home|University|Prison|Auschwitz|Clinic|Medical"
    r"|Infirmary|Airport|Cathedral|Abbey|Palace|Castle|American|British|French|German"
)

_STOP = r" (?:of|in|for|at|from|who|whom|that|to|with|by|on|and the|whose|best|known) "
_WORK = re.compile(
    r"\b(?:director|filmmaker|film-maker|actor|actress|producer|screenwriter|writer"
    r"|singer|songwriter|singer-songwriter|musician|composer|rapper|footballer"
    r"|politician|painter|poet|player|author|journalist|artist|novelist|playwright"
    r"|cricketer|historian|philosopher|lawyer|scientist|physicist|architect|soldier"
    r"|nobleman|noblewoman|prince|princess|king|queen|duke|duchess|count|countess"
    r"|bishop|general|dancer|model|conductor|animator|cinematographer|businessman"
    r"|businesswoman|athlete|swimmer|guitarist|pianist|comedian|dramatist|editor)\b"
)


def is_person(lead: Lead) -> bool:
    """Whether a lead is that of a person, by dates of life or by a profession."""
    words = re.split(_STOP, lead.first_sentence)[0]
    return bool(life(lead.bracket)) or bool(_WORK.search(words))


def life(bracket: str) -> dict[str, Date | str]:
    """What the bracket behind a name says.

    Returns:
        any of `birth_date`, `death_date`, `birth_place`, `death_place`.
    """
    if _OTHER_DATES.search(bracket):
        return {}
    while "(" in bracket and ")" in bracket:
        shorter = re.sub(r" ?\([^()]*\)", "", bracket)
        if shorter == bracket:
            break
        bracket = shorter
    parts = _parts_of_life(bracket)
    birth = _moment(parts[0])
    death = _moment(parts[1])
    if birth and death:
        age = death[0].year - birth[0].year
        if not 0 < age <= _LONGEST_LIFE:
            return {}
    # "Chicago, 4 August 1915 – Los Angeles, 31 March 1979"; where only one of them has
    # something before its date, it may be another name.
    trusts_before = bool(birth and death and birth[2] and death[2])
    facts: dict[str, Date | str] = {}
    for event, moment in (("birth", birth), ("death", death)):
        if moment:
            date, behind, before = moment
            place = behind or (before if trusts_before else "")
            facts[f"{event}_date"] = date
            if place:
                facts[f"{event}_place"] = place
    return facts


def _parts_of_life(bracket: str) -> tuple[str, str]:
    """What is said of the birth and of the death."""
    both = re.match(r"(?:.*; ?)?(born\b.*?)[;,] ?((?:died|d\.) .*)", bracket)
    if both:
        return both[1], both[2]
    tail = bracket.rsplit(";", 1)[-1].strip()
    pieces = _BETWEEN_DATES.split(tail)
    if len(pieces) == 2:
        return pieces[0], pieces[1]
    if len(pieces) == 1 and re.search(r"\b(?:born|b\.)", tail):
        return tail, ""
    if len(pieces) == 1 and re.match(r"(?:died|d\.) ", tail):
        return "", tail
    return "", ""


def _moment(part: str) -> tuple[Date, str, str] | None:
    """A date with the place behind it and the one before it; None if it is unsure."""
    if _UNCERTAIN.search(part):
        return None
    dates = list(DATE.finditer(part))
    if len(dates) != 1:
        return None
    match = dates[0]
    before = re.sub(r"(?:,| on| in)?\s*$", "", part[: match.start()])
    behind = re.split(r",? aged? ", part[match.end() :])[0].strip(" .")
    certain = re.match(r"(?:born|b\.|died|d\.) (?:in|at) (.+)$", before)
    behind = re.sub(r"^(?:,? ?(?:in|at) |, )", "", behind)
    before = re.sub(r"^(?:born|b\.|died|d\.)\s*", "", before)
    where = certain[1] if certain else behind
    return to_date(match), _whole_place(where), _whole_place(before)


def _whole_place(text: str) -> str:
    """The text, if all of it is a place."""
    text = text.strip(" ,")
    return text if text and place_at(text) == text and not _bad_place(text) else ""


def _bad_place(place: str) -> bool:
    first = place.split(",")[0]
    return bool(_NO_PLACE.search(first)) or len(first) < 3


def places_told(lead: Lead) -> dict[str, str]:
    """Places of birth and death that the later sentences tell."""
    facts: dict[str, str] = {}
    for sentence in lead.later_sentences:
        _read_place(facts, ("birth_place",), _BORN_FIRST, sentence, lead)
    for statement in lead.statements:
        both = ("birth_place", "death_place")
        _read_place(facts, both, _BORN_AND_DIED, statement, lead)
        _read_place(facts, ("birth_place",), _BORN, statement, lead)
        _read_place(facts, ("death_place",), _DIED, statement, lead)
        _read_place(facts, ("death_place",), _THEN_DIED, statement, lead)
    return facts


def _read_place(
    facts: dict[str, str],
    relations: tuple[str, ...],
    pattern: re.Pattern,
    text: str,
    lead: Lead,
) -> None:
    """Keep the place behind a pattern, if the text begins with that."""
    match = pattern.match(text)
    place = place_at(text[match.end() :], lead.surname) if match else ""
    if place and not _bad_place(place):
        for relation in relations:
            facts.setdefault(relation, place)


def nationality(lead: Lead) -> str:
    """The adjective of a person's country, "" if there is none or several."""
    match = re.match(r"(?:an?|the) ([^.,;(]{3,120})", lead.predicate)
    if not match:
        return ""
    return adjective_in(re.split(_STOP, match[1] + " ")[0])
