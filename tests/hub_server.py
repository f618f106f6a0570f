"""Owns a hub on loopback: the addresses that huggingface_hub asks for, and faults.

It answers as huggingface.co does: large files are delivered by another host, to which
`resolve` redirects, and their ETag is their SHA-256.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# Files that git-lfs keeps, as the hub's default .gitattributes has it.
LARGE = (".gz", ".parquet", ".safetensors", ".jsonl", ".bin", ".gguf")

REPOSITORY = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """A hub with what tests put there.

    Attributes:
        commits: (kind, repository) -> its commits, oldest first: (id, files by name).
        licences: (kind, repository) -> what its card says.
        cuts: name of a large file -> bytes after which each next delivery breaks off.
        stalls: name of a large file -> bytes after which nothing more comes.
        swapped: name of a large file -> what comes in its place.
        delivered: (name of a large file, first byte) for each delivery so far.
    """

    def __init__(self):
        self.commits: dict = {}
        self.licences: dict = {}
        self.cuts: dict[str, list[int]] = {}
        self.stalls: dict[str, int] = {}
        self.swapped: dict[str, bytes] = {}
        self.delivered: list[tuple[str, int]] = []
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, kind, repository, files, licence=""):
        """A commit with these files, {name: bytes}, beside those that are there."""
        commits = self.commits.setdefault((kind, repository), [])
        files = {**(commits[-1][1] if commits else {}), **files}
        text = repr(sorted((name, digest(data)) for name, data in files.items()))
        commits.append((hashlib.sha1(text.encode()).hexdigest(), files))
        self.licences[kind, repository] = licence

    def stop(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home):
        """Of a process that knows this hub alone, and keeps its cache in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def python(self, code, home, **more):
        """What a new Python does with this code."""
        return self._run(["-c", code], home, more)

    def kr1(self, words, home, **more):
        """`kr1` with these words, as a reader types them."""
        return self._run(["-m", "kr1_utils", *words], home, more)

    def _run(self, words, home, more):
        environment = self.environment(home) | more.pop("environment", {})
        return subprocess.run(
            [sys.executable, *words],
            env=environment,
            text=True,
            capture_output=True,
            **{"timeout": 600} | more,
        )


@contextmanager
def running_hub():
    hub = Hub()
    try:
        yield hub
    finally:
        hub.stop()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def git_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = urlsplit(self.path).path
        if path.startswith("/cdn/"):
            self.deliver(*path.removeprefix("/cdn/").split("/", 1))
        elif match := REPOSITORY.fullmatch(path):
            self.describe(match[1].removesuffix("s"), match[2])
        elif match := FILE.fullmatch(path):
            kind = "dataset" if match[1] else "model"
            self.resolve(kind, match[2], match[3], match[4])
        else:
            self.refuse(404, "EntryNotFound")

    def describe(self, kind, repository):
        """What /api says of a repository."""
        commits = self.hub.commits.get((kind, repository))
        if not commits:
            self.refuse(401, "RepoNotFound")
            return
        commit, files = commits[-1]
        licence = self.hub.licences[kind, repository]
        description = {
            "id": repository,
            "sha": commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": {"license": licence} if licence else {},
            "siblings": [sibling(name, data) for name, data in files.items()],
        }
        self.send(200, json.dumps(description).encode(), {})

    def resolve(self, kind, repository, revision, name):
        """What /resolve says of a file."""
        commits = dict(self.hub.commits.get((kind, repository), []))
        if not commits:
            self.refuse(401, "RepoNotFound")
            return
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            self.refuse(404, "RevisionNotFound")
            return
        headers = {"X-Repo-Commit": commit}
        data = commits[commit].get(name)
        if data is None:
            self.refuse(404, "EntryNotFound", headers)
        elif name.endswith(LARGE):
            headers |= {
                "X-Linked-Etag": f'"{digest(data)}"',
                "X-Linked-Size": str(len(data)),
                # Another host, for the hub's own would be asked for the ETag.
                "Location": f"http://localhost:{self.hub.port}/cdn/{digest(data)}/{name}",
            }
            self.send(302, b"", headers)
        else:
            self.send(200, data, headers | {"ETag": f'"{git_blob(data)}"'})

    def deliver(self, wanted, name):
        """The bytes of a large file, from where the request says."""
        files = [f for commits in self.hub.commits.values() for _, f in commits]
        [data] = {f[name] for f in files if name in f and digest(f[name]) == wanted}
        data = self.hub.swapped.get(name, data)
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        self.hub.delivered.append((name, start))
        headers = {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = self.hub.cuts.get(name)
        last = cuts.pop(0) if cuts else self.hub.stalls.get(name)
        self.send(206 if start else 200, data[start:], headers, last)
        if last is not None:
            self.wfile.flush()
            if name in self.hub.stalls:
                self.hub.stopped.wait()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, status, code, headers=None):
        self.send(status, b"", {"X-Error-Code": code} | (headers or {}))

    def send(self, status, body, headers, last=None):
        """Answer.

        Args:
            last: how many bytes of the body come; None is all.
        """
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:last])


def sibling(name, data):
    """A file in what /api says."""
    described = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
    if name.endswith(LARGE):
        sizes = {"size": len(data), "pointerSize": 134}
        described["lfs"] = {"sha256": digest(data), **sizes}
    return described
