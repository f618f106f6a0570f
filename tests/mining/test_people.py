"""Persons: dates and places of a bracket, places that are told, nationality."""

import pytest

from kr1_utils.mining import people
from kr1_utils.mining.lead import lead
from kr1_utils.mining.spans import Date


def told(bracket):
    """What a bracket says, dates as text."""
    return {
        relation: value.text if isinstance(value, Date) else value
        for relation, value in people.life(bracket).items()
    }


def read(text, title="Ann Dorn"):
    return lead({"id": "1", "title": title, "text": text})


@pytest.mark.parametrize(
    "bracket, birth, death",
    [
        ("3 May 1921 – 7 June 1999", "3 May 1921", "7 June 1999"),
        ("; May 3, 1921 – June 7, 1999", "May 3, 1921", "June 7, 1999"),
        ("née Hale; 3 May 1921 – 1999", "3 May 1921", "1999"),
        ("born 3 May 1921", "3 May 1921", None),
        ("b. 1921", "1921", None),
        ("died 7 June 999", None, "7 June 999"),
        ("1921–1999", "1921", "1999"),
        ("c. 1921 – 7 June 1999", None, "7 June 1999"),
        ("1921 – c.1999", "1921", None),
        ("~1921–1999", None, "1999"),
        ("born 1921/1922", None, None),
        ("reigned 1921 – 1999", None, None),
        ("1921 – 2099", None, None),
        ("185 – 150 BC", None, None),
        ("1921", None, None),
    ],
)
def test_dates_are_read_only_where_they_are_sure(bracket, birth, death):
    found = told(bracket)
    assert found.get("birth_date") == birth
    assert found.get("death_date") == death


@pytest.mark.parametrize(
    "bracket, birth, death",
    [
        ("1 May 1797 in Vierlan (now Dorn), Silesia – 2 May 1855 in Pest",)
        + ("Vierlan, Silesia", "Pest"),
        ("Chicago, 4 May 1915 – Los Angeles, 31 March 1979", "Chicago", "Los Angeles"),
        ("6 June 1906, Graz – 2 May 1994", "Graz", None),
        ("born in Rome on 4 May 1915", "Rome", None),
        ("born 5 May 1908 in Bonn, Germany; died 2 May 1980 in Kiel",)
        + ("Bonn, Germany", "Kiel"),
        ("Ernst Hale, 6 June 1906 – 2 May 1994", None, None),
        ("6 June 1906 – 2 May 1994, aged 87", None, None),
        ("6 June 1906 – 2 May 1994, Auschwitz", None, None),
    ],
)
def test_places_of_a_bracket_are_not_taken_for_other_names(bracket, birth, death):
    found = told(bracket)
    assert found.get("birth_place") == birth
    assert found.get("death_place") == death


@pytest.mark.parametrize(
    "sentence, birth, death",
    [
        ("She was born in Rome, Italy.", "Rome, Italy", None),
        ("Dorn was born on 4 May 1915 in the village of Asch.", "Asch", None),
        ("Born in Turin, Dorn studied law.", "Turin", None),
        ("Dorn was born and died in Rome.", "Rome", "Rome"),
        ("She was born in Rome, Italy and died in Bonn.", "Rome, Italy", "Bonn"),
        ("She died of pneumonia in Bonn in 1920.", None, "Bonn"),
        ("She died on 4 May 1915, aged 71, in Paris.", None, "Paris"),
        ("She died in January 2001.", None, None),
        ("She died in office.", None, None),
        ("Her brother was born in Rome.", None, None),
    ],
)
def test_places_are_read_in_sentences_about_the_subject(sentence, birth, death):
    found = people.places_told(read(f"Ann Dorn is a painter. {sentence}"))
    assert found.get("birth_place") == birth
    assert found.get("death_place") == death


@pytest.mark.parametrize(
    "predicate, adjective",
    [
        ("was a French film director.", "French"),
        ("is a retired Australian judge.", "Australian"),
        ("was an Austrian-born American film director.", ""),
        ("is a professor of American history.", ""),
        ("was the wife of the French king.", ""),
    ],
)
def test_nationality_is_that_of_the_subject(predicate, adjective):
    assert people.nationality(read(f"Ann Dorn {predicate}")) == adjective


def test_persons_are_told_from_things():
    assert people.is_person(read("Ann Dorn (born 1921) is a farmer."))
    assert people.is_person(read("Ann Dorn is a French actress."))
    assert not people.is_person(read("Ann Dorn is a ship that a painter owned."))
