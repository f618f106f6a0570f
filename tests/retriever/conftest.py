"""What the tests of the retriever share: a small index."""

import pytest
from helpers import FILM_PASSAGES

from kr1_utils.retriever import Retriever


@pytest.fixture(scope="session")
def small():
    """An index over `FILM_PASSAGES` that goes with this process."""
    return Retriever.build(FILM_PASSAGES)


@pytest.fixture
def folder(tmp_path):
    """The folder of an index over `FILM_PASSAGES`."""
    Retriever.build(FILM_PASSAGES, tmp_path / "index")
    return tmp_path / "index"
