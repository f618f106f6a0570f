"""The house: where Python lies, what a file owns, and that imports run one way."""

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kr1_utils.files import REPO

PACKAGE = REPO / "kr1_utils"
DOORS = ("__init__", "__main__")  # faces of packages, and commands


def tracked(pattern):
    """Files of the repository, also new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        [*command, pattern], cwd=REPO, capture_output=True, text=True, check=True
    )
    files = [REPO / line for line in listed.stdout.splitlines()]
    return sorted(file for file in files if file.is_file())


PYTHON = tracked("*.py")
MODULES = [
    file for file in PYTHON if file.is_relative_to(PACKAGE) and file.stem not in DOORS
]


def name_of(file):
    """kr1_utils/trainer/grpo.py is kr1_utils.trainer.grpo."""
    return ".".join(file.relative_to(REPO).with_suffix("").parts)


def path_id(file):
    return str(file.relative_to(REPO))


def imported_by(file):
    """Modules of the package that a file imports, also inside functions.

    What stands below `if __name__ == "__main__"` is left out: a module that is run as
    a command may call the command line.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    body = [node for node in tree.body if not is_main_block(node)]
    modules = {name_of(module) for module in MODULES}
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name in modules)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                names = [f"{node.module}.{a.name}" for a in node.names]
                yield from modules & {node.module, *names}


def is_main_block(node):
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def test_imports_run_one_way():
    graph = {name_of(file): set(imported_by(file)) for file in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("file", MODULES, ids=path_id)
def test_file_says_in_one_sentence_what_it_owns(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring.startswith("Owns ")


@pytest.mark.parametrize("file", MODULES, ids=path_id)
def test_module_has_a_test_file_at_its_place(file):
    place = file.relative_to(PACKAGE)
    assert (REPO / "tests" / place.parent / f"test_{place.name}").is_file()


def test_python_lies_in_the_package_and_the_tests_alone():
    homes = {file.relative_to(REPO).parts[0] for file in PYTHON}
    assert homes == {"kr1_utils", "tests"}


@pytest.mark.parametrize("file", PYTHON, ids=path_id)
def test_no_door_hides_where_code_lives(file):
    if file == Path(__file__):
        return
    doors = (
        r"\brunpy\b",
        r"spec_from_file_location",
        r"globals\(\)\.update",
        r"sys\.modules\[.+\] =",
    )
    source = file.read_text(encoding="utf-8")
    for door in doors:
        assert not re.search(door, source), door


@pytest.mark.parametrize("file", MODULES, ids=path_id)
def test_package_imports_nothing_of_the_tests(file):
    tests = {test.stem for test in tracked("tests/*.py")}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in tests
        elif isinstance(node, ast.Import):
            assert not tests & {a.name for a in node.names}
