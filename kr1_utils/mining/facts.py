"""Owns the facts of a corpus: what leads say, merged by title and linked by name."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from kr1_utils.mining import people, works
from kr1_utils.mining.countries import ALSO, COUNTRY_OF
from kr1_utils.mining.kin import Genders, relatives
from kr1_utils.mining.lead import Lead, lead
from kr1_utils.mining.names import Titles, bare, key
from kr1_utils.mining.spans import Date

# Facts whose value is a person.
OF_PERSONS = ("director", "performer", "father", "mother", "spouse", "sibling")

_FILM_WORDS = (
    "film",
    "director",
    "screenwriter",
    "producer",
    "actor",
    "actress",
    "theatre",
    "television",
    "cinema",
    "writer",
)
_SONG_WORDS = ("sing", "song", "music", "rapper", "record", "actress", "actor")

# Years between the births of parent and child.
_PARENT_AGE = {"father": (14, 75), "mother": (12, 52)}


@dataclass(frozen=True)
class Fact:
    """What passages of one title say."""

    title: str
    relation: str
    # As the text has it, in short: "Turnov", not "Turnov, Austria-Hungary".
    value: str
    # All that say so.
    passage_ids: tuple[str, ...]
    # Right answers, the value first.
    forms: tuple[str, ...]
    date: Date | None = None
    # The title that the value names, "" if there is none or several.
    names: str = ""

    @property
    def year(self) -> int:
        """The year of a date, or of a film."""
        return self.date.year if self.date else int(self.value)


@dataclass
class Facts:
    """The facts of a corpus."""

    # Title -> relation -> fact.
    by_title: dict[str, dict[str, Fact]] = field(default_factory=dict)
    # Title -> person, film, song, or the kind of a place.
    kind: dict[str, str] = field(default_factory=dict)
    # Title -> "m", "f" or "".
    gender: dict[str, str] = field(default_factory=dict)
    passages: int = 0

    def get(self, title: str, relation: str) -> Fact | None:
        """A fact, None if no passage states it."""
        return self.by_title.get(title, {}).get(relation)

    def year_of(self, title: str, relation: str) -> int | None:
        """The year of a date, None if no passage states it."""
        fact = self.get(title, relation)
        return fact.year if fact else None

    def of_kind(self, kind: str) -> list[str]:
        """The titles of one kind, sorted."""
        return sorted(title for title, told in self.kind.items() if told == kind)


def find_facts(passages: Iterable[dict]) -> Facts:
    """All facts that the rules find.

    Args:
        passages: `{"id", "title", "text"}`, in the style of Wikipedia's first
            paragraphs.
    """
    all_titles: list[str] = []
    leads: list[Lead] = []
    facts = Facts()
    for passage in passages:
        facts.passages += 1
        found = lead(passage)
        all_titles.append(passage["title"])
        if found:
            leads.append(found)
    genders = Genders(leads)
    told: dict[str, list[Fact]] = defaultdict(list)
    words: dict[str, str] = defaultdict(str)
    for one in leads:
        kind, found_facts = _facts_of_lead(one, genders)
        if kind and facts.kind.setdefault(one.title, kind) == kind:
            told[one.title] += found_facts
            words[one.title] += one.first_sentence + " "
    for title, found_facts in told.items():
        facts.by_title[title] = _merged(found_facts)
        facts.gender[title] = genders.of_title(title)
    _link(facts, Titles(all_titles), words)
    return facts


def _facts_of_lead(lead: Lead, genders: Genders) -> tuple[str, list[Fact]]:
    """The kind of a lead's subject, "" if it has none, and what the lead says of it."""
    for kind, read in (("film", works.film), ("song", works.song)):
        found = read(lead)
        if found:
            return kind, [_fact(lead, *item) for item in found.items()]
    if people.is_person(lead):
        return "person", _facts_of_person(lead, genders)
    found = works.place(lead)
    if found:
        kind = found.pop("kind")
        return kind, [_fact(lead, *item) for item in found.items()]
    return "", []


def _facts_of_person(lead: Lead, genders: Genders) -> list[Fact]:
    found = people.life(lead.bracket)
    found = {**people.places_told(lead), **found}
    adjective = people.nationality(lead)
    if adjective:
        found["nationality"] = adjective
    facts = [_fact(lead, relation, value) for relation, value in found.items()]
    for kin in relatives(lead, genders):
        facts.append(_fact(lead, kin.relation, kin.name))
    return facts


