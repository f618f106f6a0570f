"""Opens notebooks in JupyterLab with headless Chromium, runs all cells, and looks at
the page as readers do.

Usage: browser.py [NOTEBOOK …] [--screenshots FOLDER] [--whole]. Without names, all of
them; shortened, but with --whole. One line a notebook; the exit status is 1 if a cell
failed, a picture is missing or an output is wider than the page."""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
from helpers import SHORT
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from kr1_utils.files import REPO

TOKEN = "reader"

# Of the browser's window, in pixels.
WIDTH = 1280
HEIGHT = 1600

SETTINGS = {
    # All cells are in the page, also those out of sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
LOOK = """
    const panel = document.querySelector('.jp-Notebook');
    const all = (selector) => [...panel.querySelectorAll(selector)];
    const images = all('img');
    const right = panel.getBoundingClientRect().right + 1;
    // Bars are written to stderr too; only a traceback is an error.
    const errors = all('[data-mime-type="application/vnd.jupyter.stderr"]')
        .map(e => e.textContent)
        .filter(t => t.includes('Traceback (most recent call last)'))
        .map(t => t.slice(-300));
    // Wide: what would have to be scrolled.
    const wide = all('.jp-OutputArea-output').filter(
        o => o.scrollWidth > o.clientWidth + 1
            || o.getBoundingClientRect().right > right);
    return {prompts: all('.jp-CodeCell .jp-InputPrompt').map(p => p.textContent),
            errors: errors,
            images: images.length,
            missing: images.filter(i => !(i.complete && i.naturalWidth)).length,
            wide: wide.length};
"""


def program(name: str) -> str:
    """Where Chromium or its driver lies."""
    found = shutil.which(name)
    if not found:
        raise FileNotFoundError(
            f"No {name} here: install Debian's packages chromium and chromium-driver."
        )
    return found


def copy(name: str, folder: Path, whole: bool) -> None:
    """The notebook without outputs, with parameters that send what it makes
    elsewhere."""
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4)
    overrides = {} if whole else SHORT
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\nOUT = {str(folder / 'out')!r}"
            cell.source += f"\nOVERRIDES = {overrides!r}"
    notebook.cells = [
        c
        for c in notebook.cells
        if "injected-parameters" not in c.metadata.get("tags", [])
    ]
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


@contextlib.contextmanager
def jupyterlab(folder: Path):
    """JupyterLab over `folder`; yields its address."""
    for name, settings in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        f"JUPYTER_{kind}_DIR": str(folder / kind.lower())
        for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    own = {
        k: v for k, v in os.environ.items() if k != "MPLBACKEND"
    }  # which a kernel chooses itself
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "HF_HUB_OFFLINE": "1",
    }
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            f"--port={port}",
            "--allow-root",
            f"--ServerApp.root_dir={folder}",
            f"--IdentityProvider.token={TOKEN}",
        ],
        env=own | places,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "server.log").open("w"),
    )
    try:
        address = f"http://127.0.0.1:{port}"
        WebDriverWait(None, 120, ignored_exceptions=[urllib.error.URLError]).until(
            lambda _: urllib.request.urlopen(f"{address}/api?token={TOKEN}")
        )
        yield address
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def chromium(folder: Path):
    """Headless Chromium, 1,280 pixels wide."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        f"--window-size={WIDTH},{HEIGHT}",
        f"--user-data-dir={folder / 'browser'}",
    ):
        options.add_argument(word)
    browser = webdriver.Chrome(
        options, webdriver.ChromeService(program("chromedriver"))
    )
    try:
        yield browser
    finally:
        browser.quit()


def click(browser, selector: str, text: str) -> None:
    """Click the element that shows `text`, once it is there."""

    def found(_):
        return next(
            (
                e
                for e in browser.find_elements(By.CSS_SELECTOR, selector)
                if e.is_displayed() and e.text.split("\n")[0] == text
            ),
            None,
        )

    WebDriverWait(browser, 60).until(found).click()


def run_all(browser, address: str, name: str, seconds: int) -> dict:
    """Open a notebook, choose Run All Cells in the menu, wait for the end, and say what
    the page shows."""
    browser.get(f"{address}/doc/tree/notebooks/{name}.ipynb?token={TOKEN}")
    WebDriverWait(browser, 120).until(
        lambda b: b.find_elements(
            By.CSS_SELECTOR,
            ".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]",
        )
    )
    click(browser, ".lm-MenuBar-itemLabel", "Run")
    click(browser, ".lm-Menu-itemLabel", "Run All Cells")

    before = {}

    def ended(_):
        """What the page shows, once all cells have run, or one failed, and nothing has
        changed since."""
        nonlocal before
        before, seen = browser.execute_script(LOOK), before
        done = before["errors"] or all(
            re.fullmatch(r"\[\d+\]:", p) for p in before["prompts"]
        )
        return before if done and before == seen else None

    return WebDriverWait(browser, seconds, poll_frequency=3).until(ended)


def photograph(browser, name: str, folder: Path) -> None:
    """The whole notebook, a page of HEIGHT pixels after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    page = browser.find_element(By.CSS_SELECTOR, ".jp-WindowedPanel-outer")
    height, step = (
        browser.execute_script(f"return arguments[0].{what}", page)
        for what in ("scrollHeight", "clientHeight")
    )
    for number, top in enumerate(range(0, height, step), 1):
        browser.execute_script("arguments[0].scrollTop = arguments[1]", page, top)
        browser.save_screenshot(folder / f"{name}_{number:02d}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    everything = sorted(f.stem for f in (REPO / "notebooks").glob("*.ipynb"))
    parser.add_argument("notebooks", nargs="*", default=everything)
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--whole", action="store_true", help="at full length")
    args, failed = parser.parse_args(), False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "notebooks").mkdir()
        shutil.copy(REPO / "README.md", folder)
        shutil.copytree(REPO / "figures", folder / "figures")
        for name in args.notebooks:
            copy(name, folder, args.whole)
        with chromium(folder) as browser, jupyterlab(folder) as address:
            for name in args.notebooks:
                seen = run_all(browser, address, name, 7200 if args.whole else 900)
                if args.screenshots:
                    photograph(browser, name, args.screenshots)
                bad = seen["errors"] or seen["missing"] or seen["wide"]
                failed |= bool(bad)
                print(
                    f"{name}: {len(seen['prompts'])} code cells, {len(seen['errors'])}"
                    f" errors, {seen['images']} pictures, {seen['missing']} missing,"
                    f" {seen['wide']} too wide",
                    *seen["errors"],
                    sep="\n  " if seen["errors"] else "",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
