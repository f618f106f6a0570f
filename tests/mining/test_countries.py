"""Countries: the one adjective of a phrase, and what is hard to tell apart."""

import pytest

from kr1_utils.mining import countries


@pytest.mark.parametrize(
    "phrase, adjective",
    [
        ("a French film director", "French"),
        ("a South Korean actress", "South Korean"),
        ("a Northern Irish singer", "Northern Irish"),
        ("an African-American poet", "American"),
        ("an English-language film", ""),
        ("a Swiss-American painter", ""),
        ("a Russian-born French painter", ""),
        ("a French and Italian film", ""),
        ("a former American football player", ""),
        ("a painter", ""),
    ],
)
def test_only_one_sure_adjective_counts(phrase, adjective):
    assert countries.adjective_in(phrase) == adjective


@pytest.mark.parametrize(
    "sentence, country",
    [
        ("a lake in the hills of Ontario", "Canada"),
        ("a town in Oregon, United States", "United States"),
        ("a river in eastern Brazil", "Brazil"),
        ("a river of Austria and Germany", ""),
        ("a river in the north", ""),
    ],
)
def test_a_sentence_lies_in_one_country_or_none(sentence, country):
    assert countries.country_in(sentence) == country


def test_every_adjective_belongs_to_one_country_that_is_known():
    assert set(countries.COUNTRY_OF.values()) == set(countries.ALSO)


def test_what_was_one_state_is_near():
    assert countries.are_near("Russia", "Soviet Union")
    assert countries.are_near("England", "United Kingdom")
    assert not countries.are_near("France", "Italy")
