"""Owns the server: one index over HTTP for all who train, in Search-R1's protocol.

Search-R1 (Jin et al., 2025, arXiv 2503.09516) brought it, and verl, slime and SkyRL
speak it too. `POST /retrieve` takes

    {"queries": ["Who directed Silent River?"], "topk": 1, "return_scores": true}

and gives one list of passages per query, best first:

    {"result": [[{"document": {"id": "a", "title": "Silent River",
                               "contents": "\\"Silent River\\"\\nIt was directed by …"},
                  "score": 3.2}]]}

Without `return_scores`, the lists hold the documents themselves. `contents` is all that
others read; with `title`, `RemoteRetriever` takes it apart without a guess. What is
refused gets a status from 400 on, and {"detail": "one sentence"}. `GET /health` answers
once the index is open.
"""

import importlib.util
import json
import os
import socket
from pathlib import Path

from kr1_utils.corpus import locate_files
from kr1_utils.extras import missing
from kr1_utils.files import data_folder
from kr1_utils.notebook import index_folder
from kr1_utils.processes import end_with_parent
from kr1_utils.profiles import resolve
from kr1_utils.retriever.client import ROUTE
from kr1_utils.retriever.search import Retriever

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel
except ImportError:
    uvicorn = FastAPI = HTTPException = Request = Response = missing("serve")
    RequestValidationError = JSONResponse = BaseModel = missing("serve")

# Passages per query, where a request does not say.
TOPK = 3

# Limits of one request: bytes of its body, passages per query, and in all.
MOST_BYTES = 16 * 2**20
MOST_TOPK = 1_000
MOST_PASSAGES = 100_000

# Tells the processes of several workers which index to open.
INDEX_VARIABLE = "KR1_SERVED_INDEX"


class Asked(BaseModel):
    """The body of a request."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


def make_app(retriever: Retriever) -> FastAPI:
    """The application that answers requests from this index."""
    app = FastAPI(title="Knowledge-R1's index")
    app.add_middleware(SizeLimit)
    app.add_exception_handler(RequestValidationError, refuse)

    # Not `async`: FastAPI gives each such request a thread.
    @app.post(ROUTE)
    def retrieve(asked: Asked) -> Response:
        topk = TOPK if asked.topk is None else asked.topk
        check_size(len(asked.queries), topk)
        found = retriever.search(asked.queries, topk)
        result = [
            [as_item(passage, asked.return_scores) for passage in passages]
            for passages in found
        ]
        # ASCII, for a passage may hold half a surrogate pair, which UTF-8 has not.
        body = json.dumps({"result": result})
        return Response(body, media_type="application/json")

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok", "passages": len(retriever)}

    return app


def check_size(queries: int, topk: int) -> None:
    """Refuse a request for too much or for nothing.

    Raises:
        HTTPException: 422, with one sentence.
    """
    if not 1 <= topk <= MOST_TOPK:
        raise HTTPException(422, f"topk is from 1 to {MOST_TOPK}, not {topk}.")
    if queries * topk > MOST_PASSAGES:
        raise HTTPException(
            422,
            f"{queries} queries of {topk} passages are {queries * topk}, and one"
            f" request brings at most {MOST_PASSAGES}: send several.",
        )


def as_item(passage: dict, with_score: bool) -> dict:
    """A passage as the protocol has it."""
    document = {
        "id": passage["id"],
        "title": passage["title"],
        "contents": f'"{passage["title"]}"\n{passage["text"]}',
    }
    if not with_score:
        return document
    return {"document": document, "score": passage["score"]}


def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
    """Say in one sentence what is wrong with a body."""
    first = error.errors()[0]
    # Behind "body", where it is: a field, and a number in a list.
    place = ".".join(str(step) for step in first["loc"][1:])
    if first["type"] == "json_invalid":
        sentence = f"The body is not JSON: {first['ctx']['error']}."
    elif place:
        sentence = f"{place}: {first['msg']}."
    else:
        sentence = (
            f"{first['msg']}: the body is a JSON object with 'queries', and its"
            " Content-Type is application/json."
        )
    return JSONResponse({"detail": sentence}, 422)


class SizeLimit:
    """Refuses bodies above MOST_BYTES without holding them in memory (ASGI)."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        size = 0

        async def receive_counted() -> dict:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                raise HTTPException(
                    413, f"A request has at most {MOST_BYTES} bytes: send several."
                )
            return message

        await self.app(scope, receive_counted, send)


# --- as a command ---


def serve(
    profile: str = "tiny",
    data: str = "",
    index: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
) -> None:
    """Serve an index until the process is ended.

    Args:
        profile: whose passages are indexed, if they are not yet.
        data: a folder with passages of yours instead, see `corpus.locate_files`.
        index: the folder of the index; if empty, that of the profile's runs.
        host: the address to listen at. Who reaches it may search.
        port: 0 takes a free one.
        workers: processes that answer. They share one copy of the index, for its files
            are mapped.

    Raises:
        ValueError, FileNotFoundError: if there are neither an index nor passages, or
            they do not belong together.
        OSError: if the port is taken.
        ImportError: without the extra [serve].
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}.")
    # What is missing or taken is found before an index is built.
    if importlib.util.find_spec("uvicorn") is None:
        raise ImportError(missing("serve").sentence)
    with listen(host, port) as listener:
        folder, retriever = open_index(profile, data, index)
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{ROUTE}"
        print(f"{retriever} at {url} (Ctrl-C ends it)", flush=True)
        if workers == 1:
            config = uvicorn.Config(make_app(retriever), log_level="warning")
            uvicorn.Server(config).run([listener])
            return
    os.environ[INDEX_VARIABLE] = str(folder.resolve())
    uvicorn.run(
        "kr1_utils.retriever.serve:app_of_worker",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_level="warning",
    )
    # With several workers, uvicorn returns after Ctrl-C as if nothing had been.
    raise KeyboardInterrupt


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: in one sentence, if the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Cannot listen at port {port} of {host} ({reason}): choose another with"
            " --port or --host."
        ) from None


def open_index(profile: str, data: str, index: str) -> tuple[Path, Retriever]:
    """Open the index to serve, or build it; see `serve`.

    Returns:
        (its folder, the index).
    """
    if index and not data:
        return Path(index), Retriever.open(index)
    passages = locate_files(resolve(profile), data)["passages"]
    folder = Path(index or index_folder(data_folder() / "runs" / profile))
    return folder, Retriever.open_or_build(passages, folder)


def app_of_worker() -> FastAPI:
    """The application of one of several workers."""
    end_with_parent()
    return make_app(Retriever.open(os.environ[INDEX_VARIABLE]))
