"""Owns the rule-following expert: what it would say to each question of miniwiki."""

COMPARISONS = ("comparison", "bridge_comparison")


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


def demonstration(question: dict) -> list[tuple[str, str, str]]:
    """What a patient expert would say to a question of miniwiki.

    The expert searches each title of the evidence in turn, notes what it read, and
    answers.

    Args:
        question: with `type`, `golden_answers` and `evidence`, a list of [title,
            relation, value]; of a comparison of years also `earlier`.

    Returns:
        One (thought, "search" or "answer", content) per turn.
    """
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
