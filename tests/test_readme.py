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
    """What GitHub calls the headings of a text in links."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def tracked(*patterns):
    """Files of the repository, also new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [REPO / line for line in listed.stdout.splitlines()]
    return sorted(file for file in files if file.is_file())


def documents():
    """(file, its markdown) of every Markdown file and every notebook."""
    for file in tracked("*.md"):
        yield file, file.read_text(encoding="utf-8")
    for file in sorted((REPO / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        yield file, "\n\n".join(texts)


def test_every_local_link_and_picture_leads_to_a_file_of_a_fresh_clone():
    read = dict(documents())
    names = {str(file.relative_to(REPO)) for file in read}
    assert {"README.md", ".github/CONTRIBUTING.md", "notebooks/README.md"} <= names
    wrong = [
        f"{file.relative_to(REPO)}: {link}"
        for file, text in read.items()
        for link in sorted(local_links(text))
        if not leads_somewhere(file, link)
    ]
    assert wrong == []


def leads_somewhere(file, link):
    """Whether a link in a file leads to another one, and to a heading of it."""
    path, _, anchor = link.partition("#")
    target = (file.parent / path).resolve() if path else file
    if not target.exists() or not target.is_relative_to(REPO):
        return False
    if str(target.relative_to(REPO)).startswith(MADE):
        return False
    if anchor and target.suffix == ".md":
        return anchor in anchors(target.read_text(encoding="utf-8"))
    return True


def test_every_picture_of_a_readme_says_what_is_seen():
    for file, text in documents():
        if file.suffix == ".md":
            for picture in re.findall(r"!\[([^\]]*)\]\(", text):
                assert picture.strip(), file.name


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
    names = {file.relative_to(REPO).parts[0] for file in tracked()}
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
