"""Owns the fictional world: its facts, and Wikipedia-like passages that state them.

The names are made up and every world deals the facts anew, so nothing about them can be
answered from memory; only common knowledge (see `known`) is the same in all worlds. A
seed gives the same world on every machine: all functions draw from one random
generator, so the order of their calls is part of the world.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from kr1_utils.miniwiki import known

# The world in data/miniwiki; tiny-lm is trained on worlds of other seeds.
SHIPPED_SEED = 7

WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))


def _words(name: str) -> list[str]:
    return WORDS[name].split()


WOMEN = _words("women")
MEN = _words("men")
SURNAMES = _words("surnames")
CITIES = _words("cities")
COUNTRIES = _words("countries")
ADJECTIVES = _words("adjectives")
NOUNS = _words("nouns")
TRADES = _words("trades")
OCCUPATIONS = _words("occupations")
GENRES = _words("genres")
MONTHS = _words("months")
CURRENCIES = _words("currencies")

# Relation -> sentence patterns: {s} subject, {p} its possessive, {o} the value.
SENTENCES: dict[str, list[str]] = WORDS["sentences"]

# Kind -> what a sentence calls a thing that was named before.
LATER: dict[str, str] = WORDS["later"]

# What questions build on, so passages nearly always state it.
BUILT_ON = (
    "father",
    "mother",
    "spouse",
    "director",
    "performer",
    "founder",
    "birth_date",
)

FIRST_FILM = 1930
LAST_YEAR = 1999

# First and last year of birth.
FOUNDERS_BORN = (1880, 1900)
CHILDREN_BORN = ((1906, 1930), (1936, 1965))


@dataclass
class World:
    """One world.

    `facts[title][relation]` is true; only what is in `stated[title]` can be read in a
    passage.
    """

    seed: int
    kind: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    stated: dict[str, set[str]] = field(default_factory=dict)
    passages: list[dict] = field(default_factory=list)

    def of(self, kind: str) -> list[str]:
        """The titles of one kind: person, film, song, company, city or country."""
        return [title for title, its_kind in self.kind.items() if its_kind == kind]

    def add(self, kind: str, title: str, facts: dict[str, str]) -> None:
        """Add a thing, unless its title is taken."""
        if title not in self.kind:
            self.kind[title] = kind
            self.facts[title] = facts


def base_name(title: str) -> str:
    """'Alda Berin (painter)' -> 'Alda Berin'."""
    return title.split(" (")[0]


def year(value: str) -> int:
    """The year of '12 March 1931' or of '1931'."""
    return int(value.split()[-1])


def make_world(seed: int, families: int = 100) -> World:
    """A world with about 16 passages per family.

    Args:
        seed: the same seed gives the same world on every machine.
        families: founding couples; 100 make about 1,700 passages, to which come those
            of common knowledge.
    """
    rng = random.Random(f"miniwiki-{seed}")
    world = World(seed)
    _add_places(rng, world, families)
    _add_people(rng, world, families)
    _make_namesakes(rng, world, share=0.06)
    makers = [p for p in world.of("person") if "father" in world.facts[p]]
    for _ in range(5 * families):
        _add_film(rng, world, makers)
    for _ in range(3 * families // 2):
        _add_song(rng, world, makers)
        _add_company(rng, world, makers)
    for number, title in enumerate(world.facts):
        world.passages.append(_passage(rng, world, title, number))
    _add_currencies(world)
    _add_known_passages(world)
    return world


def _add_places(rng: random.Random, world: World, families: int) -> None:
    """Twenty countries, and cities in them; the first city of each is its capital."""
    countries = rng.sample(COUNTRIES, 20)
    wanted = max(len(countries), families * 8 // 10)
    cities = rng.sample(CITIES, min(len(CITIES), wanted))
    for country in countries:
        world.add("country", country, {})
    for i, city in enumerate(cities):
        is_capital = i < len(countries)
        country = countries[i] if is_capital else rng.choice(countries)
        river = rng.choice(SURNAMES)
        world.add("city", city, {"country": country, "river": river})
        if is_capital:
            world.facts[country]["capital"] = city


class _Registry:
    """Enters people into a world, and remembers whose name and occupation is taken."""

    def __init__(self, rng: random.Random, world: World):
        self.rng = rng
        self.world = world
        self.cities = world.of("city")
        self.countries = world.of("country")
        # Name -> the occupations of those who bear it.
        self.taken: dict[str, list[str]] = {}

    def person(
        self,
        sex: str,
        surname: str,
        born: tuple[int, int],
        parents: tuple[str, str] | None = None,
    ) -> str:
        """Add a person born in the years of `born`, and return the title."""
        name = self._name(sex, surname)
        namesakes = self.taken.setdefault(name, [])
        occupation = self.rng.choice([o for o in OCCUPATIONS if o not in namesakes])
        title = f"{name} ({occupation})" if namesakes else name
        namesakes.append(occupation)
        facts = {"sex": sex, "occupation": occupation, **self._origin(born)}
        # Those who were born later may still be alive.
        if born[1] < 1935:
            birth = year(facts["birth_date"])
            facts["death_date"] = _date(self.rng, birth + 40, birth + 85)
        if parents:
            facts["father"], facts["mother"] = parents
        self.world.add("person", title, facts)
        return title

    def _name(self, sex: str, surname: str) -> str:
        first_names = WOMEN if sex == "woman" else MEN
        free = [n for n in first_names if f"{n} {surname}" not in self.taken]
        return f"{self.rng.choice(free or first_names)} {surname}"

    def _origin(self, born: tuple[int, int]) -> dict[str, str]:
        home = self.rng.choice(self.cities)
        birth_date = _date(self.rng, *born)
        if self.rng.random() < 0.7:
            nationality = self.world.facts[home]["country"]
        else:
            nationality = self.rng.choice(self.countries)
        return {
            "birth_city": home,
            "birth_date": birth_date,
            "nationality": nationality,
        }


def _date(rng: random.Random, first: int, last: int) -> str:
    day = rng.randint(1, 28)
    month = rng.choice(MONTHS)
    return f"{day} {month} {rng.randint(first, min(last, LAST_YEAR))}"


def _add_people(rng: random.Random, world: World, families: int) -> None:
    """Three generations. Children bear the father's surname."""
    registry = _Registry(rng, world)
    couples = _founding_couples(rng, registry, families)
    for born in CHILDREN_BORN:
        sons, daughters = _children(rng, registry, couples, born)
        rng.shuffle(sons)
        couples = _marry_children(rng, world, sons, daughters)


