"""Tables of results: the shipped ones are what data/reference gives, and markers."""

import shutil

import pytest

from kr1_utils import tables
from kr1_utils.files import REPO

README = REPO / "README.md"
REFERENCE_README = REPO / "data" / "reference" / "README.md"


def test_shipped_tables_are_what_the_reference_gives(tmp_path):
    readme = tmp_path / "README.md"
    reference_readme = tmp_path / "reference.md"
    shutil.copy(README, readme)
    shutil.copy(REFERENCE_README, reference_readme)
    tables.write_tables(readme, reference_readme)
    # If these differ, run `python -m kr1_utils.tables`.
    assert readme.read_text("utf-8") == README.read_text("utf-8")
    assert reference_readme.read_text("utf-8") == REFERENCE_README.read_text("utf-8")


def test_a_table_has_as_many_cells_in_every_line():
    assert tables.markdown(["", "em"], [["one", "0.5"], ["two", ""]]) == (
        "| | em |\n| --- | --- |\n| one | 0.5 |\n| two | |"
    )


TEXT = """Before.

<!-- table: a -->
old
<!-- end -->

<!-- table: b -->
<!-- end -->
"""


def test_only_what_is_between_the_markers_of_a_name_changes(tmp_path):
    file = tmp_path / "x.md"
    file.write_text(TEXT, encoding="utf-8")
    tables.write_between_markers(file, "a", "| new |")
    wanted = TEXT.replace("old", "\n| new |\n")
    assert file.read_text("utf-8") == wanted
    tables.write_between_markers(file, "b", "| other |")
    empty = "<!-- table: b -->\n"
    wanted = wanted.replace(empty, f"{empty}\n| other |\n\n")
    assert file.read_text("utf-8") == wanted


def test_writing_a_table_twice_changes_nothing(tmp_path):
    file = tmp_path / "x.md"
    file.write_text(TEXT, encoding="utf-8")
    tables.write_between_markers(file, "a", "| new |")
    once = file.read_text("utf-8")
    tables.write_between_markers(file, "a", "| new |")
    assert file.read_text("utf-8") == once


@pytest.mark.parametrize(
    "text, words",
    [
        ("no markers", "Found 0 times"),
        (TEXT + TEXT, "Found 2 times"),
        ("<!-- table: a -->\n", "there is no <!-- end -->"),
        ("<!-- end -->\n<!-- table: a -->\n", "there is no <!-- end -->"),
    ],
)
def test_missing_markers_are_named_and_nothing_is_written(tmp_path, text, words):
    file = tmp_path / "x.md"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="x.md") as caught:
        tables.write_between_markers(file, "a", "| new |")
    assert words in str(caught.value)
    assert file.read_text("utf-8") == text
