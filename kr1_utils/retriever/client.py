"""Owns the client: an index that another process serves, searched like one's own.

Any server of Search-R1's protocol will do (`serve` says what that is): ours, or that of
Search-R1 itself, verl, slime or SkyRL.
"""

import http.client
import json
import time
from contextlib import closing
from urllib.parse import SplitResult, urlsplit

from kr1_utils.corpus import split_contents

ROUTE = "/retrieve"

# Seconds without a byte from the server, after which a request has failed.
TIMEOUT = 60.0

# Seconds after the first request that failed in which it is sent again. Of a server
# that is back by then, no one hears.
PATIENCE = 60.0

# Seconds between two such requests: at first, and at most. Each pause is twice as long
# as the last one.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

# Statuses of a server that may do better in a moment, beside those from 500 on.
BUSY = (408, 429)

# The most queries of one request; fewer if each query finds much.
QUERIES_PER_REQUEST = 128
PASSAGES_PER_REQUEST = 10_000

# Of what a server said, in the sentence of an error.
CHARACTERS_SHOWN = 200


class RemoteRetriever:
    """An index behind a URL; takes the place of a `Retriever`.

    Each request has a connection of its own, so threads and forked processes may share
    this object. It asks the server itself, and no proxy.

    Args:
        url: of the server, such as "http://127.0.0.1:8000". If it names no path, that
            is "/retrieve".
        timeout: seconds without a byte from the server after which a request has
            failed.
        patience: seconds after a request has failed in which it is sent again.

    Raises:
        ValueError: if it is no URL of a server.
    """

    def __init__(
        self, url: str, timeout: float = TIMEOUT, patience: float = PATIENCE
    ) -> None:
        parts = _split(url)
        path = ROUTE if parts.path in ("", "/") else parts.path
        self.url = f"{parts.scheme}://{parts.netloc}{path}"
        self.timeout = timeout
        self.patience = patience
        self._is_encrypted = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._path = f"{path}?{parts.query}" if parts.query else path

    def __str__(self) -> str:
        return f"the index at {self.url}"

    def search(self, queries: list[str], k: int = 3) -> list[list[dict]]:
        """Find the best passages of each query, as `Retriever.search` does.

        A server that does not answer is asked again until `patience` ends.

        Args:
            queries: any texts; equal ones are sent once.
            k: how many passages at most, from 0.

        Returns:
            For each query its passages `{"id", "title", "text"}`, best first; each has
            its `score`, if the server gave one.

        Raises:
            ValueError: if k is negative.
            RuntimeError: if the server refuses, does not speak the protocol, or gave no
                answer for so long.
        """
        if k < 0:
            raise ValueError(f"k is a number of passages and cannot be {k}.")
        if k == 0:
            return [[] for _ in queries]
        distinct = list(dict.fromkeys(queries))
        size = min(QUERIES_PER_REQUEST, max(1, PASSAGES_PER_REQUEST // k))
        found: list[list[dict]] = []
        for start in range(0, len(distinct), size):
            found += self._retrieve(distinct[start : start + size], k)
        by_query = dict(zip(distinct, found, strict=True))
        return [by_query[query] for query in queries]

    def _retrieve(self, queries: list[str], k: int) -> list[list[dict]]:
        """The passages of queries that fit into one request."""
        asked = {
            # JSON has no halves of surrogate pairs. They are no part of a word.
            "queries": [query.encode("utf-8", "replace").decode() for query in queries],
            "topk": k,
            "return_scores": True,
        }
        body = self._post_until_answered(json.dumps(asked).encode())
        try:
            return read_answer(body, len(queries), k)
        except ValueError as error:
            raise RuntimeError(
                f"What {self.url} answers is not Search-R1's protocol: {error}."
            ) from None

    def _post_until_answered(self, body: bytes) -> bytes:
        """Post `body` again and again, with longer and longer pauses, until it works.

        Raises:
            RuntimeError: if the server refuses, or `patience` has ended.
        """
        deadline = None
        pause = FIRST_PAUSE
        while True:
            try:
                return self._post(body)
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "strerror", None) or str(error)
            now = time.monotonic()
            if deadline is None:
                deadline = now + self.patience
            if now >= deadline:
                raise RuntimeError(
                    f"No answer from {self.url} for {self.patience:.0f} s ({reason}):"
                    " start the server, then the same command goes on from here."
                )
            # The last request is sent when the time is up, and not before.
            time.sleep(min(pause, deadline - now))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _post(self, body: bytes) -> bytes:
        """Post `body` once; return what the server answers.

        Raises:
            OSError, HTTPException: if there is no server, or it cannot answer now.
            RuntimeError: if it refuses.
        """
        kind = http.client.HTTPConnection
        if self._is_encrypted:
            kind = http.client.HTTPSConnection
        with closing(kind(self._host, self._port, timeout=self.timeout)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        said = f"{answer.status} {answer.reason}"
        if answer.status >= 500 or answer.status in BUSY:
            raise http.client.HTTPException(said)
        if answer.status != 200:
            raise RuntimeError(f"{self.url} refuses a search: {said}, {_shown(text)}.")
        return text


def _split(url: str) -> SplitResult:
    """The parts of a server's URL.

    Raises:
        ValueError: if it is none.
    """
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        is_server = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server or not parts.hostname:
        raise ValueError(
            f"retriever={url!r} is not the URL of a server: write it like"
            " http://127.0.0.1:8000."
        )
    return parts


def _shown(body: bytes) -> str:
    """What a server said, on one line, for the sentence of an error."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text[:CHARACTERS_SHOWN])


def read_answer(body: bytes, queries: int, k: int) -> list[list[dict]]:
    """The passages in an answer to `POST /retrieve`.

    Args:
        body: the answer, JSON.
        queries: how many were asked.
        k: how many passages each may have; some servers give more.

    Returns:
        one list of passages per query, as `RemoteRetriever.search` gives them.

    Raises:
        ValueError: naming what it is, if it is not such an answer.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        raise ValueError(f"no JSON, but {_shown(body)}") from None
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list) or not all(isinstance(row, list) for row in result):
        raise ValueError(f"no 'result' with a list per query, but {_shown(body)}")
    if len(result) != queries:
        raise ValueError(f"{len(result)} lists of passages for {queries} queries")
    return [[_passage(item) for item in row[:k]] for row in result]


def _passage(item: object) -> dict:
    """A passage from an item of a result: a document, with or without its score."""
    document = item.get("document", item) if isinstance(item, dict) else None
    if not isinstance(document, dict):
        raise ValueError(f"a passage that is no object, but {item!r:.60}")
    title, text = _title_and_text(document)
    passage = {"id": str(document.get("id", title)), "title": title, "text": text}
    if isinstance(item.get("score"), int | float):
        passage["score"] = item["score"]
    return passage


def _title_and_text(document: dict) -> tuple[str, str]:
    """Both from what a server gives: ours gives `title` beside `contents`, most others
    `contents` alone, and some `title` and `text`."""
    title = document.get("title")
    contents = document.get("contents")
    if isinstance(contents, str):
        head = f'"{title}"\n'
        if contents.startswith(head):
            return title, contents.removeprefix(head)
        return split_contents(contents)
    text = document.get("text")
    if isinstance(title, str) and isinstance(text, str):
        return title, text
    raise ValueError(f"a document without 'contents': {document!r:.60}")
