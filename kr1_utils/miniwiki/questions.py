"""Owns the questions about a fictional world.

Their types follow 2WikiMultihopQA (Ho et al., 2020, https://arxiv.org/abs/2011.01060,
section 2): compositional, comparison, inference, bridge_comparison; and beside them
`single`, a question about one passage; `known`, one about common knowledge; and
`look_alike`, in the same words about the fictional world. As in `world`, the order of
calls to the random generator is part of the result.
"""

import random
from collections.abc import Callable, Iterable

from kr1_utils.miniwiki import known
from kr1_utils.miniwiki.world import WORDS, World, year

NO_ANSWER = "no answer"

# Relation -> questions about that fact of {x}, which is a title, or a phrase such as
# "the director of film F".
ASK: dict[str, list[str]] = WORDS["ask"]

# Relation -> what to call the first hop of a compositional question.
BRIDGES: dict[str, str] = WORDS["bridges"]

# Where the second hop may lead.
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

# Relations that no passage states -> the two that they are made of.
KIN: dict[str, tuple[str, str]] = {
    name: (first, second) for name, (first, second) in WORDS["kin"].items()
}

# (kind, relation) -> [question, whether it asks for the earlier one].
COMPARE: dict[tuple[str, str], list] = {
    (kind, relation): forms for kind, relation, forms in WORDS["compare"]
}

# Kind -> the question whether two of them are the same.
SAME: dict[str, str] = WORDS["same"]

# [question, whether it asks for the earlier one].
BRIDGE_COMPARE: list = WORDS["bridge_compare"]

# Types whose answer must not be in the question; a comparison names both candidates.
CHAINS = ("single", "known", "look_alike", "compositional", "inference")


class _Asker:
    """Writes questions about the entities in `subjects` only.

    Each of its public methods is named after a type of question. It tries once, and
    returns None where the entities it drew do not make a question.
    """

    def __init__(self, rng: random.Random, world: World, subjects: set[str]):
        self.rng = rng
        self.world = world
        self.subjects = sorted(s for s in subjects if s in world.kind)
        self.known_titles = sorted(s for s in subjects if s in known.FACTS)
        self.subjects_by_kind: dict[str, list[str]] = {
            kind: [s for s in self.subjects if world.kind[s] == kind]
            for kind in ("person", "film", "song", "company", "city", "country")
        }

    def single(self) -> dict | None:
        title = self.rng.choice(self.subjects)
        relation = self.rng.choice(sorted(self.world.stated[title]))
        return self._one_fact("single", title, relation, self.world.facts)

    def known(self) -> dict | None:
        title = self.rng.choice(self.known_titles)
        relation = self.rng.choice(sorted(known.FACTS[title]))
        return self._one_fact("known", title, relation, known.FACTS)

    def look_alike(self) -> dict | None:
        kind = self.rng.choice(["city", "country"])
        title = self.rng.choice(self.subjects_by_kind[kind])
        relations = sorted(self.world.stated[title] & set(known.RELATIONS))
        relation = self.rng.choice(relations)
        return self._one_fact("look_alike", title, relation, self.world.facts)

    def _one_fact(self, kind: str, title: str, relation: str, facts: dict) -> dict:
        text = self.rng.choice(ASK[relation]).format(x=title)
        answer = facts[title][relation]
        return _question(kind, text, answer, [[title, relation, answer]])

    def compositional(self) -> dict | None:
        kinds = ["film", "song", "company", "person", "country"]
        kind = self.rng.choices(kinds, weights=[8, 3, 4, 2, 1])[0]
        pool = self.subjects_by_kind[kind] or self.subjects_by_kind["film"]
        first = self.rng.choice(pool)
        bridges = sorted(r for r in self.world.stated[first] if r in BRIDGES)
        if not bridges:
            return None
        bridge = self.rng.choice(bridges)
        middle = self.world.facts[first][bridge]
        middle_is_city = self.world.kind[middle] == "city"
        last = self.rng.choice(CITY_FACTS if middle_is_city else PERSON_FACTS)
        answer = self._stated_fact(middle, last)
        if answer is None or answer == first:
            return None
        phrase = BRIDGES[bridge].format(s=first)
        text = self.rng.choice(ASK[last]).format(x=phrase)
        evidence = [[first, bridge, middle], [middle, last, answer]]
        return _question("compositional", text, answer, evidence)

    def inference(self) -> dict | None:
        person = self.rng.choice(self.subjects_by_kind["person"])
        kin = self.rng.choice(list(KIN))
        first, second = KIN[kin]
        middle = self._stated_fact(person, first)
        if middle is None:
            return None
        answer = self._stated_fact(middle, second)
        if answer is None:
            return None
        forms = ["Who is the {k} of {x}?", "Who is {x}'s {k}?"]
        text = self.rng.choice(forms).format(k=kin, x=person)
        evidence = [[person, first, middle], [middle, second, answer]]
        return _question("inference", text, answer, evidence)

    def comparison(self) -> dict | None:
        same_nationality = (("person", "nationality"), None)
        choices = [*COMPARE.items(), same_nationality]
        (kind, relation), forms = self.rng.choice(choices)
        want_same = self.rng.random() < 0.5 if forms is None else None
        titles = self._pair(kind, lambda t: self._stated_fact(t, relation), want_same)
        if titles is None:
            return None
        values = [self.world.facts[title][relation] for title in titles]
        evidence = [[t, relation, value] for t, value in zip(titles, values)]
        if forms is None:
            text = SAME["person"].format(a=titles[0], b=titles[1])
            answer = "yes" if want_same else "no"
            return _question("comparison", text, answer, evidence)
        return self._which_of_two("comparison", forms, titles, values, evidence)

    def bridge_comparison(self) -> dict | None:
        relation = "nationality" if self.rng.random() < 0.35 else "birth_date"
        want_same = self.rng.random() < 0.5 if relation == "nationality" else None

        def director_value(film: str) -> str | None:
            director = self._stated_fact(film, "director")
            return director and self._stated_fact(director, relation)

        films = self._pair("film", director_value, want_same)
        if films is None:
            return None
        directors = [self._stated_fact(film, "director") for film in films]
        if directors[0] == directors[1]:
            return None
        values = [director_value(film) for film in films]
        evidence = []
        for film, director, value in zip(films, directors, values):
            evidence.append([film, "director", director])
            evidence.append([director, relation, value])
        if relation == "nationality":
            text = SAME["film"].format(a=films[0], b=films[1])
            answer = "yes" if want_same else "no"
            return _question("bridge_comparison", text, answer, evidence)
        return self._which_of_two(
            "bridge_comparison", BRIDGE_COMPARE, films, values, evidence
        )

    def _stated_fact(self, title: str, relation: str) -> str | None:
        """A fact that the passage of `title` states, else None."""
        if relation not in self.world.stated[title]:
            return None
        return self.world.facts[title].get(relation)

    def _pair(
        self,
        kind: str,
        value_of: Callable[[str], str | None],
        want_same: bool | None,
    ) -> list[str] | None:
        """Two titles whose values are the same or not; for None, of different years."""
        pool = self.subjects_by_kind[kind]
        drawn = self.rng.sample(pool, min(len(pool), 60))
        known = [title for title in drawn if value_of(title) is not None]
        for other in known[1:]:
            if _fits(value_of(known[0]), value_of(other), want_same):
                return [known[0], other]
        return None

    def _which_of_two(
        self,
        kind: str,
        forms: list,
        titles: list[str],
        values: list[str],
        evidence: list[list[str]],
    ) -> dict:
        """Which of two titles has the earlier year, or the later one?"""
        form, earlier = self.rng.choice(forms)
        text = form.format(a=titles[0], b=titles[1])
        first_is_earlier = year(values[0]) < year(values[1])
        answer = titles[0] if first_is_earlier == earlier else titles[1]
        return _question(kind, text, answer, evidence, earlier=earlier)


