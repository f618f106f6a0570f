"""Owns the overview in kr1_utils/README.md: files, templates, and private names used.

`python -m kr1_utils.overview` writes its tables anew.
"""

import ast
from pathlib import Path

from kr1_utils.files import REPO
from kr1_utils.tables import markdown, write_between_markers
from kr1_utils.templates import FAMILIES
from kr1_utils.upstream import PRIVATE

PACKAGE = REPO / "kr1_utils"
README = PACKAGE / "README.md"
DOORS = ("__init__", "__main__")  # faces of packages, and commands


def package_map() -> str:
    """Every file of the package, and the sentence with which it says what it owns."""
    files = [file for file in PACKAGE.rglob("*.py") if file.stem not in DOORS]
    files.sort(key=lambda file: (len(file.relative_to(PACKAGE).parts), str(file)))
    rows = [(f"`{file.relative_to(PACKAGE)}`", _sentence(file)) for file in files]
    return markdown(("file", "owns"), rows)


def _sentence(file: Path) -> str:
    """The first sentence of a file's docstring, without its "Owns"."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.removeprefix("Owns ").removesuffix(".")


def chat_templates() -> str:
    """Families of models, and whether their chat templates serve."""
    rows = []
    for family in FAMILIES:
        works = f"no: it {family.refused}" if family.refused else family.how
        rows.append((family.name, works))
    return markdown(("family", "works"), rows)


def private_names() -> str:
    """What is used of other libraries beyond their public interface, and why."""
    rows = [
        (f"`{p.owner.split(':')[1]}.{p.name}`", f"{p.used}, `{p.where}`", p.why)
        for p in PRIVATE
    ]
    return markdown(("name", "used", "why"), rows)


def write_overview(readme: Path = README) -> None:
    write_between_markers(readme, "map", package_map())
    write_between_markers(readme, "templates", chat_templates())
    write_between_markers(readme, "private", private_names())


if __name__ == "__main__":
    write_overview()
