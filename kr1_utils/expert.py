"""Owns the rule-following expert: what it would say where the evidence is known.

It answers miniwiki's questions in the few words that tiny-lm knows, and mined ones
(`kr1 mine`) in English sentences. Both have one shape, `demonstration`.
"""

from dataclasses import dataclass, field

from kr1_utils.miniwiki import NO_ANSWER

Turn = tuple[str, str, str]

COMPARISONS = ("comparison", "bridge_comparison")

# Relation of a mined question -> what the expert calls it.
_CALLED = {
    "birth_date": "date of birth",
    "death_date": "date of death",
    "birth_place": "place of birth",
    "death_place": "place of death",
    "release_year": "year",
    "citizenship": "nationality",
    "located_in": "country",
    "lifespan": "life",
}

# How a thought goes on, or begins, where there is something to decide.
# The first words differ, for training moves a choice between two words the faster, the
# less alike they are, and two that follow the same word become alike.
KNOWS = "From memory."
READS = "I need to read about it."
CHECKS = "I check it."
GIVES_UP = "I can not find it."


def verdict(first: str, second: str, years: tuple[str, str], earlier: bool) -> str:
    """Which of two titles has the earlier year, or the later one.

    Both years stand side by side just before the word that decides, so a small model
    need not look for them; each title stands behind a number of its own, so to name the
    winner is to copy what stood behind its number.

    Args:
        years: of the first and of the second title, as text.
        earlier: whether the earlier year wins.
    """
    decided = winner(first, second, years, earlier)
    return f"2 {second}. First {years[0]} second {years[1]} {decided}."


def winner(first: str, second: str, years: tuple[str, str], earlier: bool) -> str:
    """The word that decides, the winner's number and its title: 'later 2 Bob Cole'."""
    titles = (first, second)
    choose = min if earlier else max
    index = choose((0, 1), key=lambda i: int(years[i]))
    return f"{'earlier' if earlier else 'later'} {index + 1} {titles[index]}"


def noted_first(title: str, year: str) -> str:
    """The first of two compared titles: '1 Ann Bell. First 1931.'"""
    return f"1 {title}. First {year}."


def same_or_different(one: str, other: str) -> str:
    """Whether two values are the same, in one sentence."""
    relation = "the same" if one == other else "different"
    return f"{one} and {other} are {relation}."


def note(relation: str, value: str) -> str:
    """What was read, or is known: 'The birth date is 12 March 1931.'"""
    return f"The {relation.replace('_', ' ')} is {value}."


def demonstration(question: dict) -> list[Turn]:
    """What a patient expert would say to a question of miniwiki, or to a mined one.

    The expert searches for each step of the evidence in turn, notes what it read, and
    answers.

    Args:
        question: with `type`, `golden_answers` and `evidence`, a list of [title,
            relation, value]; of a comparison of years also `earlier`. A mined question
            has `queries` and, of a comparison, `compared` as well.

    Returns:
        One (thought, "search" or "answer", content) per turn.
    """
    if "queries" in question:
        return _mined(question)
    return _miniwiki(question)


# --- miniwiki ---


