"""Owns retrieval: build, open and search a BM25 index over passages.

The scoring is bm25s (Lù, 2024, https://arxiv.org/abs/2407.03618); what is added is one folder that
knows how it was made: the same stemmer and stop words for passages and queries, checked on opening.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import bm25s
import numba
import Stemmer
from bm25s.tokenization import Tokenizer

STEMMER, STOP_WORDS = "english", "en"
BM25 = {"k1": 0.9, "b": 0.4}  # Anserini's defaults, chosen for passages of a few sentences
MANIFEST = "manifest.json"
# Below so many passages one thread is enough, and starting numba's others would cost more: 5 s of
# compilation, and PyTorch's own number of threads, which numba's OpenMP resets.
PARALLEL_FROM = 100_000
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it lets every debug line through


class Retriever:
    """A BM25 index over passages `{"id", "title", "text"}`; `search` takes many queries at once."""

    def __init__(self, index: bm25s.BM25, tokenizer: Tokenizer, passages) -> None:
        self.index, self.tokenizer, self.passages = index, tokenizer, passages

    def __len__(self) -> int:
        return len(self.passages)

    @classmethod
    def build(cls, passages: list[dict], folder: str | os.PathLike | None = None,
              stemmer: str = STEMMER, stop_words: str = STOP_WORDS, progress: bool = False) -> Retriever:
        """Index `passages`; with a `folder`, write the index there, whole or not at all.

        Raises:
            ValueError: if there are no passages, or none has a word to index.
        """
        if not passages:
            raise ValueError("The corpus is empty: there is no passage to index.")
        tokenizer = Tokenizer(stemmer=Stemmer.Stemmer(stemmer), stopwords=stop_words)
        texts = [f"{p['title']} {p['text']}" for p in passages]
        tokens = tokenizer.tokenize(texts, return_as="tuple", allow_empty=False, show_progress=progress)
        if not any(tokens.ids):
            raise ValueError("No passage holds a word that can be indexed.")
        index = bm25s.BM25(**BM25, backend="numba")
        index.index(tokens, show_progress=progress)
        if folder is not None:
            cls._write(Path(folder), index, tokenizer, passages, stemmer, stop_words)
        return cls(index, tokenizer, passages)

    @staticmethod
    def _write(folder: Path, index, tokenizer, passages, stemmer: str, stop_words: str) -> None:
        if folder.is_dir() and any(folder.iterdir()):
            _manifest(folder)  # refuses to replace what is not an index of ours
        part = folder.with_name(folder.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        index.save(part, corpus=passages, show_progress=False)
        tokenizer.save_vocab(part)
        sizes = {p.name: p.stat().st_size for p in sorted(part.iterdir())}
        manifest = {"made_by": "kr1_utils", "passages": len(passages), "stemmer": stemmer,
                    "stop_words": stop_words, "bm25": BM25, "corpus": fingerprint(passages),
                    "files": sizes}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike, stemmer: str = STEMMER, stop_words: str = STOP_WORDS,
             corpus: str | None = None) -> Retriever:
        """Open an index without reading it into memory.

        Args:
            corpus: refuse an index over other passages than those with this `fingerprint`.

        Raises:
            FileNotFoundError: if there is no index.
            ValueError: if it is half-written, not ours, or made with other settings.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"No index at {folder}: run 01_build_index first.")
        manifest = _manifest(folder)
        for name, size in manifest["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise ValueError(f"The index in {folder} is incomplete ({name}): "
                                 "remove it and run 01_build_index.")
        settings = {"stemmer": stemmer, "stop_words": stop_words, "bm25": BM25, "corpus": corpus}
        for what, wanted in settings.items():
            if wanted is not None and manifest.get(what) != wanted:
                raise ValueError(f"The index in {folder} was built with {what} {manifest.get(what)!r}, "
                                 f"not {wanted!r}: build it again.")
        index = bm25s.BM25.load(folder, mmap=True, load_corpus=True, show_progress=False)
        index.backend = "numba"
        index.activate_numba_scorer()
        tokenizer = Tokenizer(stemmer=Stemmer.Stemmer(stemmer), stopwords=stop_words)
        tokenizer.load_vocab(folder)
        passages, index.corpus = index.corpus, None  # `search` wants row numbers, not passages
        return cls(index, tokenizer, passages)

    def search(self, queries: list[str], k: int = 3) -> list[list[dict]]:
        """The best passages of each query, best first, each with its `score`.

        Args:
            queries: any texts; equal ones are searched once.
            k: how many at most; passages that share no word with the query are left out.
        """
        distinct = list(dict.fromkeys(queries))
        ids = self.tokenizer.tokenize(distinct, update_vocab=False, allow_empty=False, show_progress=False)
        known = {q: t for q, t in zip(distinct, ids) if t}
        found: dict[str, list[dict]] = {q: [] for q in distinct}
        if known:
            # bm25s's own -1 counts all CPUs, also those that this process may not use, and fails.
            threads = 1 if len(self) < PARALLEL_FROM else numba.get_num_threads()
            rows, scores = self.index.retrieve(
                list(known.values()), k=min(k, len(self)), n_threads=threads, show_progress=False)
            for query, row, score in zip(known, rows.tolist(), scores.tolist()):
                found[query] = [{**self.passages[r], "score": s} for r, s in zip(row, score) if s > 0]
        return [found[q] for q in queries]


def _manifest(folder: Path) -> dict:
    """What the index in `folder` says of itself; a ValueError if it is not one of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{folder} is not a complete index of kr1_utils (no readable {MANIFEST}): "
                         "remove it, or choose another folder, and run 01_build_index.") from None
    if not isinstance(manifest, dict) or manifest.get("made_by") != "kr1_utils":
        raise ValueError(f"{folder} holds another program's index: choose another folder.")
    return manifest


def fingerprint(passages) -> str:
    """A short name for exactly these passages in this order."""
    digest = hashlib.sha256()
    for p in passages:
        digest.update(json.dumps([p["id"], p["title"], p["text"]]).encode())
    return digest.hexdigest()[:16]
