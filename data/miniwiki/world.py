"""Owns the fictional world: facts, Wikipedia-like passages that state them, and
questions.

The names are made up and every world deals the facts anew, so nothing can be answered
from memory. Question types follow 2WikiMultihopQA (Ho et al., 2020,
https://arxiv.org/abs/2011.01060, section 2): compositional, comparison, inference,
bridge_comparison; `single` stands beside them. Import it as `kr1_utils.miniwiki`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kr1_utils.profiles import REPO

SHIPPED_SEED = (
    7  # the world in data/miniwiki; tiny-lm is trained on worlds of other seeds
)
MULTI_HOP = ("compositional", "comparison", "inference", "bridge_comparison")
NO_ANSWER = "no answer"

_WORDS = json.loads(
    (REPO / "data" / "miniwiki" / "words.json").read_text(encoding="utf-8")
)
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
# Questions about one fact of {x}, which is a title, or a phrase such as "the director
# of film F".
ASK: dict[str, list[str]] = _WORDS["ask"]
LATER: dict[str, str] = _WORDS["later"]  # what to call a thing once it was named
# What to call the first hop of a compositional question, and where it may lead.
BRIDGES: dict[str, str] = _WORDS["bridges"]
PERSON_FACTS = (
    "birth_date",
    "birth_city",
    "death_date",
    "nationality",
    "occupation",
    "father",
    "mother",
    "spouse",
)
CITY_FACTS = ("country", "river")
KIN = {
    name: tuple(path) for name, path in _WORDS["kin"].items()
}  # relations that no passage states
COMPARE = {(kind, relation): forms for kind, relation, forms in _WORDS["compare"]}
SAME, BRIDGE_COMPARE = (
    _WORDS["same"],
    _WORDS["bridge_compare"],
)  # forms: [question, wants the earlier one]


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


class _Asker:
    """Writes questions about the entities in `subjects` only."""

    def __init__(self, rng: random.Random, world: World, subjects: set[str]):
        self.rng, self.world = rng, world
        self.of = {
            k: sorted(s for s in subjects if world.kind[s] == k)
            for k in ("person", "film", "song", "company", "city", "country")
        }
        self.anyone = sorted(subjects)

    def fact(self, title: str, relation: str) -> str | None:
        return (
            self.world.facts[title].get(relation)
            if relation in self.world.stated[title]
            else None
        )

    def _question(
        self, kind: str, text: str, answer: str, evidence: list[list[str]], **more
    ) -> dict:
        return {
            "question": text,
            "golden_answers": [answer],
            "type": kind,
            "supporting_titles": [e[0] for e in evidence],
            "evidence": evidence,
            **more,
        }

    def single(self) -> dict | None:
        title = self.rng.choice(self.anyone)
        relation = self.rng.choice(sorted(self.world.stated[title]))
        text = self.rng.choice(ASK[relation]).format(x=title)
        answer = self.world.facts[title][relation]
        return self._question("single", text, answer, [[title, relation, answer]])

    def compositional(self) -> dict | None:
        kind = self.rng.choices(
            ["film", "song", "company", "person", "country"], [8, 3, 4, 2, 1]
        )[0]
        first = self.rng.choice(self.of[kind] or self.of["film"])
        stated = sorted(r for r in self.world.stated[first] if r in BRIDGES)
        if not stated:
            return None
        bridge = self.rng.choice(stated)
        middle = self.world.facts[first][bridge]
        last = self.rng.choice(
            CITY_FACTS if self.world.kind[middle] == "city" else PERSON_FACTS
        )
        answer = self.fact(middle, last)
        if answer is None or answer == first:
            return None
        text = self.rng.choice(ASK[last]).format(x=BRIDGES[bridge].format(s=first))
        return self._question(
            "compositional",
            text,
            answer,
            [[first, bridge, middle], [middle, last, answer]],
        )

    def inference(self) -> dict | None:
        person, kin = self.rng.choice(self.of["person"]), self.rng.choice(list(KIN))
        one, two = KIN[kin]
        middle = self.fact(person, one)
        answer = middle and self.fact(middle, two)
        if not answer:
            return None
        text = self.rng.choice(["Who is the {k} of {x}?", "Who is {x}'s {k}?"]).format(
            k=kin, x=person
        )
        return self._question(
            "inference", text, answer, [[person, one, middle], [middle, two, answer]]
        )

    def _pair(
        self, kind: str, value_of: Callable[[str], str | None], same: bool | None
    ) -> list[str] | None:
        """Two titles whose values are equal (`same`), are not (`not same`), or differ
        in the year (None)."""
        pool = self.of[kind]
        known = [
            t
            for t in self.rng.sample(pool, min(len(pool), 60))
            if value_of(t) is not None
        ]
        for b in known[1:]:
            x, y = value_of(known[0]), value_of(b)
            if (year(x) != year(y)) if same is None else ((x == y) == same):
                return [known[0], b]
        return None

    def comparison(self) -> dict | None:
        (kind, relation), forms = self.rng.choice(
            [*COMPARE.items(), (("person", "nationality"), None)]
        )
        same = None if forms else self.rng.random() < 0.5
        pair = self._pair(kind, lambda title: self.fact(title, relation), same)
        if pair is None:
            return None
        a, b = pair
        evidence = [[t, relation, self.world.facts[t][relation]] for t in pair]
        if forms is None:
            return self._question(
                "comparison",
                SAME["person"].format(a=a, b=b),
                "yes" if same else "no",
                evidence,
            )
        form, earlier = self.rng.choice(forms)
        answer = min(
            pair,
            key=lambda t: year(self.world.facts[t][relation]) * (1 if earlier else -1),
        )
        return self._question(
            "comparison", form.format(a=a, b=b), answer, evidence, earlier=earlier
        )

    def bridge_comparison(self) -> dict | None:
        relation = "nationality" if self.rng.random() < 0.35 else "birth_date"
        same = self.rng.random() < 0.5 if relation == "nationality" else None

        def value_of(film: str) -> str | None:
            director = self.fact(film, "director")
            return director and self.fact(director, relation)

        films = self._pair("film", value_of, same)
        directors = films and [self.fact(f, "director") for f in films]
        if not films or directors[0] == directors[1]:
            return None
        a, b = films
        values = [value_of(a), value_of(b)]
        evidence = [
            t
            for f, d, v in zip(films, directors, values)
            for t in ([f, "director", d], [d, relation, v])
        ]
        if relation == "nationality":
            return self._question(
                "bridge_comparison",
                SAME["film"].format(a=a, b=b),
                "yes" if same else "no",
                evidence,
            )
        form, earlier = self.rng.choice(BRIDGE_COMPARE)
        answer = films[(year(values[0]) < year(values[1])) != earlier]
        return self._question(
            "bridge_comparison",
            form.format(a=a, b=b),
            answer,
            evidence,
            earlier=earlier,
        )


def make_questions(
    world: World, counts: dict[str, int], subjects: set[str], seed: int, prefix: str
) -> list[dict]:
    """`counts[type]` different questions of each type that name only entities in
    `subjects`.

    Raises:
        ValueError: if the world is too small to find that many.
    """
    rng = random.Random(f"questions-{world.seed}-{seed}")
    asker, seen, out = _Asker(rng, world, subjects), set(), []
    for kind, wanted in counts.items():
        found = tries = 0
        while found < wanted:
            tries += 1
            if tries > 400 * wanted + 10_000:
                raise ValueError(
                    f"found {found} of {wanted} {kind} questions: make the world larger"
                )
            q = getattr(asker, kind)()
            if (
                q is None
                or q["question"] in seen
                or q["golden_answers"][0] in q["question"]
                and (kind in ("single", "compositional", "inference"))
            ):
                continue
            seen.add(q["question"])
            out.append(q)
            found += 1
    rng.shuffle(out)
    return [{"id": f"{prefix}-{i:04d}", **q} for i, q in enumerate(out)]


def verdict(a: str, x: str, b: str, y: str, earlier: bool | None) -> str:
    """What follows from a's value x and b's value y: which is earlier or later, or
    (None) the same.

    Value first, name behind it: then naming the winner is copying what came after its
    value."""
    if earlier is None:
        return f"{x} and {y} are {'the same' if x == y else 'different'}."
    pick = (min if earlier else max)((x, a), (y, b), key=lambda value: int(value[0]))
    return f"The {'earlier' if earlier else 'later'} is {pick[0]}: {pick[1]}."


def demonstration(question: dict) -> list[tuple[str, str, str]]:
    """What a patient expert would say: one (thought, 'search' or 'answer', content) a
    turn.

    The expert searches each title of the evidence in turn, notes what it read, and
    answers."""
    evidence, answer = question["evidence"], question["golden_answers"][0]
    compares = question["type"] in ("comparison", "bridge_comparison")
    subject, turns, note, values = "", [], "I need to read about it.", []
    for i, (title, relation, value) in enumerate(evidence):
        turns.append((note, "search", title))
        subject = (
            title if question["type"] != "bridge_comparison" or i % 2 == 0 else subject
        )
        short = value.split()[-1] if relation == "birth_date" and compares else value
        if compares and relation not in ("director",):
            values.append((subject, short))
            note = f"{short}: {subject}."
        else:
            note = f"The {relation.replace('_', ' ')} is {value}."
    if len(values) == 2:
        (a, x), (b, y) = values
        note = f"{x}: {a}. {y}: {b}. {verdict(a, x, b, y, question.get('earlier'))}"
    return [*turns, (note, "answer", answer)]
