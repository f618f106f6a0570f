"""Owns the fictional world: its facts, and Wikipedia-like passages that state them.

The names are made up and every world deals the facts anew, so nothing can be answered
from memory.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

SHIPPED_SEED = (
    7  # the world in data/miniwiki; tiny-lm is trained on worlds of other seeds
)

_WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))

(
    WOMEN,
    MEN,
    SURNAMES,
    CITIES,
    COUNTRIES,
    ADJECTIVES,
    NOUNS,
    TRADES,
    OCCUPATIONS,
    GENRES,
    MONTHS,
) = (words.split() for words in _WORDS.values() if isinstance(words, str))

# By fact. Sentence patterns: {s} subject, {p} its possessive, {o} the value.
SENTENCES: dict[str, list[str]] = _WORDS["sentences"]
LATER: dict[str, str] = _WORDS["later"]  # what to call a thing once it was named


@dataclass
class World:
    """One world. `facts[title][relation]` is true; only `stated[title]` can be read in
    a passage."""

    seed: int
    kind: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    stated: dict[str, set[str]] = field(default_factory=dict)
    passages: list[dict] = field(default_factory=list)

    def of(self, kind: str) -> list[str]:
        return [t for t, k in self.kind.items() if k == kind]


def base_name(title: str) -> str:
    """'Alda Berin (painter)' -> 'Alda Berin'."""
    return title.split(" (")[0]


def year(value: str) -> int:
    """The year of '12 March 1931' or of '1931'."""
    return int(value.split()[-1])


def _date(rng: random.Random, first: int, last: int) -> str:
    return (
        f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
        f" {rng.randint(first, min(last, 1999))}"
    )


def _people(rng: random.Random, world: World, families: int, cities: list[str]) -> None:
    """Three generations. Children bear the father's surname; couples come from two
    families."""
    taken: dict[str, list[str]] = {}

    def person(
        woman: bool,
        surname: str,
        born: tuple[int, int],
        parents: tuple[str, str] | None,
    ) -> str:
        pool = [n for n in (WOMEN if woman else MEN) if f"{n} {surname}" not in taken]
        name = f"{rng.choice(pool or (WOMEN if woman else MEN))} {surname}"
        jobs = [j for j in OCCUPATIONS if j not in taken.get(name, [])]
        job = rng.choice(jobs)
        title = f"{name} ({job})" if name in taken else name
        taken.setdefault(name, []).append(job)
        home = rng.choice(cities)
        own = world.facts[home]["country"]
        facts = {
            "sex": "woman" if woman else "man",
            "occupation": job,
            "birth_city": home,
            "birth_date": _date(rng, *born),
            "nationality": own
            if rng.random() < 0.7
            else rng.choice(world.of("country")),
        }
        if born[1] < 1935:
            birth = year(facts["birth_date"])
            facts["death_date"] = _date(rng, birth + 40, birth + 85)
        if parents:
            facts["father"], facts["mother"] = parents
        world.kind[title], world.facts[title] = "person", facts
        return title

    def marry(a: str, b: str) -> None:
        world.facts[a]["spouse"], world.facts[b]["spouse"] = b, a

    surnames = rng.sample(SURNAMES, min(len(SURNAMES), 2 * families))
    couples = []
    for i in range(families):
        man = person(False, surnames[2 * i % len(surnames)], (1880, 1900), None)
        wife = person(True, surnames[(2 * i + 1) % len(surnames)], (1880, 1900), None)
        marry(man, wife)
        couples.append((man, wife))
    for born in ((1906, 1930), (1936, 1965)):
        sons, daughters = [], []
        for man, wife in couples:
            for woman in (True, False, rng.random() < 0.5):
                child = person(woman, base_name(man).split()[-1], born, (man, wife))
                (daughters if woman else sons).append(child)
        rng.shuffle(sons)
        couples = []
        for man, wife in zip(sons, daughters):
            if (
                world.facts[man]["father"] != world.facts[wife]["father"]
                and rng.random() < 0.5
            ):
                marry(man, wife)
                couples.append((man, wife))


def _namesakes(rng: random.Random, world: World, share: float) -> None:
    """Hard negatives: some people bear the name of a relative, and both titles name the
    occupation."""
    people = [p for p in world.of("person") if "(" not in p]
    rng.shuffle(people)
    for one in people[: int(share * len(people))]:
        for other in people:
            if (
                one in world.kind
                and other in world.kind
                and _can_be_namesakes(world, one, other)
            ):
                for person in (one, other):
                    _rename(
                        world, person, f"{one} ({world.facts[person]['occupation']})"
                    )


def _can_be_namesakes(world: World, one: str, other: str) -> bool:
    """Whether two people have one surname and sex, but neither one father nor one
    occupation."""
    a, b = world.facts[one], world.facts[other]
    return (
        one != other
        and one.split()[-1] == other.split()[-1]
        and a["sex"] == b["sex"]
        and a["occupation"] != b["occupation"]
        and ("father" not in a or a["father"] != b.get("father"))
        and not any(f"{one} ({f['occupation']})" in world.kind for f in (a, b))
    )


def _rename(world: World, old: str, new: str) -> None:
    world.kind[new], world.facts[new] = world.kind.pop(old), world.facts.pop(old)
    for facts in world.facts.values():
        for relation, value in facts.items():
            if value == old:
                facts[relation] = new


def make_world(seed: int, families: int = 100) -> World:
    """A world with about 16 passages a family.

    Args:
        seed: the same seed gives the same world on every machine.
        families: founding couples; 100 makes about 1,700 passages.
    """
    rng = random.Random(f"miniwiki-{seed}")
    world = World(seed)
    countries = rng.sample(COUNTRIES, 20)
    cities = rng.sample(CITIES, min(len(CITIES), max(20, families * 8 // 10)))
    for c in countries:
        world.kind[c], world.facts[c] = "country", {}
    for i, c in enumerate(cities):
        country = countries[i] if i < len(countries) else rng.choice(countries)
        world.kind[c], world.facts[c] = (
            "city",
            {"country": country, "river": rng.choice(SURNAMES)},
        )
        if i < len(countries):
            world.facts[country]["capital"] = c
    _people(rng, world, families, cities)
    _namesakes(rng, world, 0.06)
    makers = [p for p in world.of("person") if "father" in world.facts[p]]

    def add(kind: str, title: str, facts: dict[str, str]) -> None:
        if title not in world.kind:
            world.kind[title], world.facts[title] = kind, facts

    def work_title() -> str:
        a, (n, other) = rng.choice(ADJECTIVES), rng.sample(NOUNS, 2)
        return rng.choice([f"{a} {n}", f"The {a} {n}", f"The {n} and the {other}"])

    def film() -> dict[str, str]:
        return {
            "director": rng.choice(makers),
            "release_year": str(rng.randint(1930, 1999)),
            "genre": rng.choice(GENRES),
        }

    for _ in range(5 * families):
        title = work_title()
        if rng.random() < 0.06:  # a remake: one title, two years
            versions = [film(), film()]
            if (
                versions[0]["release_year"] != versions[1]["release_year"]
                and title not in world.kind
            ):
                for facts in versions:
                    add("film", f"{title} ({facts['release_year']} film)", facts)
        elif not any(f"{title} ({y} film)" in world.kind for y in range(1930, 2000)):
            add("film", title, film())
    for _ in range(3 * families // 2):
        add(
            "song",
            work_title(),
            {
                "performer": rng.choice(makers),
                "release_year": str(rng.randint(1930, 1999)),
            },
        )
        add(
            "company",
            f"{rng.choice(SURNAMES)} {rng.choice(TRADES)}",
            {
                "founder": rng.choice(makers),
                "founded": str(rng.randint(1930, 1999)),
                "headquarters": rng.choice(cities),
            },
        )
    for number, title in enumerate(world.facts):
        world.passages.append(_passage(rng, world, title, number))
    return world


def _passage(rng: random.Random, world: World, title: str, number: int) -> dict:
    """One to four sentences about `title`, and `world.stated[title]` says which facts
    they hold."""
    kind, facts = world.kind[title], world.facts[title]
    relations = [
        r for r in facts if r != "sex" and not (r == "release_year" and "(" in title)
    ]
    rng.shuffle(relations)
    # What questions build on is nearly always stated; the rest fills up.
    key = (
        "father",
        "mother",
        "spouse",
        "director",
        "performer",
        "founder",
        "birth_date",
    )
    relations.sort(key=lambda r: r in key and rng.random() < 0.7, reverse=True)
    chosen = relations[: rng.randint(min(3, len(relations)), 4)]
    rng.shuffle(chosen)
    text = []
    for i, relation in enumerate(chosen):
        name = base_name(title)
        if i == 0:
            s, p = name, f"{name}'s"
        elif kind == "person":
            s, p = ("She", "Her") if facts["sex"] == "woman" else ("He", "His")
        else:
            s, p = LATER[kind], f"{LATER[kind]}'s"
        pattern = rng.choice(SENTENCES[relation])
        if not pattern.startswith(("{s}", "{p}")):
            s = s[0].lower() + s[1:] if i else s
        text.append(pattern.format(s=s, p=p, o=facts[relation]))
    world.stated[title] = set(chosen)
    return {"id": f"w{number:05d}", "title": title, "text": " ".join(text)}
