"""Owns watching a run: a server on this machine that shows how far it has come.

It only reads OUT, so it may be started before, during and after a training.
"""

import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

import pandas as pd

from kr1_utils import plots
from kr1_utils.browse import read_run, render
from kr1_utils.extras import missing
from kr1_utils.files import display_path

try:
    import matplotlib
except ImportError:
    matplotlib = missing("notebooks")

# Only programs on this machine are answered.
HOST = "127.0.0.1"


class WatchServer(ThreadingHTTPServer):
    """Serves the page at /, and what it asks for: the state, the panels, the browser.

    Args:
        out: the folder of the run; there may be no log in it yet.
        port: 0 takes a free one.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if the port is taken.
        ImportError: without the extra [notebooks].
    """

    daemon_threads = True

    def __init__(self, out: Path, port: int = 0):
        if not out.is_dir():
            raise FileNotFoundError(
                f"No folder {out}: name the one in which the run trains."
            )
        # Panels are drawn by the threads that answer, where no window can be opened.
        matplotlib.use("Agg")
        self.out = out
        # matplotlib draws one figure at a time.
        self._drawing = threading.Lock()
        self._drawn = (0.0, b"")  # when the log was written, and its panels
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(
                f"Port {port} cannot be used: {reason}; --port 0 takes a free one."
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def state(self) -> dict:
        """How far the run has come: its last row, and how long ago that was."""
        log = self.out / "train_log.csv"
        run = {"run": display_path(self.out)}
        try:
            rows = pd.read_csv(log)
            written = log.stat().st_mtime
        except FileNotFoundError:
            return {**run, "step": 0}
        last = rows.iloc[-1].dropna().to_dict()
        return {
            **run,
            "step": int(last.pop("step")),
            "seconds_ago": round(max(0.0, time.time() - written), 1),
            "last": last,
        }

    def panels(self) -> bytes:
        """The six panels of the log as it is now, in SVG.

        Raises:
            FileNotFoundError: before the first step.
        """
        log = self.out / "train_log.csv"
        with self._drawing:
            written = log.stat().st_mtime
            if written != self._drawn[0]:
                self._drawn = (written, _draw(pd.read_csv(log)))
            return self._drawn[1]


def _draw(log: pd.DataFrame) -> bytes:
    """The six panels in SVG."""
    plots.use_style()
    figure = plots.six_panels({"": log})
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", transparent=True)
    plots.plt.close(figure)
    return picture.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """Answers with one of three pages, or says that there is none."""

    def do_GET(self):  # noqa: N802 - http.server calls it by this name
        pages = {
            "/": ("text/html; charset=utf-8", self._page),
            "/state.json": ("application/json", self._state),
            "/panels.svg": ("image/svg+xml", self.server.panels),
            "/browse.html": ("text/html; charset=utf-8", self._browser),
        }
        path = self.path.partition("?")[0]
        if path not in pages:
            self.send_error(404)
            return
        kind, make = pages[path]
        try:
            body = make()
        except (OSError, ValueError) as error:
            # Perhaps the run has not come so far.
            self.send_error(404, explain=str(error))
            return
        # A reader may have closed the page before the panels were drawn.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(kind, body)

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _page(self) -> bytes:
        return (resources.files("kr1_utils.watch") / "watch.html").read_bytes()

    def _state(self) -> bytes:
        return json.dumps(self.server.state()).encode()

    def _browser(self) -> bytes:
        out = self.server.out
        return render(read_run(out), display_path(out)).encode("utf-8", "replace")

    def log_message(self, *_):
        """Say nothing: the page asks every few seconds."""
