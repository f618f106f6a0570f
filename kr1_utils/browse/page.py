"""Owns the browser's page: data, style and script in one HTML file.

The file holds no text of a trajectory as markup: the data is one JSON value in which
every "<" is escaped, and the script shows texts as text. Its policy (CSP) lets the page
run that one script, and load nothing.
"""

import base64
import hashlib
import html
import json
import os
import re
from dataclasses import fields
from importlib import resources
from pathlib import Path

from kr1_utils.browse.run import SOURCES, Row, read_run
from kr1_utils.files import display_path, write_text

# A browser opens a larger file slowly.
MOST_BYTES = 30_000_000

# Columns whose values are one text each, and lists of texts.
_TEXT = ("id", "type", "question", "outcome", "stop", "answer")
_TEXTS = ("golden_answers", "turns")
_PLACEHOLDER = re.compile(r"\{(title|policy|style|note|data|script)\}")


def write_page(out: str | os.PathLike, file: str | os.PathLike | None = None) -> Path:
    """Write all trajectories of a run into one HTML file.

    Args:
        out: the folder of the run.
        file: where to; OUT/browse.html if not given.

    Returns:
        the file.

    Raises:
        FileNotFoundError: if there is no such folder, or no trajectory in it.
        UnreadableRowError: naming the first line that holds no trajectory.
        OSError: if the file cannot be written.
    """
    out = Path(out)
    file = Path(file) if file else out / "browse.html"
    write_text(file, render(read_run(out), display_path(out)))
    return file


def link_html(file: str | os.PathLike) -> str:
    """A link to the file, for a notebook: relative to the folder it runs in."""
    address = html.escape(Path(os.path.relpath(file)).as_posix())
    return f'<a href="{address}" target="_blank">{html.escape(display_path(file))}</a>'


def render(rows: list[Row], title: str, most_bytes: int = MOST_BYTES) -> str:
    """The page as text.

    Args:
        title: of the page, the name of the run.
        most_bytes: of the data. Where all trajectories take more, every second step and
            question is left out, or three of four, and so on; the page says so.
    """
    every = 1
    data = _as_json(rows)
    while len(data.encode("utf-8", "replace")) > most_bytes and every < len(rows):
        every *= 2
        data = _as_json(_thinned(rows, every))
    note = ""
    if every > 1:
        note = f"One of {every} steps and questions is shown, for the page's size."
    style, script, template = map(_asset, ("page.css", "page.js", "page.html"))
    parts = {
        "title": html.escape(title),
        "policy": f"style-src {_hash(style)}; script-src {_hash(script)}",
        "style": style,
        "note": note,
        "data": data,
        "script": script,
    }
    # In one go, so that no placeholder is looked for in what is put in.
    return _PLACEHOLDER.sub(lambda found: parts[found[1]], template)


def _asset(name: str) -> str:
    return (resources.files("kr1_utils.browse") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A text's hash, as a Content-Security-Policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _thinned(rows: list[Row], every: int) -> list[Row]:
    """Groups stay whole, and a question that stays does so before and after."""
    steps = sorted({row.step for row in rows if row.step is not None})
    ids = list(dict.fromkeys(row.id for row in rows if row.step is None))
    kept_steps = set(steps[::every])
    kept_ids = set(ids[::every])
    return [
        row
        for row in rows
        if (row.id in kept_ids if row.step is None else row.step in kept_steps)
    ]


def _as_json(rows: list[Row]) -> str:
    """The data as the script reads it: a list per column, and each text once.

    A text is named by its number in `strings`. Observations are cut into lines, for
    passages come back again and again.
    """
    numbers: dict[str, int] = {}

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    columns: dict[str, list] = {}
    for name in [field.name for field in fields(Row)]:
        columns[name] = [getattr(row, name) for row in rows]
    for name in _TEXT:
        columns[name] = [-1 if t is None else number(t) for t in columns[name]]
    for name in _TEXTS:
        columns[name] = [[number(t) for t in texts] for texts in columns[name]]
    columns["observations"] = [
        [[number(line) for line in text.split("\n")] for text in row.observations]
        for row in rows
    ]
    sources = [source for source in SOURCES if source in columns["source"]]
    columns["kind"] = [sources.index(source) for source in columns.pop("source")]
    names = list(dict.fromkeys(name for row in rows for name in row.rewards))
    del columns["rewards"]
    data = {
        "kinds": sources,
        "rewards": {name: [row.rewards.get(name) for row in rows] for name in names},
        "columns": columns,
        "strings": list(numbers),
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A "</script>" or "<!--" in a text would end the data.
    return text.replace("<", "\\u003c")
