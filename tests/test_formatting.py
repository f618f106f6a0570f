"""Formatting and linting are the tools': every Python file and every notebook cell."""

import subprocess
import sys

import pytest

from kr1_utils.files import REPO


@pytest.mark.parametrize("check", [["format", "--check"], ["check"]], ids=" ".join)
def test_ruff_finds_nothing(check):
    command = [sys.executable, "-m", "ruff", *check, "--no-cache", "."]
    found = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
