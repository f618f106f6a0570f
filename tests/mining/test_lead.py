"""Leads: the name, its bracket, and what is said behind the first verb."""

import pytest

from kr1_utils.mining.lead import lead, sentences


def read(title, text):
    return lead({"id": "1", "title": title, "text": text})


def test_the_title_before_the_text_is_taken_off():
    found = read("Motor (film)", "Motor (film) Motor ( ) is a 1927 film. It was lost.")
    assert found.name == "Motor"
    assert found.first_sentence == "a 1927 film."
    assert found.later_sentences == ["It was lost."]


def test_the_bracket_with_dates_is_found_among_others():
    text = "Ann Dorn (Czech: Anna (née Hus)) (born 3 May 1921), a painter, was Czech."
    found = read("Ann Dorn", text)
    assert found.bracket == "born 3 May 1921"
    assert found.predicate == "Czech."


def test_a_name_that_ends_like_a_verb_is_no_verb():
    found = read("King Wallis", "King Wallis Vidor (1894–1982) was an American.")
    assert found.bracket == "1894–1982"
    assert found.predicate == "an American."


@pytest.mark.parametrize(
    "title, text",
    [
        ("Ann Dorn", "became Queen of Spain. She was born in 1818."),
        ("Ann Dorn", "Her father was a farmer."),
        ("Ann Dorn", "- Ann Dorn as The Night Clerk"),
        ("Ann Dorn", "Ann Dorn may refer to: Ann Dorn (1921–1980), who was a painter"),
        ("Ann Dorn", ""),
    ],
)
def test_the_middle_of_an_article_is_no_lead(title, text):
    assert read(title, text) is None


def test_statements_are_those_about_the_subject():
    text = (
        "Bert Dorn (1921–1980) was a painter. He was born in Rome. Dorn died young."
        " J. B. Dorn was rich. His wife was Ida Hale. Ida Hale was born in Turin."
    )
    assert read("Bert Dorn", text).statements == [
        "was born in Rome.",
        "died young.",
        "was rich.",
    ]


def test_sentences_are_not_cut_after_initials():
    text = 'J. B. Dorn died in St. Ives. He was "old." He left in 1921. So it was.'
    assert sentences(text) == [
        "J. B. Dorn died in St. Ives.",
        'He was "old." He left in 1921.',
        "So it was.",
    ]
