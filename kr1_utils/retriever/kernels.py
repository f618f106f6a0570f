"""Owns the compiled loops of retrieval."""

import numba
import numpy as np
from bm25s.numba.selection import heap_push, sift_up


@numba.njit(cache=True)
def document_counts(tokens, lengths, words):
    """(V,) how many passages hold each word."""
    counts, seen, at = np.zeros(words, np.int64), np.full(words, -1, np.int32), 0
    for row in range(len(lengths)):
        for token in tokens[at : at + lengths[row]]:
            if seen[token] != row:
                seen[token] = row
                counts[token] += 1
        at += lengths[row]
    return counts


@numba.njit(cache=True)
def score_postings(tokens, lengths, indptr, idf, mean_length, k1, b):
    """Rows and scores of the passages that hold each word, word after word: BM25 as
    Lucene computes it."""
    rows, scores = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    free, times, at = indptr[:-1].copy(), np.zeros(len(idf), np.int32), 0
    for row in range(len(lengths)):
        passage = tokens[at : at + lengths[row]]
        saturation = k1 * ((1 - b) + b * lengths[row] / mean_length)
        at += lengths[row]
        for token in passage:
            times[token] += 1
        for token in passage:
            if times[token]:
                tf = times[token]
                rows[free[token]] = row
                scores[free[token]] = idf[token] * (tf / (saturation + tf))
                free[token] += 1
                times[token] = 0
    return rows, scores


@numba.njit(cache=True, nogil=True)
def best_passages(words, ends, indptr, rows, data, passages, k):
    """The k best passages of each query: bm25s's `retrieve`, with its heap, so that of
    equal scores the same come first; but blocks of passages are skipped in which none
    is good enough."""
    k = min(k, passages)
    best_rows, best_scores = (
        np.zeros((len(ends) - 1, k), np.int64),
        np.zeros((len(ends) - 1, k), np.float32),
    )
    for query in range(len(ends) - 1):
        scores, best, at = (
            np.zeros(passages, np.float32),
            np.zeros(k, np.float32),
            np.zeros(k, np.int64),
        )
        for word in words[ends[query] : ends[query + 1]]:
            for j in range(indptr[word], indptr[word + 1]):
                scores[rows[j]] += data[j]
        for row in range(k):
            heap_push(best, at, scores[row], row, row)
        bits = scores.view(
            np.int32
        )  # in the same order, as no score is negative, and faster to compare
        for start in range(k, passages, 128):
            most = 0
            for bit in bits[start : start + 128]:
                most = max(most, bit)
            if most > best[:1].view(np.int32)[0]:
                for row in range(start, min(start + 128, passages)):
                    if scores[row] > best[0]:
                        best[0], at[0] = scores[row], row
                        sift_up(best, at, 0, k)
        order = np.flip(np.argsort(best))
        best_rows[query], best_scores[query] = at[order], best[order]
    return best_rows, best_scores
