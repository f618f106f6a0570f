"""The expert: it searches the evidence, and its verdict names the right one."""

from collections import Counter

import pytest

from kr1_utils import expert
from kr1_utils.miniwiki import NO_ANSWER

BRIDGE = {
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


def test_demonstrations_search_the_evidence_and_end_with_the_answer(questions):
    for q in questions["dev"]:
        turns = expert.demonstration(q)
        assert [t[1] for t in turns] == ["search"] * len(q["evidence"]) + ["answer"]
        assert [t[2] for t in turns] == [
            *q["supporting_titles"],
            q["golden_answers"][0],
        ]


def test_every_answer_stands_in_the_last_thought_unless_it_is_yes_or_no(questions):
    for q in questions["dev"]:
        thought, _, answer = expert.demonstration(q)[-1]
        assert answer in thought or answer in ("yes", "no")


@pytest.mark.parametrize(
    "earlier, says",
    [
        (True, "2 B. First 1963 second 1889 earlier 2 B."),
        (False, "2 B. First 1963 second 1889 later 1 A."),
    ],
)
def test_verdict_names_the_right_one_behind_its_number(earlier, says):
    assert expert.verdict("A", "B", ("1963", "1889"), earlier) == says


def test_values_are_the_same_or_different():
    assert expert.same_or_different("Istria", "Istria").endswith("are the same.")
    assert expert.same_or_different("Istria", "Aldoria").endswith("are different.")


def test_a_bridge_comparison_is_noted_by_film_and_year():
    assert expert.demonstration(BRIDGE) == [
        (
            "I need to read about it. I need the earlier one.",
            "search",
            "Film A",
        ),
        ("The director is Ann.", "search", "Ann"),
        ("The birth date is 3 May 1963. 1 Film A. First 1963.", "search", "Film B"),
        ("The director is Bob.", "search", "Bob"),
        (
            "The birth date is 9 June 1889. 2 Film B. First 1963 second 1889 earlier"
            " 2 Film B.",
            "answer",
            "Film B",
        ),
    ]


def test_what_is_known_is_said_without_a_search(questions):
    for q in questions["test_known"]:
        if q["type"] == "known":
            [(thought, kind, answer)] = expert.from_memory(q)
            assert kind == "answer" and answer == q["golden_answers"][0]
            assert answer in thought


def test_giving_up_keeps_the_turns_before_it():
    turns = expert.demonstration(BRIDGE)
    for searches in (1, 2, 3, 4):
        *before, last = expert.give_up_after(turns, searches)
        assert before == turns[:searches]
        assert last[0].startswith(turns[searches][0])
        assert last[1:] == ("answer", NO_ANSWER)


def test_checking_searches_the_same_title_twice(questions):
    single = next(q for q in questions["dev"] if q["type"] == "single")
    one, two, answer = expert.check_once_more(expert.demonstration(single))
    assert one[1:] == two[1:] and two[1] == "search"
    assert answer[2] == single["golden_answers"][0]


def test_the_experts_differ_at_every_fork(questions):
    """At each, some answer and some do not: that is what GRPO can choose from."""
    seen = {}
    for split in ("dev", "test_known"):
        for q in questions[split]:
            for habits in expert.EXPERTS:
                turns = expert.conversation(q, habits)
                ends = "gives up" if turns[-1][2] == NO_ANSWER else "answers"
                place = q["type"], len(turns) - 1, ends
                seen[place] = seen.get(place, 0) + 1
    known = Counter({place[1:]: n for place, n in seen.items() if place[0] == "known"})
    # From memory, after one search, and after a second one to check.
    assert set(known) == {(0, "answers"), (1, "answers"), (2, "answers")}
    assert known[0, "answers"] < 0.5 * known.total()
    for kind, hops in (("compositional", 2), ("comparison", 2), ("inference", 2)):
        here = {place[1:] for place in seen if place[0] == kind}
        assert here == {(1, "gives up"), (2, "gives up"), (hops, "answers")}
    # Never from memory, where the facts are of this world only.
    assert not [p for p in seen if p[0] in ("look_alike", "single") and p[1] == 0]


def test_an_expert_is_consistent(questions):
    q = questions["dev"][0]
    for habits in expert.EXPERTS:
        assert expert.conversation(q, habits) == expert.conversation(q, habits)


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
        (True, "Ash", "Dust (Film): 1963. Ash: 1889. Ash is earlier."),
        (False, "Dust (Film)", "Dust (Film): 1963. Ash: 1889. Dust (Film) is later."),
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
        "Ann: 1900–1950, 50 years. Jo: 1880–1960, 80 years. Jo lived longer."
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
    assert thought.startswith(f"Ann: French. Jo: {y}.")
    assert ("not" in thought) == (answer == "no")
