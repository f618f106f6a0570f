"""The README and the tree that it describes."""

import json
import re
import subprocess

import pytest

from kr1_utils.files import REPO

TOP = {
    "README.md",
    "LICENSE",
    "requirements.txt",
    "requirements-gpu.txt",
    "notebooks",
    "kr1_utils",
    "data",
    "tests",
    "figures",
}
MADE = ("data/runs", "data/index", "data/models")  # not there in a fresh clone


@pytest.fixture(scope="module")
def readme():
    return (REPO / "README.md").read_text(encoding="utf-8")


def section(text, heading):
    """What stands below a heading of the second level, up to the next one."""
    found = re.search(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found, f"no section {heading}"
    return found.group(1)


def local_links(text):
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", without_code) + re.findall(
        r"<img[^>]*\ssrc=\"([^\"]+)\"", text
    )
    return {link for link in found if not re.match(r"(?:https?|mailto):", link)}


def anchors(text):
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def documents():
    """(file, its markdown) of every README and every notebook."""
    for file in [REPO / "README.md", *sorted(REPO.glob("*/**/README.md"))]:
        if not file.relative_to(REPO).parts[0].startswith("."):
            yield file, file.read_text(encoding="utf-8")
    for file in sorted((REPO / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        yield file, "\n\n".join(texts)


def test_every_local_link_leads_to_a_file_of_a_fresh_clone():
    for file, text in documents():
        for link in local_links(text):
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            where = f"{file.name}: {link}"
            assert target.exists(), where
            assert target.is_relative_to(REPO), where
            assert not str(target.relative_to(REPO)).startswith(MADE), where
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target.read_text(encoding="utf-8")), where


@pytest.mark.parametrize(
    "heading, does", [("Run", "kr1 run --profile tiny"), ("Test", "pytest")]
)
def test_section_begins_with_one_bash_block_that_does_it_all(readme, heading, does):
    body = section(readme, heading).lstrip("\n")
    assert body.startswith("```bash\n")
    block = body.removeprefix("```bash\n").split("\n```")[0]
    # Each works alone on a fresh clone.
    assert does in block
    assert "requirements.txt" in block
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_readme_names_every_notebook(readme):
    for file in (REPO / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{file.name}" in readme, file.name


def test_nothing_else_lies_at_the_top_level():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    names = {line.split("/")[0] for line in listed.stdout.splitlines()} or {
        f.name for f in REPO.iterdir()
    }
    assert {n for n in names if not n.startswith(".")} <= TOP
    assert all((REPO / n).exists() for n in TOP)


def test_requirements_are_pinned_and_explained_and_end_with_our_package():
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    assert re.match(r"-e \./kr1_utils\b", lines[-1])
    for line in lines[:-1]:
        assert line.startswith("-") or re.match(
            r"[\w.\-\[\]]+==[\w.]+(?:\s*;[^#]+)?\s+# \S+", line
        ), line


def test_licence_is_mit():
    assert (REPO / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