def _founding_couples(
    rng: random.Random, registry: _Registry, families: int
) -> list[tuple[str, str]]:
    surnames = rng.sample(SURNAMES, min(len(SURNAMES), 2 * families))
    couples = []
    for i in range(families):
        his_surname = surnames[2 * i % len(surnames)]
        her_surname = surnames[(2 * i + 1) % len(surnames)]
        man = registry.person("man", his_surname, FOUNDERS_BORN)
        wife = registry.person("woman", her_surname, FOUNDERS_BORN)
        _marry(registry.world, man, wife)
        couples.append((man, wife))
    return couples


def _children(
    rng: random.Random,
    registry: _Registry,
    couples: list[tuple[str, str]],
    born: tuple[int, int],
) -> tuple[list[str], list[str]]:
    """Three children per couple: sons and daughters, at least one of each."""
    sons = []
    daughters = []
    for man, wife in couples:
        surname = base_name(man).split()[-1]
        third = "woman" if rng.random() < 0.5 else "man"
        for sex in ("woman", "man", third):
            child = registry.person(sex, surname, born, (man, wife))
            siblings = daughters if sex == "woman" else sons
            siblings.append(child)
    return sons, daughters


def _marry_children(
    rng: random.Random, world: World, sons: list[str], daughters: list[str]
) -> list[tuple[str, str]]:
    """Half of the pairs that are not brother and sister marry."""
    couples = []
    for man, wife in zip(sons, daughters):
        related = world.facts[man]["father"] == world.facts[wife]["father"]
        if not related and rng.random() < 0.5:
            _marry(world, man, wife)
            couples.append((man, wife))
    return couples


