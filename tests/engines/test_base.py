"""The end of a turn is found token by token, whatever a token holds."""

import pytest
from helpers import Words
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import engines, protocol
from kr1_utils.engines.base import closes, closing_tokens


@pytest.mark.parametrize(
    "text, closed",
    [
        ("<search> Dara</search>", True),
        ("<answer> Dara</answer>", True),
        ("<think> Dara</think>", False),
        ("<search> Dara", False),
        ("a > b", False),
        ("</search> and more", False),
    ],
)
def test_last_token_closes_a_turn_only_with_a_closing_tag(tokenizer, text, closed):
    assert closes(tokenizer, protocol.encode(tokenizer, text)) is closed


def test_token_that_holds_more_than_the_end_of_a_tag_closes_the_turn():
    words = Words(["</search", ">\n", "></", " x"])
    assert closes(words, [0, 1])
    assert closes(words, [0, 2])
    assert not closes(words, [0, 3])
    assert not closes(words, [0, 1, 3])


def test_tag_that_is_closed_a_second_time_closes_the_turn_again():
    words = Words(["</answer>", " x"])
    assert closes(words, [0, 1, 0])


@given(st.lists(st.sampled_from(["<", "/", "search", "answer", ">", ">\n", " x"])))
def test_no_token_closes_a_turn_that_the_table_leaves_out(words):
    tokens = Words(sorted(set(words)))
    ids = [tokens.words.index(word) for word in words]
    table = closing_tokens(tokens)
    for length in range(1, len(ids) + 1):
        if closes(tokens, ids[:length]):
            assert table[ids[length - 1]]


def test_closing_tokens_of_one_tokenizer_are_not_taken_for_anothers():
    # Each is thrown away, and the next may lie at its address in memory.
    for size in range(2, 40):
        table = closing_tokens(Words(["a"] * (size - 1) + [">"]))
        of_unknown_ids = False
        assert list(table) == [False] * (size - 1) + [True, of_unknown_ids]


def test_every_name_of_the_package_is_found_and_no_other():
    assert all(hasattr(engines, name) for name in engines.__all__)
    assert not hasattr(engines, "Nothing")
