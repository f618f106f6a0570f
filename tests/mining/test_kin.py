"""Relatives: who is father and who is mother, and whose spouse is sure."""

import pytest

from kr1_utils.mining.kin import Genders, relatives
from kr1_utils.mining.lead import lead


def read(text, title="Ann Dorn"):
    return lead({"id": "1", "title": title, "text": text})


def person(name, pronoun):
    return read(f"{name} Vale is a painter. {pronoun} lives in Rome.", f"{name} Vale")


# First names are learned from those who bear them.
GENDERS = Genders(
    [person("Ida", "She")] * 3 + [person("Jo", "He")] * 3 + [person("Kim", "She")]
)


def kin(text):
    found = relatives(read(text), GENDERS)
    return {one.relation: one.name for one in found}


@pytest.mark.parametrize(
    "parents, father, mother",
    [
        ("Jo May and Ida Hale", "Jo May", "Ida Hale"),
        ("Jo May and his wife, Eva Hale", "Jo May", "Eva Hale"),
        ("Sam May, 3rd Baron May, by his second wife Eva Hale",)
        + ("Sam May, 3rd Baron May", "Eva Hale"),
        ("Eva Hale and her husband Sam May", "Sam May", "Eva Hale"),
        ("Ida Hale and the late Sam May", None, "Ida Hale"),
        ("Jo May and The Hon. Ida Hale", "Jo May", None),
        ("the painter Jo May", None, None),
        ("actress Eva Hale", None, "Eva Hale"),
        ("Duke Otto of Bavaria", "Duke Otto of Bavaria", None),
        ("Eva Hale and Sam May", None, None),
        ("Sam May", None, None),
        ("Sam May, 3rd Earl of Ashby and Thorne", None, None),
        ("Chicago developer Jo May", None, None),
        ("a Jewish family", None, None),
    ],
)
@pytest.mark.parametrize(
    "before", ["Ann Dorn (born 1921) was the eldest daughter of", "X", "Y"]
)
def test_parents_are_told_apart_or_left_out(before, parents, father, mother):
    starts = {
        "X": "Ann Dorn is a painter. She was born in 1921, the only child of",
        "Y": "Ann Dorn is a painter. Born in Rome, she is the daughter of",
    }
    found = kin(f"{starts.get(before, before)} {parents}.")
    assert found.get("father") == father
    assert found.get("mother") == mother


@pytest.mark.parametrize(
    "text",
    [
        "Ann Dorn was the granddaughter of Jo May.",
        "Ann Dorn was the stepdaughter of Jo May.",
        "Ann Dorn was the wife of Karl May, son of Jo May.",
        "Ann Dorn was the adopted daughter of Jo May.",
        "Ann Dorn is a painter. Her teacher was the son of Jo May.",
    ],
)
def test_other_peoples_parents_are_not_hers(text):
    assert not {"father", "mother"} & kin(text).keys()


@pytest.mark.parametrize(
    "text, spouse",
    [
        ("Ann Dorn was the wife of Jo May.", "Jo May"),
        ("Ann Dorn was queen consort of King Otto of Bavaria.", "King Otto of Bavaria"),
        ("Ann Dorn was queen consort of Spain.", None),
        ("Ann Dorn is a painter. She married actor Jo May in 1920.", "Jo May"),
        ("Ann Dorn is a painter. In 1920 she married Jo May.", "Jo May"),
        ("Ann Dorn is a painter. Her husband was Jo May.", "Jo May"),
        ("Ann Dorn is a painter. She is married to Jo May.", "Jo May"),
        ("Ann Dorn is a painter. Her first husband was Jo May.", None),
        ("Ann Dorn is a painter. She married Jo May. She married Al Hale.", None),
        ("Ann Dorn is a painter. She married Jo May, but divorced him.", None),
    ],
)
def test_a_spouse_is_told_only_where_there_is_one(text, spouse):
    assert kin(text).get("spouse") == spouse


def test_brothers_and_sisters():
    assert kin("Ann Dorn is the older sister of actor Jo May.") == {"sibling": "Jo May"}
    assert kin("Ann Dorn is a painter. Her brother is Jo May.") == {"sibling": "Jo May"}
    assert kin("Ann Dorn is the sister of Alexander and Jo May.") == {}


def test_first_names_that_few_bear_tell_nothing():
    assert GENDERS.of_name("Ida Hale") == "f"
    assert GENDERS.of_name("Kim Hale") == ""
    assert GENDERS.of_title("Kim Vale") == "f"
    assert GENDERS.of_name("Kim Hale", "actress ") == "f"
