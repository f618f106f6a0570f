"""One notebook headless: saved whole when it ran, named when it failed."""

import nbformat
import pytest
from helpers import kr1

from kr1_utils.reproduce.papermill import run_notebook


def write_notebook(file, *cells):
    """A notebook with a cell of parameters, then these cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    parameters = nbformat.v4.new_code_cell("SEED = 1")
    parameters.metadata["tags"] = ["parameters"]
    notebook.cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(notebook, file)
    return file


def test_a_notebook_runs_in_its_own_folder_with_its_parameters(tmp_path):
    source = write_notebook(
        tmp_path / "source.ipynb", "from pathlib import Path\nprint(Path.cwd(), SEED)"
    )
    out = tmp_path / "out"
    out.mkdir()
    seconds = run_notebook(source, {"SEED": 7}, out / "01.ipynb")
    assert seconds > 0
    cells = nbformat.read(out / "01.ipynb", 4).cells
    assert cells[-1].outputs[0].text == f"{tmp_path} 7\n"
    assert [file.name for file in out.iterdir()] == ["01.ipynb"]


def test_a_cell_that_fails_is_named_and_the_notebook_up_to_there_is_kept(tmp_path):
    source = write_notebook(
        tmp_path / "source.ipynb", "print('before')", "raise ValueError('no good')"
    )
    executed = tmp_path / "01.ipynb"
    executed.write_text("of an earlier run")
    with pytest.raises(RuntimeError, match=r"source, cell \d+: ValueError: no good"):
        run_notebook(source, {}, executed)
    assert executed.read_text() == "of an earlier run"
    assert "before" in (tmp_path / "01.failed.ipynb").read_text()


def test_a_run_whose_notebook_fails_says_which_and_has_status_1(tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    (index / "foreign.txt").write_text("not an index")
    done = kr1("run", "--out", str(tmp_path), "--only", "01")
    assert done.returncode == 1
    assert "01_build_index, cell" in done.stderr and "ValueError" in done.stderr
    assert (index / "foreign.txt").exists()


def test_only_the_notebook_that_was_asked_for_is_run(tmp_path):
    done = kr1("run", "--out", str(tmp_path), "--only", "01")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "01.ipynb").exists()
    assert not (tmp_path / "02.ipynb").exists()
