"""Owns the words of texts: stems, without stop words, as numbers of 64 bits."""

import hashlib
import logging
from collections.abc import Iterable

import bm25s
import numpy as np
import Stemmer


def tokenize(texts: list[str], stemmer: str, stop_words: str, return_ids: bool):
    # It lets every debug line through.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s.tokenize(
        texts,
        stopwords=stop_words,
        stemmer=Stemmer.Stemmer(stemmer),
        return_ids=return_ids,
        show_progress=False,
    )


def word_hashes(words: Iterable[str]) -> np.ndarray:
    """Words as numbers of 64 bits: among ten million, two are taken for one with a
    chance of 3e-6."""
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest())
            for w in words
        ],
        np.uint64,
    )
