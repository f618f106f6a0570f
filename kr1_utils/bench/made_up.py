"""Owns made-up passages with the statistics of Wikipedia's."""

import numpy as np
from bm25s.stopwords import STOPWORDS_EN

# What text is like in 10,938 passages of Wikipedia that go with questions of
# 2WikiMultihopQA: of all words, those on the stop list, with a capital, with
# punctuation behind, with a letter beyond ASCII; of the words not on the list, those
# that stand there once; the deciles of a passage's length in words; and, of the words
# not on the list, the share of the commonest, up to a rank.
STOP, CAPITAL, PUNCTUATION, ACCENT, NEW = 0.279, 0.327, 0.181, 0.017, 0.063
LENGTHS = [4, 19, 28, 39, 52, 72, 96, 100, 100, 107, 250]

RANKS = [
    0,
    1,
    2,
    4,
    6,
    11,
    18,
    29,
    47,
    77,
    125,
    203,
    330,
    535,
    867,
    1406,
    2281,
    3698,
    5996,
    9723,
    15764,
    25560,
    41443,
    67196,
]

SHARES = [
    0,
    0.0148,
    0.0296,
    0.0496,
    0.0597,
    0.0801,
    0.1001,
    0.125,
    0.1561,
    0.1952,
    0.2432,
    0.2973,
    0.3598,
    0.427,
    0.5015,
    0.5754,
    0.6443,
    0.7101,
    0.772,
    0.8288,
    0.8791,
    0.9211,
    0.9562,
    1.0,
]

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def spell(rank: int) -> str:
    """A made-up word for each rank, short for common ones."""
    word = SYLLABLES[rank % 70]
    while rank := rank // 70:
        word += SYLLABLES[rank % 70]
    return word + "n"


def passages(count: int, seed: int = 0):
    """Made-up passages with those statistics; new words keep coming, as they do in real
    text."""
    random = np.random.default_rng(seed)
    common, stop = [spell(r) for r in range(RANKS[-1])], list(STOPWORDS_EN)
    for start in range(0, count, 10_000):
        size = random.random(min(10_000, count - start))
        sizes = (
            np.interp(size, np.linspace(0, 1, 11), LENGTHS).astype(int) + 3
        )  # the title has three
        total = sizes.sum()
        ranks = np.interp(random.random(total), SHARES, RANKS).astype(int)
        new = random.random(total) < NEW
        ranks[new] = np.exp(
            random.uniform(np.log(RANKS[-1]), np.log(1e9), new.sum())
        ).astype(int)
        kind = random.random((4, total)) < np.array(
            [[STOP], [CAPITAL], [PUNCTUATION], [ACCENT]]
        )
        which = random.integers(0, len(stop), total)
        words = [
            stop[w] if s else common[r] if r < RANKS[-1] else spell(r)
            for r, s, w in zip(ranks.tolist(), kind[0].tolist(), which.tolist())
        ]
        for i in np.flatnonzero(kind[1]):
            words[i] = words[i].capitalize()
        for i in np.flatnonzero(kind[3]):
            words[i] = words[i].replace("a", "á")
        for i in np.flatnonzero(kind[2]):
            words[i] += ","
        at = 0
        for n, size in enumerate(sizes.tolist()):
            text = words[at : at + size]
            at += size
            yield {
                "id": str(start + n),
                "title": " ".join(text[:3]),
                "text": " ".join(text[3:]),
            }