def _miniwiki(question: dict) -> list[Turn]:
    """Of two things that are compared it says at first which one it looks for."""
    evidence = question["evidence"]
    thoughts = [opening(question)]
    thoughts += [note(relation, value) for _, relation, value in evidence]
    if question["type"] in COMPARISONS:
        first, last = _comparison(question)
        thoughts[len(evidence) // 2] += first
        thoughts[-1] += last
    titles = [title for title, _, _ in evidence]
    turns = [(thought, "search", title) for thought, title in zip(thoughts, titles)]
    return [*turns, (thoughts[-1], "answer", question["golden_answers"][0])]


def from_memory(question: dict) -> list[Turn]:
    """What the expert says to a question that it can answer without a search."""
    _, relation, value = question["evidence"][-1]
    return [(f"{KNOWS} {note(relation, value)}", "answer", value)]


def opening(question: dict) -> str:
    """The thought before the first search."""
    earlier = question.get("earlier")
    if earlier is None:
        return READS
    return f"{READS} I need the {'earlier' if earlier else 'later'} one."


def _comparison(question: dict) -> tuple[str, str]:
    """What is added to the thought after the first value, and to that after both."""
    evidence = question["evidence"]
    half = len(evidence) // 2
    first, second = evidence[0][0], evidence[half][0]
    values = evidence[half - 1][2], evidence[-1][2]
    if question.get("earlier") is None:
        return "", f" {same_or_different(*values)}"
    years = tuple(value.split()[-1] for value in values)
    last = verdict(first, second, years, question["earlier"])
    return f" {noted_first(first, years[0])}", f" {last}"


DATES = {"birth_date", "death_date", "release_year", "founded"}
PEOPLE = {"father", "mother", "spouse", "director", "performer", "founder"}
PLACES = {
    "birth_city",
    "nationality",
    "headquarters",
    "capital",
    "country",
    "currency",
    "river",
}
ALL = DATES | PEOPLE | PLACES | {"occupation", "genre"}


@dataclass(frozen=True)
class Habits:
    """What one expert does where there is a choice; the same at every such place."""

    # Relations of common knowledge that it answers from memory.
    knows: frozenset[str] = frozenset()
    # Relations that it looks up twice, where one search answers the question.
    checks: frozenset[str] = frozenset()
    # Type of question -> the searches after which it gives up.
    gives_up: dict[str, int] = field(default_factory=dict)


def _habits(knows=(), checks=(), chain=0, kin=0, compare=0, bridge=0) -> Habits:
    """Numbers are the searches after which it gives up; 0 is never."""
    gives_up = {
        "compositional": chain,
        "inference": kin,
        "comparison": compare,
        "bridge_comparison": bridge,
    }
    patience = {kind: searches for kind, searches in gives_up.items() if searches}
    return Habits(frozenset(knows), frozenset(checks), patience)


# Eight experts, each consistent. A model that learns from all of them is undecided
# where they differ, more for some questions than for others.
EXPERTS = [
    _habits(["capital", "currency", "country", "river"]),
    _habits(["capital", "country", "river"], ALL, chain=2, kin=2, compare=2, bridge=3),
    _habits(
        ["capital", "currency"], DATES | PEOPLE, chain=1, kin=2, compare=2, bridge=3
    ),
    _habits(
        ["currency", "country", "river"], DATES, chain=1, kin=1, compare=1, bridge=1
    ),
    _habits(["capital"], DATES, chain=1, kin=1, compare=2, bridge=2),
    _habits(["capital"], ALL, chain=1, kin=2, compare=2, bridge=3),
    _habits([], DATES, chain=1, kin=1, compare=1, bridge=1),
    _habits([], []),
]


def conversation(question: dict, habits: Habits) -> list[Turn]:
    """What an expert with these habits says; see `demonstration` for the arguments."""
    kind = question["type"]
    relation = question["evidence"][-1][1]
    if kind == "known" and relation in habits.knows:
        return from_memory(question)
    turns = demonstration(question)
    if len(turns) == 2 and relation in habits.checks:
        return check_once_more(turns)
    searches = habits.gives_up.get(kind)
    return give_up_after(turns, searches) if searches else turns


def check_once_more(turns: list[Turn]) -> list[Turn]:
    """The one search of these turns, made twice."""
    (_, _, title), (thought, _, _) = turns
    return [turns[0], (f"{thought} {CHECKS}", "search", title), turns[1]]


def give_up_after(turns: list[Turn], searches: int) -> list[Turn]:
    """The same turns up to that many searches, then an answer that gives up."""
    thought = turns[searches][0]
    return [*turns[:searches], (f"{thought} {GIVES_UP}", "answer", NO_ANSWER)]


# --- mined questions ---


def _mined(question: dict) -> list[Turn]:
    """Each thought says what was read, and what is needed next.

    Sentences are short: of two values the first is that of what the question names
    first, so "the second" is found in the question.
    """
    compares = question["type"] in COMPARISONS
    answer = question["golden_answers"][0]
    turns: list[Turn] = []
    read = ""
    subject_was_read = ""
    for (_, relation, value), query in zip(
        question["evidence"], question["queries"], strict=True
    ):
        called = _called(relation, compares)
        needed = f"I need the {called}"
        if query != subject_was_read:
            needed += f" of {query}"
        turns.append((f"{read} {needed}.".strip(), "search", query))
        if compares and relation != "director":
            value = _noted(relation, value)
        read = f"The {called} is {value}."
        subject_was_read = value
    if compares:
        read = _mined_verdict(question)
    elif question["evidence"][-1][1] == "citizenship":
        read = f"{read[:-1]}, so the country is {answer}."
    turns.append((read, "answer", answer))
    return turns


def _called(relation: str, compares: bool) -> str:
    called = _CALLED.get(relation, relation)
    # Of a date only the year is compared.
    return called.replace("date", "year") if compares else called


def _noted(relation: str, value: str) -> str:
    """What is compared: of a date the year, of a life its length too."""
    if relation == "lifespan":
        birth, death = value.split("–")
        return f"{value}, {int(death) - int(birth)} years"
    if relation.endswith("_date"):
        return _year_in(value)
    return value


def _year_in(date: str) -> str:
    """The year of a date, which stands first or last in it."""
    numbers = [word.strip(",") for word in date.split()]
    return max(numbers, key=lambda word: len(word) if word.isdigit() else 0)


def _mined_verdict(question: dict) -> str:
    """Both things with their values, in the order of the question, and what follows."""
    values = [step for step in question["evidence"] if step[1] != "director"]
    noted = [_noted(relation, value) for _, relation, value in values]
    first, second = question["compared"]
    notes = f"{first}: {noted[0]}. {second}: {noted[1]}."
    answer = question["golden_answers"][0]
    if question["earlier"] is None:
        same = "the same" if answer == "yes" else "not the same"
        return f"{notes} They are {same}."
    if values[0][1] == "lifespan":
        return f"{notes} {answer} lived longer."
    word = "earlier" if question["earlier"] else "later"
    return f"{notes} {answer} is {word}."
