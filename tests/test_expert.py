"""The expert: it searches the evidence, and its verdict names the right one."""

import pytest

from kr1_utils import expert


def test_demonstrations_search_the_evidence_and_end_with_the_answer(questions):
    for q in questions["dev"]:
        turns = expert.demonstration(q)
        assert [t[1] for t in turns] == ["search"] * len(q["evidence"]) + ["answer"]
        assert [t[2] for t in turns] == [
            *q["supporting_titles"],
            q["golden_answers"][0],
        ]


@pytest.mark.parametrize(
    "earlier, says",
    [
        (True, "The earlier is 1889: B."),
        (False, "The later is 1963: A."),
        (None, "1963 and 1889 are different."),
    ],
)
def test_verdict_names_the_right_one(earlier, says):
    assert expert.verdict("A", "1963", "B", "1889", earlier) == says
    assert (
        expert.verdict("A", "Istria", "B", "Istria", None)
        == "Istria and Istria are the same."
    )


def test_a_bridge_comparison_is_noted_by_film_and_year():
    question = {
        "type": "bridge_comparison",
        "golden_answers": ["Film B"],
        "earlier": True,
        "evidence": [
            ["Film A", "director", "Ann"],
            ["Ann", "birth_date", "3 May 1963"],
            ["Film B", "director", "Bob"],
            ["Bob", "birth_date", "9 June 1889"],
        ],
    }
    assert expert.demonstration(question) == [
        ("I need to read about it.", "search", "Film A"),
        ("The director is Ann.", "search", "Ann"),
        ("1963: Film A.", "search", "Film B"),
        ("The director is Bob.", "search", "Bob"),
        (
            "1963: Film A. 1889: Film B. The earlier is 1889: Film B.",
            "answer",
            "Film B",
        ),
    ]


# --- mined questions ---


def mined(kind, evidence, answer, queries, **more):
    return {
        "type": kind,
        "golden_answers": [answer],
        "evidence": evidence,
        "queries": queries,
        **more,
    }


def test_a_mined_chain_says_what_was_read_and_what_is_needed():
    question = mined(
        "compositional",
        [["Dust", "director", "Ann Dorn"], ["Ann Dorn", "citizenship", "French"]],
        "France",
        ["Dust (Film)", "Ann Dorn"],
    )
    assert expert.demonstration(question) == [
        ("I need the director of Dust (Film).", "search", "Dust (Film)"),
        ("The director is Ann Dorn. I need the nationality.", "search", "Ann Dorn"),
        ("The nationality is French, so the country is France.", "answer", "France"),
    ]


@pytest.mark.parametrize(
    "earlier, answer, says",
    [
        (True, "Ash", "1963 and 1889. The second is earlier."),
        (False, "Dust", "1963 and 1889. The first is later."),
    ],
)
def test_a_mined_bridge_comparison_notes_years_in_the_order_of_the_question(
    earlier, answer, says
):
    question = mined(
        "bridge_comparison",
        [
            ["Dust", "director", "Ann Dorn"],
            ["Ann Dorn", "birth_date", "May 3, 1963"],
            ["Ash", "director", "Jo Moss"],
            ["Jo Moss", "birth_date", "9 June 1889"],
        ],
        answer,
        ["Dust (Film)", "Ann Dorn", "Ash", "Jo Moss"],
        compared=["Dust (Film)", "Ash"],
        earlier=earlier,
    )
    assert expert.demonstration(question) == [
        ("I need the director of Dust (Film).", "search", "Dust (Film)"),
        ("The director is Ann Dorn. I need the year of birth.", "search", "Ann Dorn"),
        ("The year of birth is 1963. I need the director of Ash.", "search", "Ash"),
        ("The director is Jo Moss. I need the year of birth.", "search", "Jo Moss"),
        (says, "answer", answer),
    ]


def test_a_mined_comparison_of_lives_notes_their_years():
    question = mined(
        "comparison",
        [["Ann", "lifespan", "1900–1950"], ["Jo", "lifespan", "1880–1960"]],
        "Jo",
        ["Ann", "Jo"],
        compared=["Ann", "Jo"],
        earlier=False,
    )
    thought, kind, answer = expert.demonstration(question)[-1]
    assert (kind, answer) == ("answer", "Jo")
    assert thought == (
        "1900–1950, 50 years; 1880–1960, 80 years. The second is longer."
    )


@pytest.mark.parametrize("y, answer", [("French", "yes"), ("Italian", "no")])
def test_a_mined_question_whether_two_are_the_same_names_both(y, answer):
    question = mined(
        "comparison",
        [["Ann", "nationality", "French"], ["Jo", "nationality", y]],
        answer,
        ["Ann", "Jo"],
        compared=["Ann", "Jo"],
        earlier=None,
    )
    thought, _, said = expert.demonstration(question)[-1]
    assert said == answer
    assert thought.startswith(f"French and {y}:")
    assert ("not" in thought) == (answer == "no")
