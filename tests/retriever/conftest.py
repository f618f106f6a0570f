"""What the tests of the retriever share: a small index, and servers."""

import threading

import pytest
from helpers import FILM_PASSAGES
from servers import StandIn, served

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


@pytest.fixture(scope="session")
def url(small):
    """Where our server serves `small`."""
    with served(small) as address:
        yield address


@pytest.fixture
def stand_in():
    """A `StandIn` that answers until the test ends."""
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
