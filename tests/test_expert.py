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