def _fact(lead: Lead, relation: str, value: str | Date) -> Fact:
    date = None
    if isinstance(value, Date):
        date = value
        forms = value.forms()
    elif relation in ("nationality", "country"):
        country = COUNTRY_OF[value]
        forms = [value, country, *ALSO[country]]
    elif relation == "located_in":
        forms = [value, *ALSO[value]]
    elif relation.endswith("_place"):
        forms = [value.split(",")[0], value]
    else:
        # Nicknames are in quotation marks.
        forms = [re.sub(r"[\"“”]", "", value)]
    forms = list(dict.fromkeys(forms))
    return Fact(lead.title, relation, forms[0], (lead.passage_id,), tuple(forms), date)


def _merged(facts: list[Fact]) -> dict[str, Fact]:
    """One fact for each relation; none where two passages say different things."""
    merged: dict[str, Fact] = {}
    in_doubt = set()
    for fact in facts:
        known = merged.setdefault(fact.relation, fact)
        if known is fact:
            continue
        if not _say_the_same(known, fact):
            in_doubt.add(fact.relation)
            continue
        passage_ids = dict.fromkeys(known.passage_ids + fact.passage_ids)
        forms = dict.fromkeys(known.forms + fact.forms)
        merged[fact.relation] = replace(
            known, passage_ids=tuple(passage_ids), forms=tuple(forms)
        )
    return {name: fact for name, fact in merged.items() if name not in in_doubt}


def _say_the_same(a: Fact, b: Fact) -> bool:
    if a.date and b.date:
        return (a.date.year, a.date.month, a.date.day) == (
            b.date.year,
            b.date.month,
            b.date.day,
        )
    return key(a.value) == key(b.value)


# --- from names to titles ---


def _link(facts: Facts, titles: Titles, words: dict[str, str]) -> None:
    """Say of each fact about a person which title it names, where that is sure."""
    for relations in facts.by_title.values():
        for relation in OF_PERSONS:
            fact = relations.get(relation)
            title = titles.find(fact.value) if fact else None
            if title and _is_plausible(facts, fact, title, words[title]):
                forms = dict.fromkeys([fact.value, title, bare(title), *fact.forms])
                relations[relation] = replace(fact, names=title, forms=tuple(forms))


def _is_plausible(facts: Facts, fact: Fact, other: str, words: str) -> bool:
    """Whether a person of this title can be the one that a fact names."""
    if facts.kind.get(other) != "person" or other == fact.title:
        return False
    if fact.relation == "director":
        return _may_direct(facts, fact.title, other, words)
    if fact.relation == "performer":
        return any(word in words for word in _SONG_WORDS)
    if fact.relation in _PARENT_AGE:
        return _may_be_parent(facts, fact, other)
    return _may_have_met(facts, fact.title, other)


def _may_direct(facts: Facts, film: str, person: str, words: str) -> bool:
    release = facts.year_of(film, "release_year")
    birth = facts.year_of(person, "birth_date")
    death = facts.year_of(person, "death_date")
    if birth and not 15 <= release - birth <= 95:
        return False
    if death and release - death > 3:
        return False
    return any(word in words for word in _FILM_WORDS)


def _may_be_parent(facts: Facts, fact: Fact, parent: str) -> bool:
    expected = {"father": "m", "mother": "f"}[fact.relation]
    if facts.gender.get(parent, "") not in ("", expected):
        return False
    child_birth = facts.year_of(fact.title, "birth_date")
    birth = facts.year_of(parent, "birth_date")
    death = facts.year_of(parent, "death_date")
    if child_birth and birth:
        youngest, oldest = _PARENT_AGE[fact.relation]
        if not youngest <= child_birth - birth <= oldest:
            return False
    if child_birth and death and death < child_birth - 1:
        return False
    child_death = facts.year_of(fact.title, "death_date")
    if child_death and birth and child_death <= birth:
        return False
    return " " in fact.value


def _may_have_met(facts: Facts, a: str, b: str) -> bool:
    """Whether husband and wife, or brother and sister, can have lived together."""
    births = [facts.year_of(title, "birth_date") for title in (a, b)]
    if all(births) and abs(births[0] - births[1]) > 50:
        return False
    deaths = [facts.year_of(title, "death_date") for title in (a, b)]
    for birth, death in ((births[0], deaths[1]), (births[1], deaths[0])):
        if birth and death and death < birth:
            return False
    return True