def _fits(x: str, y: str, want_same: bool | None) -> bool:
    if want_same is None:
        return year(x) != year(y)
    return (x == y) == want_same


def _question(
    kind: str, text: str, answer: str, evidence: list[list[str]], **more
) -> dict:
    return {
        "question": text,
        "golden_answers": [answer],
        "type": kind,
        "supporting_titles": [title for title, _, _ in evidence],
        "evidence": evidence,
        **more,
    }


def make_questions(
    world: World,
    counts: dict[str, int],
    subjects: set[str],
    seed: int,
    prefix: str,
    asked: Iterable[str] = (),
) -> list[dict]:
    """Different questions of each type that name only entities in `subjects`.

    Args:
        world: what the questions are about.
        counts: type -> how many questions.
        subjects: titles of the world, and of common knowledge.
        seed: the same seed gives the same questions.
        prefix: of the ids, which are "prefix-0000", "prefix-0001", …
        asked: questions that must not come again.

    Returns:
        Shuffled questions with `id`, `question`, `golden_answers`, `type`,
        `supporting_titles`, `evidence` (a list of [title, relation, value]) and, where
        years are compared, `earlier`.

    Raises:
        ValueError: if the world is too small to find that many.
    """
    rng = random.Random(f"questions-{world.seed}-{seed}")
    asker = _Asker(rng, world, subjects)
    seen = set(asked)
    questions: list[dict] = []
    for kind, wanted in counts.items():
        questions += _find_questions(asker, kind, wanted, seen)
    rng.shuffle(questions)
    return [
        {"id": f"{prefix}-{number:04d}", **question}
        for number, question in enumerate(questions)
    ]


def _find_questions(
    asker: _Asker, kind: str, wanted: int, seen: set[str]
) -> list[dict]:
    """`wanted` questions of one type that are not in `seen`, which then holds them."""
    found: list[dict] = []
    tries = 0
    while len(found) < wanted:
        tries += 1
        if tries > 400 * wanted + 10_000:
            raise ValueError(
                f"found {len(found)} of {wanted} {kind} questions:"
                " make the world larger"
            )
        question = getattr(asker, kind)()
        if question is None or question["question"] in seen:
            continue
        if kind in CHAINS and question["golden_answers"][0] in question["question"]:
            continue
        seen.add(question["question"])
        found.append(question)
    return found
