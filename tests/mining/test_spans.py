"""Spans: where names, places and dates end, and what is cleaned."""

import pytest

from kr1_utils.mining import spans


@pytest.mark.parametrize(
    "text, name",
    [
        ("Odile Marchetaux and starring", "Odile Marchetaux"),
        ("E. A. Dorn.", "E. A. Dorn"),
        ("Ludwig van der Horst in 1920", "Ludwig van der Horst"),
        ("William III, Duke of Bavaria.", "William III, Duke of Bavaria"),
        ("John Petre, 8th Baron Petre (1713–1742), a", "John Petre, 8th Baron Petre"),
        ("Ned Harrowell, a farmer", "Ned Harrowell"),
        ("Sam Hale Jr. and", "Sam Hale Jr."),
        ("Harrowell's brother", ""),
        ("the Hale brothers", ""),
        ("", ""),
    ],
)
def test_a_name_ends_where_its_words_and_rank_end(text, name):
    assert spans.name_at(text) == name


@pytest.mark.parametrize(
    "text, place",
    [
        ("Vierlan, Alsace – 7 June", "Vierlan, Alsace"),
        ("Kirchheim unter Teck.", "Kirchheim unter Teck"),
        ("St. Louis, Missouri. He died", "St. Louis, Missouri"),
        ("Washington, D.C. He died", "Washington, D.C."),
        ("Thornleigh (now Dorn), Kent", "Thornleigh, Kent"),
        ("London in August 1920", "London"),
        ("May 1920", ""),
        ("a small village", ""),
    ],
)
def test_a_place_ends_before_a_date_and_the_next_sentence(text, place):
    assert spans.place_at(text) == place


def test_the_surname_behind_a_place_is_no_part_of_it():
    text = "Huntsville, Alabama, Caldwell attended school."
    assert spans.place_at(text, "Caldwell") == "Huntsville, Alabama"


@pytest.mark.parametrize(
    "text, year, forms",
    [
        ("3 May 1921", 1921, ["3 May 1921", "May 3, 1921"]),
        ("May 3, 1921", 1921, ["May 3, 1921", "3 May 1921"]),
        ("987", 987, ["987"]),
    ],
)
def test_a_date_knows_both_ways_of_writing_it(text, year, forms):
    date = spans.to_date(spans.DATE.fullmatch(text))
    assert date.year == year
    assert date.forms() == forms
    assert date.is_full == (len(forms) > 1)


def test_dates_that_ran_together_are_none():
    found = [match.group() for match in spans.DATE.finditer("30 June 18235 May 1901")]
    assert "30 June 1823" not in found


def test_stray_blanks_go_and_other_text_stays():
    text = "Ann Dorn( born 1921 ) , of Saxe- Coburg and d' Este , lived 1921– 1980."
    assert spans.clean(text) == (
        "Ann Dorn (born 1921), of Saxe-Coburg and d'Este, lived 1921– 1980."
    )
