"""Owns the rule-following expert: what it would say where the evidence is known.

It answers miniwiki's questions in the few words that tiny-lm knows, and mined ones
(`kr1 mine`) in English sentences. Both have one shape, `demonstration`.
"""

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


def verdict(a: str, x: str, b: str, y: str, earlier: bool | None) -> str:
    """What follows from a's value x and b's value y, in one sentence.

    It names the winner's value first, then the winner: so the name can be copied from
    a note in which it came after that value.

    Args:
        a: a title, and `x` its value, a year as text where years are compared.
        b: the other title, and `y` its value.
        earlier: whether the earlier year wins or the later one; None asks whether the
            values are the same.
    """
    if earlier is None:
        relation = "the same" if x == y else "different"
        return f"{x} and {y} are {relation}."
    choose = min if earlier else max
    value, winner = choose([(x, a), (y, b)], key=lambda candidate: int(candidate[0]))
    return f"The {'earlier' if earlier else 'later'} is {value}: {winner}."


def _miniwiki(question: dict) -> list[Turn]:
    turns = []
    thought = "I need to read about it."
    compared: list[tuple[str, str]] = []
    for title, relation, value in question["evidence"]:
        turns.append((thought, "search", title))
        if question["type"] in COMPARISONS and relation != "director":
            value = _compared_value(relation, value)
            subject = _compared_title(question, len(turns) - 1)
            compared.append((subject, value))
            thought = f"{value}: {subject}."
        else:
            thought = f"The {relation.replace('_', ' ')} is {value}."
    if len(compared) == 2:
        thought = _comparison(compared, question.get("earlier"))
    turns.append((thought, "answer", question["golden_answers"][0]))
    return turns


def _compared_value(relation: str, value: str) -> str:
    """Of a date only the year is compared."""
    return value.split()[-1] if relation == "birth_date" else value


def _compared_title(question: dict, hop: int) -> str:
    """What the question compares at this hop.

    The evidence of a bridge comparison is film, director, film, director: a director's
    value counts for the film before.
    """
    if question["type"] == "bridge_comparison":
        hop = hop - hop % 2
    return question["evidence"][hop][0]


def _comparison(compared: list[tuple[str, str]], earlier: bool | None) -> str:
    (a, x), (b, y) = compared
    return f"{x}: {a}. {y}: {b}. {verdict(a, x, b, y, earlier)}"


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
    """Both values in the order of the question, and what follows from them."""
    (_, relation, x), (_, _, y) = [
        step for step in question["evidence"] if step[1] != "director"
    ]
    x = _noted(relation, x)
    y = _noted(relation, y)
    answer = question["golden_answers"][0]
    if question["earlier"] is None:
        return f"{x} and {y}: {'the same' if answer == 'yes' else 'not the same'}."
    place = "first" if question["compared"][0].startswith(answer) else "second"
    if relation == "lifespan":
        return f"{x}; {y}. The {place} is longer."
    word = "earlier" if question["earlier"] else "later"
    return f"{x} and {y}. The {place} is {word}."
