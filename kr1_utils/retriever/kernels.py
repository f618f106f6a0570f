"""Owns the compiled loops of retrieval."""

import numba
import numpy as np
from bm25s.numba.selection import heap_push, sift_up

# Passages that `best_passages` skips or looks at together.
BLOCK = 128


def compiled(**options):
    """A decorator like `numba.njit(**options)` that keeps compiled code on disk.

    Where there is no place for that, as in a read-only installation without a home
    (`docker run --user`), numba refuses to keep it; each process then compiles anew.
    """

    def decorate(loop):
        try:
            return numba.njit(cache=True, **options)(loop)
        except RuntimeError:
            return numba.njit(**options)(loop)

    return decorate


@compiled()
def expand_pieces(pieces, text_starts, piece_tokens, token_starts):
    """Replace each piece of N texts by the tokens that are in it.

    Args:
        pieces: (M,) int32, numbers of pieces, one text after the other.
        text_starts: (N + 1,) int64, where each text begins in `pieces`.
        piece_tokens: int32, tokens of piece 0, then of piece 1, and so on.
        token_starts: int64, where each piece begins in `piece_tokens`, and the end.

    Returns:
        (T,) int32, the tokens, one text after the other; (N,) int32, how many of them
        each text has.
    """
    lengths = np.zeros(len(text_starts) - 1, np.int32)
    for text in range(len(lengths)):
        for piece in pieces[text_starts[text] : text_starts[text + 1]]:
            lengths[text] += token_starts[piece + 1] - token_starts[piece]
    tokens = np.empty(lengths.sum(), np.int32)
    end = 0
    for piece in pieces:
        for token in piece_tokens[token_starts[piece] : token_starts[piece + 1]]:
            tokens[end] = token
            end += 1
    return tokens, lengths


@compiled()
def document_counts(tokens, lengths, words):
    """Count the passages that hold each word.

    Args:
        tokens: (T,) int32, numbers of words, one passage after the other.
        lengths: (N,) int32, tokens of each passage.
        words: V, how many words there are.

    Returns:
        (V,) int64.
    """
    counts = np.zeros(words, np.int64)
    last_row = np.full(words, -1, np.int32)
    start = 0
    for row in range(len(lengths)):
        end = start + lengths[row]
        for token in tokens[start:end]:
            if last_row[token] != row:
                last_row[token] = row
                counts[token] += 1
        start = end
    return counts


@compiled()
def score_postings(tokens, lengths, column_starts, idf, mean_length, k1, b):
    """Score each word in each passage that holds it, as Lucene's BM25.

    A word that stands tf times in a passage of L tokens scores
    idf * tf / (tf + k1 * (1 - b + b * L / mean_length)): "Lucene (accurate)" in
    Kamphuis et al., 2020, "Which BM25 do you mean?". That a score can be computed when
    the index is built is the idea of bm25s (Lù, 2024, arXiv 2407.03618).

    Args:
        tokens: (T,) int32, numbers of words, one passage after the other.
        lengths: (N,) int32, tokens of each passage.
        column_starts: (V + 1,) int32, where each word's passages begin in the results.
        idf: (V,) float32, inverse document frequencies.
        mean_length: tokens per passage of the whole corpus.
        k1: how slowly repetitions of a word saturate.
        b: how much long passages are held back, from 0 to 1.

    Returns:
        (P,) int32, numbers of passages, one word after the other, ascending for each;
        (P,) float32, their scores.
    """
    rows = np.empty(column_starts[-1], np.int32)
    scores = np.empty(column_starts[-1], np.float32)
    next_place = column_starts[:-1].copy()
    frequencies = np.zeros(len(idf), np.int32)
    start = 0
    for row in range(len(lengths)):
        end = start + lengths[row]
        saturation = k1 * ((1 - b) + b * lengths[row] / mean_length)
        for token in tokens[start:end]:
            frequencies[token] += 1
        for token in tokens[start:end]:
            tf = frequencies[token]
            # It is 0 where the word stood before in this passage.
            if tf:
                place = next_place[token]
                rows[place] = row
                scores[place] = idf[token] * (tf / (saturation + tf))
                next_place[token] += 1
                frequencies[token] = 0
        start = end
    return rows, scores


