"""The notebooks as a reader sees them: run in a real JupyterLab, and as HTML."""

import base64
import re
import subprocess
import sys

import nbformat
import pytest
from nbconvert import HTMLExporter

from kr1_utils.files import REPO

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
def test_run_all_in_jupyterlab_shows_no_error_and_every_picture():
    script = str(REPO / "tests" / "browser.py")
    done = subprocess.run(
        [sys.executable, script, "01_build_index", "02_agent_loop"],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for line in done.stdout.splitlines():
        cells, errors, pictures, missing, wide = map(int, re.findall(r" (\d+) ", line))
        assert cells > 40 and pictures and not (errors or missing or wide), line
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.slow
def test_an_error_in_a_cell_is_seen(tmp_path):
    """Else the test above could not fail."""
    sys.path.insert(0, str(REPO / "tests"))
    import browser

    (tmp_path / "notebooks").mkdir()
    cells = [
        nbformat.v4.new_code_cell(text)
        for text in (
            (
                'from IPython.display import HTML; HTML(\'<img src="nothing.png"> a'
                " picture')"
            ),
            "HTML('<table><td style=\"min-width: 2000px\">a table</table>')",
            "1 / 0",
        )
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    broken = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(broken, tmp_path / "notebooks" / "broken.ipynb")
    with browser.chromium(tmp_path) as page, browser.jupyterlab(tmp_path) as address:
        seen = browser.run_all(page, address, "broken", 120)
    assert "ZeroDivisionError" in seen["errors"][0]
    assert (seen["images"], seen["missing"], seen["wide"]) == (1, 1, 1)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_html_shows_every_figure_of_a_notebook(file):
    notebook = nbformat.read(file, 4)
    figures = [
        o.data["image/png"]
        for c in notebook.cells
        for o in c.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    shown = re.findall(r'<img[^>]*src="data:image/png;base64,([^"]+)"', page)
    assert figures and [s.strip() for s in shown] == [f.strip() for f in figures]
    for picture in map(base64.b64decode, shown):
        assert picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82")