def _marry(world: World, man: str, wife: str) -> None:
    world.facts[man]["spouse"] = wife
    world.facts[wife]["spouse"] = man


def _make_namesakes(rng: random.Random, world: World, share: float) -> None:
    """Hard negatives: a share of the people get the name of another with their surname.

    The titles of both then name the occupation.
    """
    people = [p for p in world.of("person") if "(" not in p]
    rng.shuffle(people)
    for one in people[: int(share * len(people))]:
        for other in people:
            not_renamed = one in world.kind and other in world.kind
            if not_renamed and _can_be_namesakes(world, one, other):
                for person in (one, other):
                    occupation = world.facts[person]["occupation"]
                    _rename(world, person, f"{one} ({occupation})")


def _can_be_namesakes(world: World, one: str, other: str) -> bool:
    """Whether two people share surname and sex, but neither father nor occupation."""
    if one == other:
        return False
    a = world.facts[one]
    b = world.facts[other]
    same_surname = one.split()[-1] == other.split()[-1]
    same_sex = a["sex"] == b["sex"]
    same_occupation = a["occupation"] == b["occupation"]
    siblings = "father" in a and a["father"] == b.get("father")
    title_taken = any(f"{one} ({f['occupation']})" in world.kind for f in (a, b))
    return (
        same_surname and same_sex and not (same_occupation or siblings or title_taken)
    )


def _rename(world: World, old: str, new: str) -> None:
    world.kind[new] = world.kind.pop(old)
    world.facts[new] = world.facts.pop(old)
    for facts in world.facts.values():
        for relation, value in facts.items():
            if value == old:
                facts[relation] = new


def _add_film(rng: random.Random, world: World, makers: list[str]) -> None:
    """A film, or now and then a remake: two films with one title, in two years."""
    title = _title_of_work(rng)
    if rng.random() < 0.06:
        versions = [_film(rng, makers), _film(rng, makers)]
        different_years = versions[0]["release_year"] != versions[1]["release_year"]
        if different_years and title not in world.kind:
            for facts in versions:
                world.add("film", _remake_title(title, facts["release_year"]), facts)
    elif not _has_remakes(world, title):
        world.add("film", title, _film(rng, makers))


def _film(rng: random.Random, makers: list[str]) -> dict[str, str]:
    return {
        "director": rng.choice(makers),
        "release_year": _year_of_work(rng),
        "genre": rng.choice(GENRES),
    }


def _remake_title(title: str, release_year: int | str) -> str:
    return f"{title} ({release_year} film)"


def _has_remakes(world: World, title: str) -> bool:
    years = range(FIRST_FILM, LAST_YEAR + 1)
    return any(_remake_title(title, y) in world.kind for y in years)


def _add_song(rng: random.Random, world: World, makers: list[str]) -> None:
    title = _title_of_work(rng)
    facts = {"performer": rng.choice(makers), "release_year": _year_of_work(rng)}
    world.add("song", title, facts)


def _add_company(rng: random.Random, world: World, makers: list[str]) -> None:
    title = f"{rng.choice(SURNAMES)} {rng.choice(TRADES)}"
    facts = {
        "founder": rng.choice(makers),
        "founded": _year_of_work(rng),
        "headquarters": rng.choice(world.of("city")),
    }
    world.add("company", title, facts)


def _title_of_work(rng: random.Random) -> str:
    adjective = rng.choice(ADJECTIVES)
    noun, other = rng.sample(NOUNS, 2)
    patterns = [
        f"{adjective} {noun}",
        f"The {adjective} {noun}",
        f"The {noun} and the {other}",
    ]
    return rng.choice(patterns)


