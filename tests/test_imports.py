"""Importing the package is light, and changes nothing in other libraries."""

import os
import subprocess
import sys

import pytest

WITHOUT_TORCH = (
    "kr1_utils.protocol",
    "kr1_utils.agent",
    "kr1_utils.checks",
    "kr1_utils.rewards",
    "kr1_utils.scoring",
    "kr1_utils.corpus",
    "kr1_utils.retriever",
    "kr1_utils.browse",
    "kr1_utils.watch",
)

IMPORT_EVERYTHING = """
import importlib
import pkgutil
import kr1_utils

for module in pkgutil.walk_packages(kr1_utils.__path__, "kr1_utils."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def printed(code, **environment):
    """What a new Python prints that runs this code."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_this_module_does_not_load_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert printed(code) == ["False"]


def test_importing_everything_patches_and_registers_nothing():
    code = f"""{IMPORT_EVERYTHING}
from llvmlite.binding.ffi import lib
from transformers import AttentionInterface

attentions = AttentionInterface().valid_keys()
print("__dict__" in lib._fntab)
print("sdpa_grouped" in attentions)
print("sdpa_without_mask" in attentions)
"""
    assert printed(code) == ["False"] * 3


SPINCOUNT = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_importing_the_package_sets_how_long_threads_spin(unset):
    assert printed(f"import kr1_utils; {SPINCOUNT}") == ["1000"]


def test_a_spin_count_that_is_set_stays(unset):
    code = f"import kr1_utils; {SPINCOUNT}"
    assert printed(code, GOMP_SPINCOUNT="7") == ["7"]


def test_the_spin_count_is_left_alone_once_torch_is_loaded(unset):
    assert printed(f"import torch, kr1_utils; {SPINCOUNT}") == ["None"]


def test_importing_the_package_sets_no_other_variable(unset):
    code = """
import os
before = dict(os.environ)
import kr1_utils
print(*(name for name in os.environ if os.environ[name] != before.get(name)))
"""
    assert printed(code) == ["GOMP_SPINCOUNT"]
