"""Owns the words of texts: stems, without stop words, as numbers of 64 bits."""

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, count

import bm25s
import numpy as np
import Stemmer

from kr1_utils.retriever.arrays import run_starts
from kr1_utils.retriever.kernels import expand_pieces

# A word of two letters or more, bm25s's own pattern.
WORD = re.compile(r"\b\w\w+\b")


def _separates_words(byte: int) -> bool:
    """Whether a byte of UTF-8 is an ASCII character that is no part of a word.

    A word is what WORD matches.
    """
    character = chr(byte)
    return byte < 128 and not character.isalnum() and character != "_"


# Translates each byte that separates words to a blank.
_BLANKS = bytes(ord(" ") if _separates_words(byte) else byte for byte in range(256))


@dataclass(frozen=True)
class Tokens:
    """The tokens of N texts, as numbers of the words that they are.

    Attributes:
        words: (V,) uint64, hashes of the stems that occur in any of the texts,
            ascending.
        tokens: (T,) int32, places in `words`, one text after the other.
        lengths: (N,) int32, tokens of each text.
    """

    words: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


def tokenize(texts: list[str], stemmer: str, stop_words: str) -> list[list[str]]:
    """The stems of each text, in its order, as bm25s finds them.

    `bm25s.tokenize` takes several times as long for one query: it draws progress bars
    that are not shown, and makes its vocabulary.

    Args:
        stemmer: one of Snowball's, for example "english".
        stop_words: one of bm25s's lists of words to leave out, for example "en".
    """
    skipped = _stop_list(stop_words)
    words = [
        [word for word in WORD.findall(text.lower()) if word not in skipped]
        for text in texts
    ]
    distinct = list(dict.fromkeys(chain.from_iterable(words)))
    stems = dict(zip(distinct, Stemmer.Stemmer(stemmer).stemWords(distinct)))
    return [[stems[word] for word in of_text] for of_text in words]


@cache
def _stop_list(name: str) -> frozenset[str]:
    """The words of one of bm25s's lists."""
    return frozenset(bm25s.tokenization.Tokenizer(stopwords=name).stopwords)


def tokenize_corpus(texts: Iterable[str], stemmer: str, stop_words: str) -> Tokens:
    """The words of many texts: what `tokenize` and `word_hashes` find, but faster.

    Few of the pieces of text between two blanks are new, so each distinct piece is
    tokenized once. Most pieces hold one token; a stop word holds none, and
    "Paris–Dakar" two. For example:

        texts            "Old River."   "the old rivers"
        pieces           old river      the old rivers
        their numbers    0   1          2   0   3
        their tokens     old river      -   old river
        tokens           old river      old river

    Args:
        stemmer, stop_words: as in `tokenize`.
    """
    distinct, pieces, text_starts = _number_pieces(texts)
    found = bm25s.tokenize(
        distinct,
        stopwords=stop_words,
        stemmer=Stemmer.Stemmer(stemmer),
        show_progress=False,
    )
    # bm25s numbers stems in any order; ours are the places of their sorted hashes.
    words, places = np.unique(word_hashes(found.vocab), return_inverse=True)
    bm25s_numbers = np.fromiter(chain.from_iterable(found.ids), np.int64)
    piece_tokens = places.astype(np.int32)[bm25s_numbers]
    token_starts = run_starts([len(ids) for ids in found.ids])
    tokens, lengths = expand_pieces(pieces, text_starts, piece_tokens, token_starts)
    return Tokens(words, tokens, lengths)


def word_hashes(words: Iterable[str]) -> np.ndarray:
    """Words as numbers of 64 bits, for any process and any shard the same.

    Among ten million words, two get the same number with a chance of 3e-6.

    Returns:
        (V,) uint64.
    """
    digests = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return np.array([int.from_bytes(digest) for digest in digests], np.uint64)


def _number_pieces(texts: Iterable[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Cut texts at blanks and at what separates words.

    Returns:
        The distinct pieces, in small letters; (M,) int32, the numbers of all pieces,
        one text after the other; (N + 1,) int64, where each text begins among them, and
        the end.
    """
    # A piece that is looked up for the first time gets the next number.
    numbers: defaultdict[bytes, int] = defaultdict(count().__next__)
    # An array, because a list of a shard's pieces would take several times its memory.
    pieces = array("i")
    text_starts = [0]
    for text in texts:
        # Bytes, because they are split faster. JSON may hold halves of surrogate pairs.
        encoded = text.lower().encode("utf-8", "surrogatepass")
        pieces.extend([numbers[piece] for piece in encoded.translate(_BLANKS).split()])
        text_starts.append(len(pieces))
    distinct = [piece.decode("utf-8", "surrogatepass") for piece in numbers]
    return distinct, np.array(pieces, np.int32), np.array(text_starts, np.int64)
