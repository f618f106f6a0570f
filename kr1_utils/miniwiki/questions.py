"""Owns the questions about a fictional world.

Their types follow 2WikiMultihopQA (Ho et al., 2020, https://arxiv.org/abs/2011.01060,
section 2): compositional, comparison, inference, bridge_comparison; `single` stands
beside them.
"""

import random
from collections.abc import Callable

from kr1_utils.miniwiki.world import _WORDS, World, year

MULTI_HOP = ("compositional", "comparison", "inference", "bridge_comparison")
NO_ANSWER = "no answer"

# Questions about one fact of {x}, which is a title, or a phrase such as "the director
# of film F".
ASK: dict[str, list[str]] = _WORDS["ask"]

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
