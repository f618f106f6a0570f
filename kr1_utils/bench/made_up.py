"""Owns made-up passages with the word statistics of Wikipedia's."""

from collections.abc import Iterator

import numpy as np
from bm25s.stopwords import STOPWORDS_EN

# All numbers were counted in 10,938 passages of Wikipedia that belong to questions of
# 2WikiMultihopQA. Shares of all words:
STOP_WORDS = 0.279
CAPITALIZED = 0.327
WITH_PUNCTUATION = 0.181
BEYOND_ASCII = 0.017

# Of the words that are not on the stop list, those that occur once.
NEW_WORDS = 0.063

# Words of a passage: shortest, deciles, longest.
LENGTHS = [4, 19, 28, 39, 52, 72, 96, 100, 100, 107, 250]

# Of the words that are not on the stop list, the share (SHARES) of the commonest ones
# up to a rank (RANKS).
# fmt: off
RANKS = [
    0, 1, 2, 4, 6, 11, 18, 29, 47, 77, 125, 203, 330, 535, 867, 1406, 2281, 3698, 5996,
    9723, 15764, 25560, 41443, 67196,
]
SHARES = [
    0, 0.0148, 0.0296, 0.0496, 0.0597, 0.0801, 0.1001, 0.125, 0.1561, 0.1952, 0.2432,
    0.2973, 0.3598, 0.427, 0.5015, 0.5754, 0.6443, 0.7101, 0.772, 0.8288, 0.8791,
    0.9211, 0.9562, 1.0,
]
# fmt: on

# New words have ranks between that of the rarest common word and this one.
HIGHEST_RANK = 1e9

TITLE_WORDS = 3

# Passages that are made together, so that memory does not grow with their number.
TOGETHER = 10_000

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def spell(rank: int) -> str:
    """The made-up word of a rank; common words are short."""
    base = len(SYLLABLES)
    word = SYLLABLES[rank % base]
    while rank >= base:
        rank = rank // base
        word += SYLLABLES[rank % base]
    return word + "n"


def passages(count: int, seed: int = 0) -> Iterator[dict]:
    """Made-up passages, one at a time; new words keep coming, as they do in real text.

    Returns:
        `{"id", "title", "text"}`, ids from "0".
    """
    random = np.random.default_rng(seed)
    common = [spell(rank) for rank in range(RANKS[-1])]
    for start in range(0, count, TOGETHER):
        together = min(TOGETHER, count - start)
        sizes = _lengths(random, together) + TITLE_WORDS
        words = _words(random, sizes.sum(), common)
        at = 0
        for number, size in enumerate(sizes.tolist(), start):
            passage = words[at : at + size]
            at += size
            yield {
                "id": str(number),
                "title": " ".join(passage[:TITLE_WORDS]),
                "text": " ".join(passage[TITLE_WORDS:]),
            }


def _lengths(random: np.random.Generator, count: int) -> np.ndarray:
    """Words of each passage's text."""
    deciles = np.linspace(0, 1, len(LENGTHS))
    return np.interp(random.random(count), deciles, LENGTHS).astype(int)


def _words(random: np.random.Generator, count: int, common: list[str]) -> list[str]:
    """Words with stop words among them, capitals, accents and punctuation."""
    ranks = _ranks(random, count)
    draws = random.random((4, count))
    is_stop_word = draws[0] < STOP_WORDS
    is_capitalized = draws[1] < CAPITALIZED
    has_punctuation = draws[2] < WITH_PUNCTUATION
    has_accent = draws[3] < BEYOND_ASCII
    stop_list = list(STOPWORDS_EN)
    which_stop_word = random.integers(0, len(stop_list), count).tolist()
    words = []
    for n, rank in enumerate(ranks.tolist()):
        if is_stop_word[n]:
            words.append(stop_list[which_stop_word[n]])
        elif rank < len(common):
            words.append(common[rank])
        else:
            words.append(spell(rank))
    for n in np.flatnonzero(is_capitalized):
        words[n] = words[n].capitalize()
    for n in np.flatnonzero(has_accent):
        words[n] = words[n].replace("a", "á")
    for n in np.flatnonzero(has_punctuation):
        words[n] += ","
    return words


def _ranks(random: np.random.Generator, count: int) -> np.ndarray:
    """The rank of each word among those that are not on the stop list."""
    ranks = np.interp(random.random(count), SHARES, RANKS).astype(int)
    is_new = random.random(count) < NEW_WORDS
    low, high = np.log(RANKS[-1]), np.log(HIGHEST_RANK)
    ranks[is_new] = np.exp(random.uniform(low, high, is_new.sum())).astype(int)
    return ranks
