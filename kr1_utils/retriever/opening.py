"""Owns opening the index of a run: its own, or one that another process serves."""

import os

from kr1_utils.retriever.client import RemoteRetriever
from kr1_utils.retriever.search import Retriever


def open_retriever(
    url: str,
    passages: list[dict] | str | os.PathLike | None,
    folder: str | os.PathLike | None = None,
) -> Retriever | RemoteRetriever:
    """Open what a run searches.

    Args:
        url: of a served index, a profile's `retriever`; if empty, the run has its own.
        passages: see `Retriever.build`; a served index needs none.
        folder: of the run's own index, which is built if it is not there; None for one
            that goes when the returned object goes.

    Raises:
        ValueError: if the URL is none, or the index there is over other passages.
        RuntimeError: if the server gives no answer, or not one of the protocol.
    """
    if url:
        remote = RemoteRetriever(url)
        # So that a wrong address is found before any long work.
        remote.search(["Is anyone there?"], 1)
        return remote
    if folder is None:
        return Retriever.build(passages)
    return Retriever.open_or_build(passages, folder)
