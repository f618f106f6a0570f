"""The package installed without the repository: all its files come along, and it works
in another folder."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest

from kr1_utils import __version__
from kr1_utils.files import REPO

PACKAGE = REPO / "kr1_utils"
PROJECT = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))


def files_called(pattern) -> set:
    """Files of the package; what an installation in place has built is not its own."""
    build = PACKAGE / "build"
    return {file for file in PACKAGE.rglob(pattern) if build not in file.parents}


def test_every_folder_of_the_package_is_listed():
    folders = {file.parent.relative_to(REPO) for file in files_called("__init__.py")}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)


def test_every_data_file_of_the_package_is_listed():
    listed = {
        PACKAGE.joinpath(*package.split(".")[1:], name)
        for package, names in PROJECT["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    kinds = ("toml", "json", "html", "css", "js")
    data = {file for kind in kinds for file in files_called(f"*.{kind}")}
    assert listed == data - {PACKAGE / "pyproject.toml"}


def test_version_of_the_project_is_the_packages():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic["version"] == {"attr": "kr1_utils.__version__"}
    assert __version__


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder in which the package is installed, with pip and without a network."""
    folder = tmp_path_factory.mktemp("installed")
    # Built from a copy: a build leaves files beside what it builds.
    source = shutil.copytree(
        PACKAGE,
        folder / "source",
        ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"),
    )
    site = folder / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            f"--target={site}",
            str(source),
        ],
        check=True,
        timeout=300,
    )
    return site


def run_script(name, folder, site, *words):
    """Run one of the scripts beside this file in `folder`, with the installed package
    before all others."""
    script = shutil.copy(REPO / "tests" / name, folder)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, str(site / "kr1_utils"), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_base_install_works_alone_and_names_the_extra_that_more_needs(
    installed, tmp_path
):
    run_script("stranger_base.py", tmp_path, installed)


@pytest.mark.slow
def test_a_stranger_searches_scores_and_trains_a_model_of_their_own(
    installed, tmp_path
):
    model = shutil.copytree(REPO / "data" / "tiny-lm", tmp_path / "my-model")
    run_script("stranger_train.py", tmp_path, installed, str(model))
