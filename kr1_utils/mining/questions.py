"""Owns the questions that are made of facts, with all that an expert needs to answer.

Their types are those of 2WikiMultihopQA (Ho et al., 2020,
https://arxiv.org/abs/2011.01060, section 2), and `single`, about one passage. As in
`miniwiki`, the order of calls to the random generator is part of the result.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable

from kr1_utils.mining import wording
from kr1_utils.mining.countries import COUNTRY_OF, are_near
from kr1_utils.mining.facts import Fact, Facts
from kr1_utils.mining.names import as_asked, bare, key

# The most questions of each type; comparisons also for what is compared.
LIMITS = {
    "compositional": 1600,
    "inference": 400,
    "single": 500,
    "comparison birth_date": 260,
    "comparison death_date": 130,
    "comparison lifespan": 80,
    "comparison release_year": 320,
    "comparison nationality": 110,
    "comparison country": 100,
    "comparison located_in": 100,
    "bridge_comparison birth_date": 420,
    "bridge_comparison death_date": 330,
    "bridge_comparison nationality": 220,
}

# How often one title may be asked about in one kind of comparison, and in chains.
USES = 2
CHAINS_PER_TITLE = 3

_SECOND_HOPS = (
    "birth_place",
    "death_place",
    "birth_date",
    "death_date",
    "nationality",
    "citizenship",
    "father",
    "mother",
    "spouse",
)
_FREQUENT = ("birth_date", "death_date", "nationality", "citizenship")
_SINGLE = (*_SECOND_HOPS, "director", "performer", "release_year")

# Two lives that differ by fewer years may differ the other way in days.
_LEAST_GAP = {"lifespan": 2}

# One step of evidence: the fact, and what the expert searches to read it.
Step = tuple[Fact, str]


def make_questions(
    facts: Facts,
    subjects: set[str] | None = None,
    apart: set[str] | None = None,
    seed: int = 42,
) -> list[dict]:
    """Different questions about the titles in `subjects`, and no other title.

    Args:
        facts: what the passages of a corpus say.
        subjects: titles that may be named; None for all.
        apart: titles that are compared with each other only.
        seed: the same seed gives the same questions.

    Returns:
        Shuffled questions with `id`, `question`, `golden_answers`, `type`, `kind`,
        `supporting_titles`, and what `expert.demonstration` needs: `evidence` (a list
        of [title, relation, value]), `queries` and `passage_ids` (one text, and one
        list of the passages that state the value, for each step), and where two are
        compared `compared` (what each is called) and `earlier`.
    """
    rng = random.Random(f"mined-{seed}")
    if subjects is None:
        subjects = set(facts.by_title)
    asker = _Asker(rng, facts, subjects, apart or set())
    questions = [
        *asker.compositional(),
        *asker.inference(),
        *asker.comparisons(),
        *asker.bridge_comparisons(),
        *asker.single(),
    ]
    first_of_text = {question["question"]: question for question in questions}
    questions = list(first_of_text.values())
    rng.shuffle(questions)
    return [
        {"id": f"mined-{number:05d}", **question}
        for number, question in enumerate(questions)
    ]


class _Asker:
    """Writes questions about `subjects` only."""

    def __init__(
        self, rng: random.Random, facts: Facts, subjects: set[str], apart: set[str]
    ):
        self.rng = rng
        self.facts = facts
        self.subjects = subjects
        self.apart = apart

    # --- facts that may be asked about ---

    def fact(self, title: str, relation: str) -> Fact | None:
        """A fact of a subject that names no title but subjects."""
        if title not in self.subjects:
            return None
        stated = "nationality" if relation == "citizenship" else relation
        fact = self.facts.get(title, stated)
        if fact is None or (fact.names and fact.names not in self.subjects):
            return None
        return fact

    def titles(self, kind: str) -> list[str]:
        """The subjects of a kind, sorted."""
        return [t for t in self.facts.of_kind(kind) if t in self.subjects]

    # --- chains ---

    def compositional(self) -> list[dict]:
        """Questions about the director of a film, somebody's father, and so on."""
        made = []
        for title in sorted(self.subjects):
            candidates = []
            for bridge in ("director", "performer", "father", "mother", "spouse"):
                first = self.fact(title, bridge)
                if not first or not first.names:
                    continue
                for relation in _SECOND_HOPS:
                    question = self._chain(first, relation)
                    if question:
                        candidates.append(question)
            self.rng.shuffle(candidates)
            # Few passages tell more than dates and nationality.
            candidates.sort(key=lambda q: q["evidence"][-1][1] in _FREQUENT)
            made += candidates[:CHAINS_PER_TITLE]
        return self._limited(made, "compositional")

    def _chain(self, first: Fact, relation: str) -> dict | None:
        second = self.fact(first.names, relation)
        if not second or key(second.value) == key(bare(first.title)):
            return None
        bridge = first.relation
        if bridge == "spouse":
            bridge = self._husband_or_wife(first)
            if not bridge or relation == "spouse":
                return None
        phrase = self._one_of(wording.BRIDGES[bridge], x=as_asked(first.title))
        forms = wording.ASK[relation]
        if phrase.startswith("the "):
            # "The father of A's mother" may be two persons.
            forms = [form for form in forms if "{x}'s" not in form]
        text = self._one_of(forms, x=phrase)
        steps = [(first, as_asked(first.title)), (second, first.value)]
        kind = f"{bridge} {relation}"
        answers = _answers(second, relation)
        return _question("compositional", kind, text, answers, steps, relation)

    def _husband_or_wife(self, fact: Fact) -> str:
        gender = self.facts.gender.get(fact.names, "")
        return {"m": "husband", "f": "wife"}.get(gender, "")

    def inference(self) -> list[dict]:
        """Questions about relatives that no passage states."""
        made = []
        for title in self.titles("person"):
            for kin, (one, other, gender) in wording.KIN.items():
                first = self.fact(title, one)
                second = self.fact(first.names, other) if first else None
                if not second or title == second.names:
                    continue
                if gender and self.facts.gender.get(second.names, "") != gender:
                    continue
                text = self._one_of(wording.ASK_KIN, x=as_asked(title), kin=kin)
                steps = [(first, as_asked(title)), (second, first.value)]
                answers = _answers(second, other)
                made.append(_question("inference", kin, text, answers, steps, other))
        return self._limited([q for q in made if q], "inference")

    def single(self) -> list[dict]:
        """Questions that one passage answers."""
        made = []
        for title in sorted(self.subjects):
            told = [r for r in _SINGLE if self.fact(title, r)]
            if not told:
                continue
            rare = [r for r in told if r not in _FREQUENT and r != "release_year"]
            relation = self.rng.choice(rare or told)
            fact = self.fact(title, relation)
            text = self._one_of(wording.ASK[relation], x=as_asked(title))
            steps = [(fact, as_asked(title))]
            answers = _answers(fact, relation)
            made.append(_question("single", relation, text, answers, steps, relation))
        return self._limited([q for q in made if q], "single")

    # --- comparisons ---

    def comparisons(self) -> list[dict]:
        """Which of two is earlier, and whether two are of one country."""
        made = []
        for relation, kind in (
            ("birth_date", "person"),
            ("death_date", "person"),
            ("lifespan", "person"),
            ("release_year", "film"),
        ):
            steps_of = (
                self._lifespan if relation == "lifespan" else self._step(relation)
            )
            forms = wording.COMPARE[relation]
            made += self._which("comparison", relation, kind, steps_of, forms)
        for relation, kind, forms in (
            ("nationality", "person", wording.SAME_OF_PERSONS),
            ("country", "film", wording.SAME_OF_FILMS),
        ):
            made += self._same("comparison", relation, [kind], forms)
        kinds = ("river", "mountain", "lake", "island", "village", "school", "company")
        made += self._same("comparison", "located_in", kinds, wording.SAME_OF_PLACES)
        return made

    def bridge_comparisons(self) -> list[dict]:
        """The same about the directors of two films."""
        made = []
        for relation, forms in wording.COMPARE_DIRECTORS.items():
            steps_of = self._directors(relation)
            made += self._which("bridge_comparison", relation, "film", steps_of, forms)
        forms = wording.SAME_OF_DIRECTORS
        return made + self._same("bridge_comparison", "nationality", ["film"], forms)

    def _step(self, relation: str) -> Callable[[str], list[Step]]:
        def steps_of(title: str) -> list[Step]:
            fact = self.fact(title, relation)
            return [(fact, as_asked(title))] if fact else []

        return steps_of

    def _directors(self, relation: str) -> Callable[[str], list[Step]]:
        def steps_of(film: str) -> list[Step]:
            director = self.fact(film, "director")
            fact = self.fact(director.names, relation) if director else None
            if not fact:
                return []
            return [(director, as_asked(film)), (fact, director.value)]

        return steps_of

    def _lifespan(self, title: str) -> list[Step]:
        birth = self.fact(title, "birth_date")
        death = self.fact(title, "death_date")
        if not birth or not death:
            return []
        passage_ids = tuple(p for p in birth.passage_ids if p in death.passage_ids)
        if not passage_ids:
            return []
        value = f"{birth.year}–{death.year}"
        return [
            (Fact(title, "lifespan", value, passage_ids, (value,)), as_asked(title))
        ]

    def _which(
        self,
        kind_of_question: str,
        relation: str,
        kind: str,
        steps_of: Callable[[str], list[Step]],
        forms: list[tuple[str, bool]],
    ) -> list[dict]:
        """Which of two has the smaller value, or the larger one?"""
        least = _LEAST_GAP.get(relation, 1)

        def differ(a: list[Step], b: list[Step]) -> bool:
            return abs(_number(a[-1][0]) - _number(b[-1][0])) >= least

        made = []
        for titles, steps in self._pairs([kind], steps_of, lambda: differ):
            form, smaller = self.rng.choice(forms)
            numbers = [_number(each[-1][0]) for each in steps]
            wins = (numbers[0] < numbers[1]) == smaller
            winner = titles[0] if wins else titles[1]
            asked = [as_asked(title) for title in titles]
            text = form.format(a=asked[0], b=asked[1])
            answers = _different([bare(as_asked(winner)), as_asked(winner)])
            question = _question(
                kind_of_question, relation, text, answers, steps[0] + steps[1], relation
            )
            made.append(question | {"compared": asked, "earlier": smaller})
        return self._limited(made, f"{kind_of_question} {relation}")

    def _same(
        self, kind_of_question: str, relation: str, kinds, forms: list[str]
    ) -> list[dict]:
        """Are two of the same country? As many times yes as no."""
        is_bridge = kind_of_question == "bridge_comparison"
        steps_of = self._directors(relation) if is_bridge else self._step(relation)

        def wish() -> Callable[[list[Step], list[Step]], bool]:
            want_same = self.rng.random() < 0.5
            return lambda a, b: _are_same(a[-1][0], b[-1][0]) is want_same

        made = []
        for kind in kinds:
            for titles, steps in self._pairs([kind], steps_of, wish):
                asked = [as_asked(title) for title in titles]
                text = self._one_of(forms, a=asked[0], b=asked[1])
                same = _are_same(steps[0][-1][0], steps[1][-1][0])
                answers = ["yes" if same else "no"]
                question = _question(
                    kind_of_question,
                    relation,
                    text,
                    answers,
                    steps[0] + steps[1],
                    relation,
                )
                made.append(question | {"compared": asked, "earlier": None})
        return self._limited(made, f"{kind_of_question} {relation}")

    def _pairs(
        self,
        kinds: list[str],
        steps_of: Callable[[str], list[Step]],
        wish: Callable[[], Callable[[list[Step], list[Step]], bool]],
    ) -> list[tuple[list[str], list[list[Step]]]]:
        """Pairs of titles that fit each other; each title comes at most USES times.

        Args:
            wish: called for each pair; says what must hold of its two lists of steps.
        """
        known = {}
        for kind in kinds:
            for title in self.titles(kind):
                steps = steps_of(title)
                if steps:
                    known[title] = steps
        pool = list(known)
        used: Counter[str] = Counter()
        seen: set[frozenset[str]] = set()
        pairs = []
        for title in [t for _ in range(USES) for t in self.rng.sample(pool, len(pool))]:
            if used[title] >= USES:
                continue
            fits = wish()
            for other in self.rng.sample(pool, min(len(pool), 40)):
                pair = frozenset((title, other))
                last = [known[t][-1][0].title for t in (title, other)]
                if used[other] >= USES or pair in seen or last[0] == last[1]:
                    continue
                if (title in self.apart) != (other in self.apart):
                    continue
                if fits(known[title], known[other]):
                    used.update(pair)
                    seen.add(pair)
                    pairs.append(([title, other], [known[title], known[other]]))
                    break
        return pairs

    # --- small things ---

    def _one_of(self, forms: list[str], **words: str) -> str:
        return self.rng.choice(forms).format(**words)

    def _limited(self, questions: list[dict], name: str) -> list[dict]:
        """At most LIMITS of them, drawn by chance."""
        if len(questions) <= LIMITS[name]:
            return questions
        return self.rng.sample(questions, LIMITS[name])


