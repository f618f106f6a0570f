"""Names: keys, brackets, and the one title that a name fits."""

import pytest

from kr1_utils.mining.names import Titles, as_asked, bare, key

TITLES = Titles(
    [
        "Ann Dorn (director)",
        "Jan Kotík",
        "John Hale (rower)",
        "John Hale (bishop)",
        "William III, Duke of Bavaria",
        "Karl of Leiningen",
    ]
)


@pytest.mark.parametrize(
    "name, title",
    [
        ("Ann Dorn", "Ann Dorn (director)"),
        ("Jan Kotik", "Jan Kotík"),
        ("John Hale", None),
        ("John Hale (bishop)", "John Hale (bishop)"),
        ("Prince Karl of Leiningen", "Karl of Leiningen"),
        ("Duke William III, Duke of Bavaria", "William III, Duke of Bavaria"),
        ("William III", None),
        ("Jan Kotík, 2nd Baron Ostrow", "Jan Kotík"),
        ("Nobody Known", None),
        ("", None),
    ],
)
def test_a_name_is_found_only_where_one_title_fits(name, title):
    assert TITLES.find(name) == title


def test_a_title_that_comes_twice_is_still_one():
    assert Titles(["Ann Dorn", "Ann Dorn"]).find("Ann Dorn") == "Ann Dorn"


def test_brackets_accents_and_capitals():
    assert bare("Ada (1961 film)") == "Ada"
    assert bare("(500) Nights") == "(500) Nights"
    assert key("Łódź: A  Café") == "łodz a cafe"
    assert as_asked("Love's Labour (film)") == "Love'S Labour (Film)"