def _year_of_work(rng: random.Random) -> str:
    return str(rng.randint(FIRST_FILM, LAST_YEAR))


def _passage(rng: random.Random, world: World, title: str, number: int) -> dict:
    """One to four sentences about `title`.

    `world.stated[title]` then says which facts they hold.
    """
    relations = _relations_to_state(rng, world, title)
    sentences = [
        _sentence(rng, world, title, relation, is_first=i == 0)
        for i, relation in enumerate(relations)
    ]
    world.stated[title] = set(relations)
    return {"id": f"w{number:05d}", "title": title, "text": " ".join(sentences)}


def _relations_to_state(rng: random.Random, world: World, title: str) -> list[str]:
    relations = [r for r in world.facts[title] if _can_be_stated(r, title)]
    rng.shuffle(relations)
    first = [r for r in relations if r in BUILT_ON and rng.random() < 0.7]
    rest = [r for r in relations if r not in first]
    number = rng.randint(min(3, len(relations)), 4)
    chosen = (first + rest)[:number]
    rng.shuffle(chosen)
    return chosen


def _can_be_stated(relation: str, title: str) -> bool:
    # The title of a remake gives its year away.
    year_in_title = relation == "release_year" and "(" in title
    return relation != "sex" and not year_in_title


def _sentence(
    rng: random.Random, world: World, title: str, relation: str, is_first: bool
) -> str:
    subject, possessive = _how_to_call(world, title, is_first)
    pattern = rng.choice(SENTENCES[relation])
    subject_is_inside = not pattern.startswith(("{s}", "{p}"))
    if subject_is_inside and not is_first:
        subject = subject[0].lower() + subject[1:]
    return pattern.format(s=subject, p=possessive, o=world.facts[title][relation])


def _how_to_call(world: World, title: str, is_first: bool) -> tuple[str, str]:
    """Subject and possessive: the name at first, then "She" or "The film"."""
    kind = world.kind[title]
    if kind == "person" and not is_first:
        is_woman = world.facts[title]["sex"] == "woman"
        return ("She", "Her") if is_woman else ("He", "His")
    name = base_name(title) if is_first else LATER[kind]
    return name, f"{name}'s"


def _add_currencies(world: World) -> None:
    """Give every country a made-up currency, and say so at the end of its passage."""
    rng = random.Random(f"currencies-{world.seed}")
    passages = {passage["title"]: passage for passage in world.passages}
    currencies = CURRENCIES.copy()
    rng.shuffle(currencies)
    for number, country in enumerate(world.of("country")):
        currency = currencies[number % len(currencies)]
        world.facts[country]["currency"] = currency
        world.stated[country].add("currency")
        sentence = _plain_sentence(rng, LATER["country"], "currency", currency)
        passages[country]["text"] += f" {sentence}"


def _add_known_passages(world: World) -> None:
    """One passage for each real country and capital."""
    rng = random.Random(f"known-{world.seed}")
    for number, (title, facts) in enumerate(known.FACTS.items()):
        relations = sorted(facts)
        rng.shuffle(relations)
        later = LATER["country" if "capital" in facts else "city"]
        subjects = [title] + [later] * (len(relations) - 1)
        sentences = [
            _plain_sentence(rng, subject, relation, facts[relation])
            for subject, relation in zip(subjects, relations)
        ]
        text = " ".join(sentences)
        world.passages.append({"id": f"k{number:05d}", "title": title, "text": text})


def _plain_sentence(rng: random.Random, subject: str, relation: str, value: str) -> str:
    pattern = rng.choice(SENTENCES[relation])
    if subject.startswith("The ") and not pattern.startswith("{s}"):
        subject = subject[0].lower() + subject[1:]
    return pattern.format(s=subject, o=value)
