"""The overview of the package names every file, as it is now."""

import shutil

from kr1_utils import overview


def test_shipped_overview_is_what_the_files_say(tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(overview.README, readme)
    overview.write_overview(readme)
    # If these differ, run `python -m kr1_utils.overview`.
    assert readme.read_text("utf-8") == overview.README.read_text("utf-8")


def test_every_file_stands_in_the_map():
    made = overview.package_map()
    for file in overview.PACKAGE.rglob("*.py"):
        if file.stem not in overview.DOORS:
            assert f"`{file.relative_to(overview.PACKAGE)}`" in made
