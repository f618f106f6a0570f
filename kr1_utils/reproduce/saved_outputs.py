"""Owns the outputs that the notebooks are saved with: those of the cells as saved.

`python -m kr1_utils.reproduce.saved_outputs` executes, one at a time, each notebook
whose code has changed since its saved run, so it can be stopped and started again.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import tempfile
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import REPO, write_text
from kr1_utils.reproduce.papermill import run_notebook

try:
    from PIL import Image
except ImportError:
    Image = missing("notebooks")

NOTEBOOKS = REPO / "notebooks"
# Where a notebook notes which code its outputs are of.
NOTE = "kr1_code_of_outputs"
INJECTED = "injected-parameters"
PNG = "image/png"
# A figure of lines, bars and text needs no more, and takes a third of the room.
COLOURS = 64
# A bar that moved; of several states of one bar the last is kept.
BAR = re.compile(r"^(?P<name>[^|\r\n]*?):? *\d+%\|", re.MULTILINE)


def is_current(notebook: dict) -> bool:
    """Whether the outputs of a notebook are those of its code."""
    return notebook["metadata"].get(NOTE) == code_hash(notebook)


def code_hash(notebook: dict) -> str:
    """A hash of the code cells, without what papermill has put between them."""
    sources = ["".join(cell["source"]) for cell in _code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def _code_cells(notebook: dict) -> list[dict]:
    return [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and INJECTED not in cell["metadata"].get("tags", [])
    ]


def adopt(notebook: dict, executed: dict, folder: str = "") -> dict:
    """The notebook with the outputs of an executed copy.

    Args:
        folder: OUT of the executed copy, if it had one; in outputs it becomes the
            folder of a run of `tiny`.

    Raises:
        ValueError: if their code differs.
    """
    if code_hash(notebook) != code_hash(executed):
        raise ValueError("The executed copy has other code than the notebook.")
    cells = zip(_code_cells(notebook), _code_cells(executed), strict=True)
    for number, (cell, ran) in enumerate(cells, 1):
        cell["execution_count"] = number
        outputs = _joined(ran["outputs"])
        cell["outputs"] = [_clean(output, folder) for output in outputs]
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = number
    notebook["metadata"][NOTE] = code_hash(notebook)
    return notebook


def _joined(outputs: list[dict]) -> list[dict]:
    """The outputs, where what one stream said in a row is one, as in a browser."""
    joined: list[dict] = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output["output_type"] == "stream" and output["name"] == before.get("name"):
            text = "".join([*before["text"], *output["text"]])
            joined[-1] = {**before, "text": text}
        else:
            joined.append(output)
    return joined


def _clean(output: dict, folder: str) -> dict:
    if folder:
        output = json.loads(json.dumps(output).replace(folder, "data/runs/tiny"))
    if output["output_type"] == "stream":
        text = _without_old_bars("".join(output["text"]))
        output = {**output, "text": text.splitlines(keepends=True)}
    if PNG in output.get("data", {}):
        picture = _with_few_colours("".join(output["data"][PNG]))
        output = {**output, "data": {**output["data"], PNG: picture}}
    return output


def _with_few_colours(encoded: str) -> str:
    """A PNG in base64, with as few colours as a figure needs."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if picture.mode == "P":
        return encoded
    few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small = io.BytesIO()
    few.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def _without_old_bars(text: str) -> str:
    """A stream as a terminal shows it in the end: one line per bar."""
    if "\r" not in text and not BAR.search(text):
        return text
    kept: list[str] = []
    for line in re.split(r"[\r\n]+", text):
        bar = BAR.match(line)
        before = BAR.match(kept[-1]) if kept else None
        if bar and before and bar["name"] == before["name"]:
            kept[-1] = line
        elif line.strip():
            kept.append(line)
    return "\n".join(kept) + "\n"


def execute(file: Path) -> float:
    """Execute a notebook, save it with its outputs, and return the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / file.name
        seconds = run_notebook(file, {}, executed)
        _save(file, adopt(_read(file), _read(executed)))
    return seconds


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _save(file: Path, notebook: dict) -> None:
    write_text(file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="such as 03; all if not given")
    parser.add_argument(
        "--adopt", type=Path, help="take the outputs of this executed copy instead"
    )
    parser.add_argument("--out", default="", help="the OUT of that copy")
    words = parser.parse_args()
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        if words.names and not file.stem.startswith(tuple(words.names)):
            continue
        if words.adopt:
            _save(file, adopt(_read(file), _read(words.adopt), words.out))
        elif is_current(_read(file)):
            print(f"{file.stem}: outputs are those of its code", flush=True)
        else:
            print(f"{file.stem}: {execute(file):.0f} s", flush=True)


if __name__ == "__main__":
    _main()
