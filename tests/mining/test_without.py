"""Without: titles that a test set names, and questions that name them too."""

import pytest

from kr1_utils.mining import NamedTitles

TITLES = [
    "The Copper Gate",
    "Ada (film)",
    "Ned Harrowell",
    "Princess",
    "The Place",
    "Paris (song)",
]


def named(text, answers=("1921",), **more):
    question = {"question": text, "golden_answers": list(answers), **more}
    return NamedTitles([question], TITLES).titles


@pytest.mark.parametrize(
    "text, titles",
    [
        ("Who directed The Copper Gate?", {"The Copper Gate"}),
        ("Who directed THE COPPER gate?", {"The Copper Gate"}),
        ("When did Ned Harrowell'S father die?", {"Ned Harrowell"}),
        ("Is Ada (Film) older?", {"Ada (film)"}),
        ("Is Ada older?", {"Ada (film)"}),
        ("Who directed The Copper Gates?", set()),
        ("Where was the place of death of Jo Moss?", set()),
    ],
)
def test_a_question_names_titles_as_whole_words(text, titles):
    assert named(text) == titles


def test_gold_answers_and_supporting_titles_name_titles_too():
    assert named("Who?", ["Ned Harrowell"]) == {"Ned Harrowell"}
    assert named("Who?", supporting_titles=["Ada (film)"]) == {"Ada (film)"}


TEST_SET = NamedTitles(
    [
        {"question": "Who directed The Copper Gate?", "golden_answers": ["Ann Dorn"]},
        {"question": "Was Princess a film?", "golden_answers": ["yes"]},
    ],
    TITLES,
)


@pytest.mark.parametrize(
    "text, more, names_one",
    [
        ("Is The Copper Gate older than Dust?", {}, True),
        ("When was Princess Ida Hale born?", {}, True),
        ("When was Princess Ida Hale born?", {"evidence": []}, False),
        ("Is Princess older than Dust?", {"supporting_titles": ["Princess", "Dust"]})
        + (True,),
        ("Who?", {"golden_answers": ["The Copper Gate"], "evidence": []}, True),
        ("Who?", {"evidence": [["Dust", "sequel", "The Copper Gate"]]}, True),
        ("Is Copper better than Gold?", {"evidence": []}, False),
    ],
)
def test_questions_that_name_such_a_title_are_told(text, more, names_one):
    question = {"question": text, "golden_answers": ["no"], **more}
    assert TEST_SET.in_question(question) is names_one
