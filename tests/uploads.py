"""Owns a stand-in for the hub, on this machine: it takes what is uploaded, and keeps
it."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"


class LoopbackHub(ThreadingHTTPServer):
    """Speaks what `create_repo`, `upload_folder` and `model_info` need.

    Attributes:
        files: name of a model -> its files: name -> bytes.
        created: what was asked for when models were made.
        licences: id of a model -> its licence, as its card tells it.
        refuses: part of an address -> the status that it is refused with.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.licences: dict[str, str] = {}
        self.refuses: dict[str, int] = {}
        # SHA-256 of a large file -> its bytes.
        self.objects: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home, token=TOKEN) -> dict[str, str]:
        """Variables with which huggingface_hub speaks to this hub alone.

        Args:
            home: an empty folder, so that no token and no cache of a user is read.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            # Its chunks go to a storage of their own, which does not stand in here.
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextlib.contextmanager
def loopback_hub():
    """A hub that ends with its block."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet: what the test prints is not about this."""

    def do_GET(self):  # noqa: N802
        model = self._path().removeprefix("/api/models/")
        if model in self.server.licences:
            card = {"license": self.server.licences[model]}
            self._reply({"id": model, "cardData": card, "siblings": [], "tags": []})
        else:
            self._reply({"error": "Repository not found"}, 404)

    def do_PUT(self):  # noqa: N802
        content = self._content()
        name = self._path().rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() == name:
            self.server.objects[name] = content
            self._reply({})
        else:
            self._reply({"error": "other bytes than announced"}, 400)

    def do_POST(self):  # noqa: N802
        path = self._path()
        content = self._content()
        for part, status in self.server.refuses.items():
            if part in path:
                self._reply({"error": "refused by this test"}, status)
                return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self._preupload(json.loads(content))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(content))
        elif "/commit/" in path:
            model = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(model, [json.loads(line) for line in content.splitlines()])
        else:
            self._reply({"error": f"not spoken here: {path}"}, 404)

    def _create(self, asked):
        self.server.created.append(asked)
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.server.files else 200
        self.server.files.setdefault(name, {})
        self._reply({"url": f"{self.server.url}/{name}"}, status)

    def _preupload(self, asked):
        told = []
        for file in asked["files"]:
            is_large = file["path"].endswith(".safetensors")
            told.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                }
            )
        self._reply({"files": told})

    def _batch(self, asked):
        told = []
        for item in asked["objects"]:
            href = f"{self.server.url}/objects/{item['oid']}"
            told.append({**item, "actions": {"upload": {"href": href}}})
        self._reply({"transfer": "basic", "objects": told})

    def _commit(self, model, lines):
        files = self.server.files[model]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        address = f"{self.server.url}/{model}/commit/{'0' * 40}"
        self._reply({"commitUrl": address, "commitOid": "0" * 40})

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        content = self.rfile.read(size)
        self.rfile.readline()
        return content

    def _reply(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
