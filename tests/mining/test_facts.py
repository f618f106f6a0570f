"""Facts: merged by title, dropped where passages differ, linked where it is sure."""

import pytest

from kr1_utils.mining.facts import find_facts


def texts(*pairs):
    return [
        {"id": str(number), "title": title, "text": text}
        for number, (title, text) in enumerate(pairs)
    ]


def test_every_kind_of_fact_is_found(passages):
    facts = find_facts(passages)
    values = {
        title: {relation: fact.value for relation, fact in told.items()}
        for title, told in facts.by_title.items()
    }
    assert values["Winter Ferry (film)"] == {
        "release_year": "1951",
        "country": "British",
        "director": "Ned Harrowell",
    }
    assert values["Odile Marchetaux"] == {
        "birth_date": "3 May 1899",
        "birth_place": "Vierlan",
        "death_date": "7 June 1970",
        "death_place": "Paris",
        "nationality": "French",
        "father": "Count Renaud Marchetaux",
        "mother": "Blanche Dorvenne",
    }
    assert values["Ned Harrowell"]["birth_place"] == "Thornleigh"
    assert values["Ned Harrowell"]["death_place"] == "Dover"
    assert values["Renaud Marchetaux"]["spouse"] == "Blanche Dorvenne"
    assert values["Blanche Dorvenne"]["sibling"] == "Klara Dorvenne"
    assert values["Slow Lantern"] == {"performer": "Ira Tolman"}
    assert values["Orva River"] == {"located_in": "Poland"}
    assert facts.kind["Lake Teren"] == "lake"
    assert facts.gender["Odile Marchetaux"] == "f"
    assert facts.passages == len(passages)


def test_names_are_linked_to_titles(passages):
    facts = find_facts(passages)
    for title, relation, named in (
        ("The Copper Gate", "director", "Odile Marchetaux"),
        ("Odile Marchetaux", "father", "Renaud Marchetaux"),
        ("Odile Marchetaux", "mother", "Blanche Dorvenne"),
        ("Renaud Marchetaux", "spouse", "Blanche Dorvenne"),
        ("Slow Lantern", "performer", "Ira Tolman"),
        ("Blanche Dorvenne", "father", ""),
    ):
        assert facts.get(title, relation).names == named, title


def test_right_answers_hold_other_ways_of_writing(passages):
    facts = find_facts(passages)
    birth = facts.get("Ira Tolman", "birth_date")
    assert birth.forms == ("March 9, 1971", "9 March 1971")
    assert facts.get("Ira Tolman", "birth_place").forms == (
        "Millbrook",
        "Millbrook, Ohio",
    )
    assert {"American", "United States", "USA"} <= set(
        facts.get("Ira Tolman", "nationality").forms
    )
    father = facts.get("Odile Marchetaux", "father")
    assert father.forms == ("Count Renaud Marchetaux", "Renaud Marchetaux")


def test_passages_of_one_title_are_merged_and_contradictions_dropped():
    facts = find_facts(
        texts(
            ("Ann Dorn", "Ann Dorn (3 May 1921 – 1980) was a French painter."),
            ("Ann Dorn", "Ann Dorn (born 3 May 1921 – 1981) was a French painter."),
        )
    )
    birth = facts.get("Ann Dorn", "birth_date")
    assert birth.passage_ids == ("0", "1")
    assert facts.get("Ann Dorn", "nationality").passage_ids == ("0", "1")
    assert facts.get("Ann Dorn", "death_date") is None


FILM = ("Dust", "Dust is a 1935 film directed by Ann Dorn.")


@pytest.mark.parametrize(
    "title, text",
    [
        ("Ann Dorn", "Ann Dorn (born 1985) is a film director."),
        ("Ann Dorn", "Ann Dorn (1820 – 1880) was a film director."),
        ("Ann Dorn", "Ann Dorn (1890 – 1925) was a film director."),
        ("Ann Dorn", "Ann Dorn (1890 – 1955) was a Swiss rower."),
        ("Ann Dorn (ship)", "Ann Dorn is a ship."),
    ],
)
def test_a_director_of_another_time_or_trade_is_not_linked(title, text):
    facts = find_facts(texts(FILM, (title, text)))
    assert facts.get("Dust", "director").value == "Ann Dorn"
    assert facts.get("Dust", "director").names == ""


def test_a_name_that_fits_two_titles_is_not_linked():
    director = "Ann Dorn (1890 – 1955) was a film director."
    one = texts(FILM, ("Ann Dorn (director)", director))
    assert find_facts(one).get("Dust", "director").names == "Ann Dorn (director)"
    two = texts(
        FILM,
        ("Ann Dorn (director)", director),
        ("Ann Dorn (rower)", "Ann Dorn (born 1950) is a rower."),
    )
    assert find_facts(two).get("Dust", "director").names == ""


@pytest.mark.parametrize(
    "parent, linked",
    [
        ("Jo Dorn (1890 – 1960) was a king. He was tall.", True),
        ("Jo Dorn (1915 – 1960) was a king. He was tall.", False),
        ("Jo Dorn (1790 – 1850) was a king. He was tall.", False),
        ("Jo Dorn (1890 – 1960) was a singer. She was tall.", False),
    ],
)
def test_a_parent_of_another_time_or_gender_is_not_linked(parent, linked):
    child = "Ann Dorn (1921 – 1980) was the daughter of King Jo Dorn."
    facts = find_facts(texts(("Ann Dorn", child), ("Jo Dorn", parent)))
    assert facts.get("Ann Dorn", "father").names == ("Jo Dorn" if linked else "")


@pytest.mark.parametrize(
    "husband, linked",
    [("1890 – 1960", True), ("1790 – 1850", False), ("1975 – 2020", False)],
)
def test_a_spouse_of_another_time_is_not_linked(husband, linked):
    wife = "Ann Dorn (1921 – 1970) was the wife of Jo Moss."
    husband = f"Jo Moss ({husband}) was a king."
    facts = find_facts(texts(("Ann Dorn", wife), ("Jo Moss", husband)))
    assert facts.get("Ann Dorn", "spouse").names == ("Jo Moss" if linked else "")
