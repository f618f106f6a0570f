"""The server: Search-R1's protocol, limits, and how it ends."""

import json
import signal
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from helpers import FILM_PASSAGES
from servers import ServeCommand

from kr1_utils.retriever import RemoteRetriever, Retriever
from kr1_utils.retriever.serve import (
    MOST_BYTES,
    MOST_PASSAGES,
    MOST_TOPK,
    TOPK,
    listen,
    open_index,
    serve,
)


def call(address, body=None, kind="application/json"):
    """Status and JSON of a request; with a body, it is posted."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def retrieve(url, **body):
    """The result of a request that is answered."""
    status, answer = call(f"{url}/retrieve", body)
    assert status == 200, answer
    return answer["result"]


# --- the protocol ---


def test_bytes_that_search_r1_sends_get_what_it_reads(url, small):
    """Its client posts with requests, and takes `contents` apart at the line break."""
    queries = ["Who directed Silent River?", "poems"]
    body = json.dumps({"queries": queries, "topk": 2, "return_scores": True}).encode()
    host, port = url.removeprefix("http://").split(":")
    head = (
        "POST /retrieve HTTP/1.1\r\n"
        f"Host: {host}:{port}\r\n"
        "User-Agent: python-requests/2.32.3\r\n"
        "Accept-Encoding: gzip, deflate\r\n"
        "Accept: */*\r\n"
        "Connection: close\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, content = said.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: application/json" in status.lower()

    result = json.loads(content)["result"]
    found = small.search(queries, 2)
    for items, passages in zip(result, found, strict=True):
        for item, passage in zip(items, passages, strict=True):
            title, _, text = item["document"]["contents"].partition("\n")
            assert title == f'"{passage["title"]}"'
            assert text == passage["text"]
            assert item["document"]["id"] == passage["id"]
            assert item["score"] == passage["score"]


def test_without_scores_the_lists_hold_the_documents_themselves(url):
    queries = ["Merano", "poems"]
    scored = retrieve(url, queries=queries, topk=3, return_scores=True)
    plain = retrieve(url, queries=queries, topk=3, return_scores=False)
    assert plain == [[item["document"] for item in items] for items in scored]
    assert plain == retrieve(url, queries=queries, topk=3)


@pytest.mark.parametrize("topk", [1, 2, 3, 4, 1000])
def test_topk_is_honoured(url, topk):
    (found,) = retrieve(url, queries=["Dara Kallas Merano river"], topk=topk)
    assert len(found) == min(topk, len(FILM_PASSAGES))


def test_topk_that_is_not_said_is_three(url):
    query = "Dara Kallas Merano river"
    (found,) = retrieve(url, queries=[query])
    assert len(found) == TOPK == 3
    assert retrieve(url, queries=[query], topk=None) == [found]


def test_each_query_of_a_batch_has_its_list_in_its_place(url):
    queries = ["poems", "nothing that stands here", "Merano", "", "poems"]
    result = retrieve(url, queries=queries, topk=1)
    ids = [[document["id"] for document in found] for found in result]
    assert ids == [["c"], [], ["d"], [], ["c"]]
    assert retrieve(url, queries=[], topk=1) == []


def test_half_a_surrogate_pair_is_no_part_of_a_word(url):
    assert retrieve(url, queries=["\ud800 poems"], topk=1) == retrieve(
        url, queries=["poems"], topk=1
    )


def test_fields_of_other_clients_are_left_alone(url):
    plain = retrieve(url, queries=["poems"], topk=1)
    assert retrieve(url, queries=["poems"], topk=1, user="me", mode="bm25") == plain


def test_health_tells_how_much_is_served(url):
    answer = {"status": "ok", "passages": len(FILM_PASSAGES)}
    assert call(f"{url}/health") == (200, answer)


# --- what is refused ---


@pytest.mark.parametrize(
    "body, words",
    [
        (b"{'queries': []}", "not JSON"),
        (b"", "JSON object"),
        ([], "JSON object"),
        ({}, "queries: "),
        ({"queries": "poems"}, "queries: "),
        ({"queries": ["poems", 7]}, "queries.1: "),
        ({"queries": ["poems"], "topk": "many"}, "topk: "),
        ({"queries": ["poems"], "topk": 0}, "not 0"),
        ({"queries": ["poems"], "topk": -3}, "not -3"),
        ({"queries": ["poems"], "topk": MOST_TOPK + 1}, f"to {MOST_TOPK}"),
        (
            {"queries": ["a"] * (MOST_PASSAGES // 1000 + 1), "topk": 1000},
            "send several",
        ),
        ({"queries": [], "return_scores": "perhaps"}, "return_scores: "),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(url, body, words):
    status, answer = call(f"{url}/retrieve", body)
    assert status == 422
    assert set(answer) == {"detail"}
    assert words in answer["detail"]
    assert answer["detail"].endswith(".") and "\n" not in answer["detail"]


def test_a_body_that_is_not_said_to_be_json_is_refused(url):
    body = {"queries": ["poems"]}
    status, answer = call(f"{url}/retrieve", body, "application/x-www-form-urlencoded")
    assert status == 422
    assert "Content-Type" in answer["detail"]


@pytest.mark.parametrize(
    "path, body, status",
    [("/", None, 404), ("/search", {}, 404), ("/retrieve", None, 405)],
)
def test_other_paths_and_methods_are_none(url, path, body, status):
    assert call(f"{url}{path}", body)[0] == status


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_body_that_is_too_large_is_refused_and_the_next_one_answered(
    url, says_its_length
):
    body = json.dumps({"queries": ["a" * MOST_BYTES]}).encode()
    # An iterator is sent in chunks, and no length is said.
    sent = body if says_its_length else iter([body[:100], body[100:]])
    request = urllib.request.Request(
        f"{url}/retrieve", sent, {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 413
    assert str(MOST_BYTES) in json.load(refused.value)["detail"]
    fits = {"queries": ["a" * (MOST_BYTES - 100)]}
    assert call(f"{url}/retrieve", fits) == (200, {"result": [[]]})


# --- the command ---


def test_a_port_that_is_taken_is_named_before_an_index_is_built(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1"):
            serve(index=str(tmp_path / "index"), port=port)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("host, port", [("127.0.0.1", 70000), ("192.0.2.1", 0)])
def test_an_address_that_is_not_ours_is_refused(host, port):
    with pytest.raises(OSError, match="Cannot listen at"):
        listen(host, port)


def test_workers_are_at_least_one():
    with pytest.raises(ValueError, match="--workers must be at least 1, not 0"):
        serve(workers=0)


def test_an_index_is_opened_or_built_of_the_passages_it_is_given(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps(passage) + "\n" for passage in FILM_PASSAGES]
    (data / "passages.jsonl").write_text("".join(rows))
    index = str(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="No index at"):
        open_index("tiny", "", index)
    folder, built = open_index("tiny", str(data), index)
    assert folder == tmp_path / "index"
    assert built.search(["poems"], 1)[0][0]["id"] == "c"
    _, opened = open_index("tiny", "", index)
    assert len(opened) == len(FILM_PASSAGES)
    # Not those of miniwiki, whatever the profile's own are.
    (data / "passages.jsonl").write_text("".join(rows[:2]))
    with pytest.raises(ValueError, match="built with corpus"):
        open_index("tiny", str(data), index)


def test_the_command_serves_until_ctrl_c(folder, small):
    command = ServeCommand(folder)
    said = command.start()
    assert said.startswith(f"4 passages at {command.url}/retrieve ")
    found = RemoteRetriever(command.url).search(["poems", "Merano"], 2)
    assert found == small.search(["poems", "Merano"], 2)
    command.process.send_signal(signal.SIGINT)
    _, error = command.process.communicate(timeout=60)
    assert command.process.returncode == 130
    assert error.strip() == "Interrupted."


@pytest.mark.slow
def test_workers_share_an_index_and_none_outlives_the_command(folder, small):
    with ServeCommand(folder, "--workers", "2") as command:
        remote = RemoteRetriever(command.url)
        queries = ["poems", "Merano", "Silent River"]
        with ThreadPoolExecutor(8) as clients:
            found = list(clients.map(lambda _: remote.search(queries, 2), range(40)))
        assert found == [small.search(queries, 2)] * 40
        children = psutil.Process(command.process.pid).children()
        workers = [child for child in children if "spawn_main" in str(child.cmdline())]
        assert len(workers) == 2
        command.kill()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive


@pytest.mark.slow
def test_64_clients_at_once_get_what_each_of_them_asked_for(
    tmp_path, world, questions, retriever
):
    asked = [q["question"] for q in questions["test"]]
    wanted = retriever.search(asked, 3)
    Retriever.build(world.passages, tmp_path / "index")
    with ServeCommand(tmp_path / "index") as command:
        remote = RemoteRetriever(command.url, patience=0)

        def is_answered(number):
            """Half of the clients ask one by one, the others in batches."""
            size = 1 if number % 2 else 25
            start = number % 20 * 25
            found = []
            for first in range(start, start + 25, size):
                found += remote.search(asked[first : first + size], 3)
            return found == wanted[start : start + 25]

        with ThreadPoolExecutor(64) as clients:
            assert all(clients.map(is_answered, range(256)))
