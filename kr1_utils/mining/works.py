"""Owns the facts about films, songs and places."""

import re

from kr1_utils.mining.countries import ADJECTIVE, adjective_in, country_in
from kr1_utils.mining.lead import Lead
from kr1_utils.mining.names import bare, key
from kr1_utils.mining.spans import name_at

_FILM = re.compile(
    r"an? (?:[\w-]+ ){0,2}?(?P<year>(?:18|19|20)\d\d) (?P<words>[^.;:()]{0,90}?)"
    r"\b(?:film|movie)\b"
    r"(?! (?:score|festival|soundtrack|series|serial|studio|director|producer|theory))"
)
_NO_FILM = re.compile(
    r"\b(?:of|about|by|for|with|that|which|based|album|song|novel|play|episode|series"
    r"|soundtrack|book|game|short story)\b"
)
_DIRECTED = re.compile(r"\b[Dd]irected(?:,? (?:and )?(?:co-)?\w+){0,4}? by ")
_SAYS_DIRECTED = re.compile(
    r"(?:It|The (?:film|movie|picture)) (?:is|was|has been)"
    r"(?:,? (?:also|both|and|co-written|co-produced|written|produced|edited|filmed))*"
    r",? directed"
    r"|Directed"
)
# Between "film" and "directed", they tell of another film.
_ANOTHER = re.compile(
    r"\b(?:remake|sequel|version|segment|segments|adaptation|films|series|novel|play)\b"
)
_PROFESSION = (
    rf"(?:(?!(?:the|his|her|its|an|both|two|three|brothers|sisters) )"
    rf"(?:{ADJECTIVE} |[a-z][\w-]+(?: and|/)? ))*"
)
_SONG = re.compile(
    r"(?:an?|the) (?:[^.;:()]{0,50}? )?(?:song|single|ballad) "
    r"(?:(?:recorded|performed|sung|released) )?by (?:the )?"
)
_PLACES = {
    "river": "river|tributary|stream|creek",
    "mountain": "mountain|peak|hill|volcano",
    "lake": "lake|reservoir",
    "island": "island|islet",
    "village": "village|town|hamlet|municipality|commune|settlement",
    "school": "school|college|university",
    "company": "company|manufacturer|business",
}


def film(lead: Lead) -> dict[str, str]:
    """What a lead says of a film, {} if it is not of one.

    Returns:
        `release_year`, and any of `director` and `country`, an adjective.
    """
    match = _FILM.match(lead.predicate)
    if not match or _NO_FILM.search(match["words"]):
        return {}
    if not set(key(lead.name).split()) & set(key(bare(lead.title)).split()):
        return {}
    facts = {"release_year": match["year"]}
    country = adjective_in(match["words"])
    if country:
        facts["country"] = country
    director = _director(lead, match.end())
    if director:
        facts["director"] = director
    return facts


def _director(lead: Lead, end_of_film: int) -> str:
    """The one director of a film, "" if there are several or none is told."""
    found = []
    tail = lead.first_sentence[end_of_film:]
    match = _DIRECTED.search(tail)
    if match and not _ANOTHER.search(tail[: match.start()]):
        found.append(_name_behind(tail[match.end() :]))
    for sentence in lead.later_sentences:
        match = _DIRECTED.search(sentence)
        if match and _SAYS_DIRECTED.match(sentence):
            found.append(_name_behind(sentence[match.end() :]))
    names = {name.split()[-1] if name else "" for name in found}
    if "co-direct" in lead.text or len(names) != 1:
        return ""
    # A later sentence may have the surname alone.
    return max(found, key=len)


def _name_behind(text: str) -> str:
    """The name at the start of a text, behind a profession; "" if there are several."""
    text = text[re.match(_PROFESSION, text).end() :]
    name = name_at(text)
    rest = text[len(name) :]
    is_one_of_several = re.match(
        r",? (?:and|&) (?:[A-Z]|his|her)|/|, (?!(?:Jr|Sr)\.)[A-Z]|['’]| [\"“]", rest
    )
    return "" if is_one_of_several else name


def song(lead: Lead) -> dict[str, str]:
    """`performer`, if a lead is that of a song by one performer; else {}."""
    match = _SONG.match(lead.predicate)
    if not match:
        return {}
    behind = lead.predicate[match.end() :]
    if re.search(r"\b(?:band|group|duo|trio|quartet)\b", behind[:60]):
        return {}
    name = _name_behind(behind)
    if not name or re.match(r" (?:featuring|feat|with)\b", behind[len(name) :]):
        return {}
    return {"performer": name}


def place(lead: Lead) -> dict[str, str]:
    """`located_in`, a country, and `kind` of a place; {} for anything else."""
    match = re.match(r"(?:an?|the) ([^.;:()]{0,70})", lead.predicate)
    if not match:
        return {}
    words = re.split(r" (?:in|of|located|near|on|at|within|that|which) ", match[1])[0]
    kinds = [
        kind for kind, nouns in _PLACES.items() if re.search(rf"\b(?:{nouns})$", words)
    ]
    country = country_in(lead.first_sentence)
    if len(kinds) != 1 or not country:
        return {}
    return {"located_in": country, "kind": kinds[0]}