@compiled(nogil=True)
def find_columns(hashes, words):
    """The place of each hash in `words`.

    Args:
        hashes: (M,) uint64.
        words: (V,) uint64, ascending.

    Returns:
        (M,) int64, -1 for a hash that is not there.
    """
    columns = np.searchsorted(words, hashes)
    for place in range(len(hashes)):
        column = columns[place]
        if column == len(words) or words[column] != hashes[place]:
            columns[place] = -1
    return columns


@compiled(nogil=True)
def best_passages(words, query_starts, column_starts, rows, scores, passages, k):
    """Find the k passages of each query with the highest sums of scores, best first.

    It finds what bm25s's `retrieve` finds, with the same heap, so of equal passages the
    same ones win.

    Args:
        words: int64, numbers of words, one query after the other; -1 for a word that
            no passage holds.
        query_starts: (Q + 1,) int64, where each query begins in `words`, and the end.
        column_starts, rows, scores: see `ShardArrays`.
        passages: N, how many there are.
        k: how many to find, from 1; all, where there are fewer.

    Returns:
        (Q, k) int64, numbers of passages; (Q, k) float32, their scores, 0 for passages
        that share no word with the query.
    """
    k = min(k, passages)
    queries = len(query_starts) - 1
    best_rows = np.zeros((queries, k), np.int64)
    best_scores = np.zeros((queries, k), np.float32)
    for query in range(queries):
        query_words = words[query_starts[query] : query_starts[query + 1]]
        sums = _sum_scores(query_words, column_starts, rows, scores, passages)
        heap_rows, heap_scores = _largest(sums, k)
        order = np.flip(np.argsort(heap_scores))
        best_rows[query] = heap_rows[order]
        best_scores[query] = heap_scores[order]
    return best_rows, best_scores


@compiled(nogil=True)
def _sum_scores(query_words, column_starts, rows, scores, passages):
    """(N,) float32, each passage's score for one query."""
    sums = np.zeros(passages, np.float32)
    for word in query_words:
        if word >= 0:
            start = column_starts[word]
            end = column_starts[word + 1]
            # Of numbers without a sign, none is checked for being counted from the end.
            word_rows = rows[start:end].view(np.uint32)
            word_scores = scores[start:end]
            for place in range(len(word_rows)):
                sums[word_rows[place]] += word_scores[place]
    return sums


@compiled(nogil=True)
def _largest(sums, k):
    """(k,) rows and (k,) scores of the k largest sums, as a heap: the least is first.

    A block of passages in which none is better than the least is skipped as a whole.
    """
    heap_rows = np.zeros(k, np.int64)
    heap_scores = np.zeros(k, np.float32)
    for row in range(k):
        heap_push(heap_scores, heap_rows, sums[row], row, row)
    # No score is negative. The bits of such floats, read as whole numbers, have the
    # same order as the floats, and the compiler makes a faster loop of comparing them.
    sum_bits = sums.view(np.int32)
    heap_bits = heap_scores.view(np.int32)
    for start in range(k, len(sums), BLOCK):
        end = min(start + BLOCK, len(sums))
        if _maximum(sum_bits[start:end]) > heap_bits[0]:
            for row in range(start, end):
                if sums[row] > heap_scores[0]:
                    heap_scores[0] = sums[row]
                    heap_rows[0] = row
                    sift_up(heap_scores, heap_rows, 0, k)
    return heap_rows, heap_scores


@compiled(nogil=True)
def _maximum(numbers):
    """The largest of whole numbers of 32 bits that are not negative.

    As it stands, the compiler compares sixteen at once. It does not for the numbers
    themselves in place of their indices, nor for a `most` of 64 bits.
    """
    most = np.int32(0)
    for place in range(len(numbers)):
        most = max(most, numbers[place])
    return most
