"""Owns the wording of mined questions, in the ways 2WikiMultihopQA asks its own."""

import re

# Relation -> questions about that fact of {x}: a title, or a phrase of BRIDGES.
ASK: dict[str, list[str]] = {
    "birth_place": ["Where was {x} born?", "What is the place of birth of {x}?"],
    "death_place": [
        "Where did {x} die?",
        "Where was the place of death of {x}?",
        "What is the place of death of {x}?",
    ],
    "birth_date": [
        "When was {x} born?",
        "What is the date of birth of {x}?",
        "When is {x}'s birthday?",
    ],
    "death_date": ["When did {x} die?", "What is the date of death of {x}?"],
    "nationality": ["What nationality is {x}?", "What is the nationality of {x}?"],
    "citizenship": ["Which country {x} is from?", "Which country is {x} from?"],
    "father": ["Who is the father of {x}?", "Who is {x}'s father?"],
    "mother": ["Who is the mother of {x}?", "Who is {x}'s mother?"],
    "spouse": ["Who is the spouse of {x}?", "Who is {x} married to?"],
    "director": ["Who is the director of film {x}?", "Who directed the film {x}?"],
    "performer": ["Who is the performer of song {x}?", "Who performed the song {x}?"],
    "release_year": [
        "In which year was the film {x} released?",
        "When did the film {x} come out?",
    ],
}

# Relation -> what to call the person in a question about {x}.
BRIDGES: dict[str, list[str]] = {
    "director": ["the director of film {x}"],
    "performer": ["the performer of song {x}"],
    "father": ["{x}'s father", "the father of {x}"],
    "mother": ["{x}'s mother", "the mother of {x}"],
    "husband": ["{x}'s husband", "the husband of {x}"],
    "wife": ["{x}'s wife", "the wife of {x}"],
}

# What no passage states -> the two facts that it is made of, and the gender of the one
# who is asked for.
KIN: dict[str, tuple[str, str, str]] = {
    "paternal grandfather": ("father", "father", ""),
    "paternal grandmother": ("father", "mother", ""),
    "maternal grandfather": ("mother", "father", ""),
    "maternal grandmother": ("mother", "mother", ""),
    "father-in-law": ("spouse", "father", ""),
    "mother-in-law": ("spouse", "mother", ""),
    "sibling-in-law": ("spouse", "sibling", ""),
    "sister-in-law": ("sibling", "spouse", "f"),
    "brother-in-law": ("sibling", "spouse", "m"),
    "uncle": ("father", "sibling", "m"),
    "aunt": ("father", "sibling", "f"),
}
ASK_KIN = ["Who is {x}'s {kin}?", "Who is the {kin} of {x}?"]

# What is compared -> [question, whether the smaller value wins].
COMPARE: dict[str, list[tuple[str, bool]]] = {
    "birth_date": [
        ("Who was born first, {a} or {b}?", True),
        ("Who was born first out of {a} and {b}?", True),
        ("Was {a} or {b} born first?", True),
        ("Who was born earlier, {a} or {b}?", True),
        ("Who is older, {a} or {b}?", True),
        ("Who was born later, {a} or {b}?", False),
        ("Who is younger, {a} or {b}?", False),
    ],
    "death_date": [
        ("Who died first, {a} or {b}?", True),
        ("Who died earlier, {a} or {b}?", True),
        ("Who died later, {a} or {b}?", False),
    ],
    "lifespan": [("Who lived longer, {a} or {b}?", False)],
    "release_year": [
        ("Which film came out first, {a} or {b}?", True),
        ("Which film came out earlier, {a} or {b}?", True),
        ("Which film was released first, {a} or {b}?", True),
        ("Which film was released earlier, {a} or {b}?", True),
        ("Which film was released more recently, {a} or {b}?", False),
    ],
}

# The same of films, by their directors.
COMPARE_DIRECTORS: dict[str, list[tuple[str, bool]]] = {
    "birth_date": [
        ("Which film has the director who was born first, {a} or {b}?", True),
        ("Which film has the director who was born earlier, {a} or {b}?", True),
        ("Which film has the director born earlier, {a} or {b}?", True),
        ("Which film has the director born first, {a} or {b}?", True),
        ("Which film whose director was born first, {a} or {b}?", True),
        ("Which film has the director who is older, {a} or {b}?", True),
        ("Which film has the director who is older than the other, {a} or {b}?", True),
        ("Which film has the director who was born later, {a} or {b}?", False),
        ("Which film has the director born later, {a} or {b}?", False),
        ("Which film whose director is younger, {a} or {b}?", False),
    ],
    "death_date": [
        ("Which film has the director who died first, {a} or {b}?", True),
        ("Which film has the director who died earlier, {a} or {b}?", True),
        ("Which film has the director died earlier, {a} or {b}?", True),
        ("Which film has the director died first, {a} or {b}?", True),
        ("Which film has the director who died later, {a} or {b}?", False),
        ("Which film has the director died later, {a} or {b}?", False),
    ],
}

# Whether two are of one country.
SAME_OF_PERSONS = [
    "Do {a} and {b} share the same nationality?",
    "Do {a} and {b} have the same nationality?",
    "Are {a} and {b} of the same nationality?",
    "Are {a} and {b} both from the same country?",
]
SAME_OF_FILMS = [
    "Are {a} and {b} both from the same country?",
    "Are the movies {a} and {b}, from the same country?",
    "Did the movies {a} and {b}, originate from the same country?",
    "Do the movies {a} and {b}, originate from the same country?",
]
SAME_OF_PLACES = [
    "Are {a} and {b} located in the same country?",
    "Are {a} and {b} both located in the same country?",
]
SAME_OF_DIRECTORS = [
    "Are director of film {a} and director of film {b} both from the same country?",
    "Are both director of film {a} and director of film {b} from the same country?",
    "Do director of film {a} and director of film {b} share the same nationality?",
    "Do director of film {a} and director of film {b} have the same nationality?",
    "Do both directors of films {a} and {b} have the same nationality?",
    "Do both films {a} and {b} have the directors from the same country?",
    "Do both films {a} and {b} have the directors that share the same nationality?",
    "Are the directors of both films {a} and {b} from the same country?",
]


def words_of_wording() -> set[str]:
    """All words of the forms, in lower case."""
    forms = [*ASK_KIN, *SAME_OF_PERSONS, *SAME_OF_FILMS, *SAME_OF_PLACES]
    forms += SAME_OF_DIRECTORS
    for part in (ASK, BRIDGES):
        forms += [form for several in part.values() for form in several]
    for compared in (COMPARE, COMPARE_DIRECTORS):
        forms += [form for several in compared.values() for form, _ in several]
    text = re.sub(r"\{\w+\}", " ", " ".join([*forms, *KIN]))
    return set(re.findall(r"[a-z]+", text.lower()))
