"""One function opens what a run searches: its own index, or a served one."""

import pytest
from helpers import FILM_PASSAGES, found_ids

from kr1_utils.retriever import RemoteRetriever, Retriever, open_retriever


def test_without_a_url_a_run_has_its_own_index_which_stays(tmp_path):
    built = open_retriever("", FILM_PASSAGES, tmp_path / "index")
    assert isinstance(built, Retriever)
    assert found_ids(built.search(["poems"], 1)) == [["c"]]
    assert len(Retriever.open(tmp_path / "index")) == len(FILM_PASSAGES)
    with pytest.raises(ValueError, match="built with corpus"):
        open_retriever("", FILM_PASSAGES[:2], tmp_path / "index")


def test_without_a_folder_the_index_goes_with_its_object(tmp_path):
    built = open_retriever("", FILM_PASSAGES)
    assert found_ids(built.search(["poems"], 1)) == [["c"]]


def test_with_a_url_neither_passages_nor_a_folder_are_looked_at(url, small, tmp_path):
    remote = open_retriever(url, None, tmp_path / "index")
    assert isinstance(remote, RemoteRetriever)
    assert remote.search(["poems"], 2) == small.search(["poems"], 2)
    assert not any(tmp_path.iterdir())


def test_a_server_of_something_else_is_noticed_when_it_is_opened(stand_in):
    stand_in.answers = [lambda body: (404, b"")]
    with pytest.raises(RuntimeError, match="refuses a search: 404"):
        open_retriever(stand_in.url, None)


def test_either_says_what_it_is(url, small):
    assert str(small) == "4 passages"
    assert str(open_retriever(url, None)) == f"the index at {url}/retrieve"
