"""Owns the servers that tests ask: ours, and one that says what it was told to."""

import contextlib
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading

import uvicorn

from kr1_utils.files import REPO
from kr1_utils.retriever.serve import listen, make_app


@contextlib.contextmanager
def served(index):
    """Within it, our server answers from this index at the URL that it gives."""
    server = uvicorn.Server(uvicorn.Config(make_app(index), log_level="warning"))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class ServeCommand:
    """`kr1 serve` with these words in a process of its own, which may be killed and
    started again at the same port."""

    def __init__(self, index, *words):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.words = ["--index", str(index), "--port", str(self.port), *words]
        self.process = None

    def start(self):
        """Returns what it says when it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kr1_utils", "serve", *self.words],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore Ctrl-C, and so would this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        return self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()


class StandIn(http.server.ThreadingHTTPServer):
    """A server that says what it was told to.

    Attributes:
        answers: for each request in turn, a function of its body: it returns (status,
            body), or None to close the connection without a word. The last one stays.
        asked: bodies of all requests so far.
        paths: their paths.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answering)
        self.answers = []
        self.asked = []
        self.paths = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answering(http.server.BaseHTTPRequestHandler):
    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(body)
        self.server.paths.append(self.path)
        answers = self.server.answers
        answer = (answers.pop(0) if len(answers) > 1 else answers[0])(body)
        if answer is None:
            return
        status, content = answer
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
