"""Owns the rule-following expert: what it would say to each question."""


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
