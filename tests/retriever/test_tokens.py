"""Words: those that bm25s finds, for a whole corpus as for a query."""

import logging

import bm25s
import numpy as np
import Stemmer
from helpers import FILM_PASSAGES
from hypothesis import example, given
from hypothesis import strategies as st

from kr1_utils.retriever import Retriever
from kr1_utils.retriever.tokens import tokenize, tokenize_corpus, word_hashes


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
@example(["Old River.", "the old rivers", "", "Paris–Dakar, x_y", "İstanbul \ud800"])
def test_any_text_is_cut_into_the_tokens_that_bm25s_finds(texts):
    wanted = bm25s.tokenize(
        texts,
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    found = tokenize_corpus(texts, "english", "en")
    ends = np.cumsum(found.lengths)
    tokens = np.split(found.words[found.tokens], ends[:-1])
    for own, stems in zip(tokens, wanted, strict=True):
        assert own.tolist() == word_hashes(stems).tolist()
    assert ends[-1] == len(found.tokens)
    assert tokenize(texts, "english", "en") == wanted


def test_texts_without_words_have_no_tokens():
    found = tokenize_corpus(["", "the of", "?!"], "english", "en")
    assert found.lengths.tolist() == [0, 0, 0]
    assert len(found.tokens) == len(found.words) == 0


def test_words_of_a_corpus_are_distinct_and_ascending():
    found = tokenize_corpus(["old river", "rivers of old men"], "english", "en")
    assert len(found.words) == 3
    assert (np.diff(found.words) > 0).all()


def test_words_keep_their_numbers_from_one_version_to_the_next():
    # An index that is on a disk holds them.
    assert word_hashes(["river"]).tolist() == [10851990548084909215]
    assert word_hashes([]).dtype == np.uint64


def test_building_and_searching_log_nothing_of_bm25s(caplog):
    level = logging.getLogger("bm25s").level
    with caplog.at_level(logging.DEBUG, logger="bm25s"):
        Retriever.build(FILM_PASSAGES).search(["poems"], 1)
    assert [record for record in caplog.records if record.name == "bm25s"] == []
    assert logging.getLogger("bm25s").level == level
