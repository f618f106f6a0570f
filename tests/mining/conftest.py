"""Passages of our own in the style of Wikipedia's first paragraphs, to mine."""

import pytest

from kr1_utils.miniwiki import MEN, SURNAMES

TEXTS = {
    "The Copper Gate": (
        "The Copper Gate is a 1935 French drama film directed by Odile Marchetaux and"
        " starring Paul Arbogast."
    ),
    "Winter Ferry (film)": (
        "Winter Ferry (film) Winter Ferry is a 1951 British comedy film written and"
        " directed by Ned Harrowell. It was shot in Wales."
    ),
    "Odile Marchetaux": (
        "Odile Marchetaux( 3 May 1899 in Vierlan, Alsace – 7 June 1970 in Paris) was"
        " a French film director. She was the daughter of Count Renaud Marchetaux"
        " and his wife Blanche Dorvenne. She lived"
        " in Rome."
    ),
    "Ned Harrowell": (
        "Edward Harrowell (born 12 August 1911), known as Ned, was a British film"
        " director. He was born in Thornleigh, Kent, the son of Arthur Harrowell. He"
        " died on 2 May 1990 in Dover."
    ),
    "Renaud Marchetaux": (
        "Count Renaud Marchetaux (1865–1931) was a French nobleman. He was the eldest"
        " son of Count Gaston Marchetaux and his wife, Irene Lavaudier. He married"
        " Blanche Dorvenne in 1897."
    ),
    "Blanche Dorvenne": (
        "Blanche Dorvenne (4 April 1872 – 1940) was a French painter. She was the"
        " daughter of Baron Hugo Dorvenne and the sister of Klara Dorvenne."
    ),
    "Slow Lantern": '"Slow Lantern" is a song recorded by American singer Ira Tolman.',
    "Ira Tolman": (
        "Ira Tolman (born March 9, 1971 in Millbrook, Ohio) is an American singer."
    ),
    "Orva River": "The Orva River is a river of the Kivu Valley in northern Poland.",
    "Lake Teren": "Lake Teren is a lake in the hills of Ontario.",
}


@pytest.fixture
def passages():
    """A few passages with every kind of fact."""
    return [
        {"id": f"p{number}", "title": title, "text": text}
        for number, (title, text) in enumerate(TEXTS.items())
    ]


@pytest.fixture(scope="session")
def cinema():
    """Passages of 36 films, each with a director of its own."""
    made = []
    adjectives = ("French", "Italian", "American", "Polish")
    for number in range(36):
        name = f"{MEN[number]} {SURNAMES[number]}"
        country = adjectives[number % 4]
        year = 1930 + number
        made.append(
            {
                "id": f"f{number}",
                "title": f"The {SURNAMES[-1 - number]} Letter",
                "text": f"The {SURNAMES[-1 - number]} Letter is a {year} {country} film"
                f" directed by {name}.",
            }
        )
        made.append(
            {
                "id": f"d{number}",
                "title": name,
                "text": f"{name} (3 May {year - 30} – {number % 28 + 1} June"
                f" {year + 20 + number % 9}) was a {country} film director.",
            }
        )
    return made