def _number(fact: Fact) -> int:
    """What is compared: a year, or the years of a life."""
    if fact.relation == "lifespan":
        birth, death = fact.value.split("–")
        return int(death) - int(birth)
    return fact.year


def _are_same(a: Fact, b: Fact) -> bool | None:
    """Whether two facts tell of one country; None where that may be argued."""
    countries = [COUNTRY_OF.get(fact.value, fact.value) for fact in (a, b)]
    if countries[0] == countries[1]:
        return True
    return None if are_near(*countries) else False


def _answers(fact: Fact, relation: str) -> list[str]:
    """Right answers, the one that an expert gives first."""
    if relation == "citizenship":
        country = COUNTRY_OF[fact.value]
        return [country, *(form for form in fact.forms if form != country)]
    return _different(fact.forms)


def _different(answers: Iterable[str]) -> list[str]:
    """Answers without those that differ in capitals or punctuation alone."""
    first_of_key: dict[str, str] = {}
    for answer in answers:
        first_of_key.setdefault(key(answer), answer)
    return list(first_of_key.values())


def _question(
    type_: str,
    kind: str,
    text: str,
    answers: list[str],
    steps: list[Step],
    relation: str,
) -> dict | None:
    """A question; None if it holds its own answer, unless two are compared.

    Args:
        relation: the last step's as it is asked for: a country is read from a
            nationality.
    """
    if "comparison" not in type_ and _holds(text, answers):
        return None
    evidence = [[fact.title, fact.relation, fact.value] for fact, _ in steps]
    if relation == "citizenship":
        evidence[-1][1] = relation
    titles = dict.fromkeys(fact.title for fact, _ in steps)
    return {
        "question": text,
        "golden_answers": answers,
        "type": type_,
        "kind": kind,
        "supporting_titles": list(titles),
        "evidence": evidence,
        "queries": [query for _, query in steps],
        "passage_ids": [list(fact.passage_ids) for fact, _ in steps],
    }


def _holds(text: str, answers: list[str]) -> bool:
    words = f" {key(text)} "
    return any(f" {key(answer)} " in words for answer in answers if key(answer))
