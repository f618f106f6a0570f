"""Retrieval: a BM25 index over passages, a thousand or 21 million of them."""

from kr1_utils.retriever.build import SHARD, fingerprint, write_index
from kr1_utils.retriever.client import RemoteRetriever
from kr1_utils.retriever.manifest import BM25, MANIFEST, STEMMER, STOP_WORDS
from kr1_utils.retriever.opening import open_retriever
from kr1_utils.retriever.search import Retriever

__all__ = [
    "BM25",
    "MANIFEST",
    "SHARD",
    "STEMMER",
    "STOP_WORDS",
    "RemoteRetriever",
    "Retriever",
    "fingerprint",
    "open_retriever",
    "write_index",
]
