"""Made-up passages have the statistics of real ones."""

from itertools import islice

from bm25s.stopwords import STOPWORDS_EN

from kr1_utils.bench import made_up


def test_made_up_passages_have_the_statistics_of_real_ones():
    passages = list(made_up.passages(2000))
    words = [word for passage in passages for word in passage["text"].split()]
    plain = [word.lower().strip(",") for word in words]
    content = [word for word in plain if word not in STOPWORDS_EN]
    # 79 in real ones; a few of them are very long.
    assert 60 < len(words) / len(passages) < 85
    assert abs(1 - len(content) / len(words) - made_up.STOP_WORDS) < 0.02
    # 0.22 in as many words of real text.
    assert 0.2 < len(set(content)) / len(content) < 0.35


def test_the_same_passages_are_made_again():
    passages = list(made_up.passages(50))
    assert passages == list(made_up.passages(50))
    assert passages != list(made_up.passages(50, seed=1))


def test_passages_are_numbered_through():
    count = made_up.TOGETHER + 5
    ids = [passage["id"] for passage in made_up.passages(count)]
    assert ids == [str(number) for number in range(count)]


def test_passages_are_made_only_as_they_are_taken():
    assert len(list(islice(made_up.passages(10**9), 3))) == 3


def test_every_rank_has_a_word_of_its_own_and_common_ones_are_short():
    words = [made_up.spell(rank) for rank in range(5000)]
    assert len(set(words)) == len(words)
    assert len(words[0]) < len(words[-1])
