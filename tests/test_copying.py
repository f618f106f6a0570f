"""A notebook's core, the cells tagged `core`, works when it is copied into an empty
notebook elsewhere."""

import json

import nbformat
import papermill
import pytest

from kr1_utils.files import REPO

pytestmark = pytest.mark.notebook
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "save_steps": 2,
}
SUMMARY = REPO / "data/reference/tiny/seed42/summary.json"
EM = round(json.loads(SUMMARY.read_text())["em_after"], 4)
# What a reader who copied the core does with it next, and must get.
NEXT = {
    "01_build_index": (
        """
assert hits[1][0]["title"] == "The Lonely Voyage"
assert len(shelf.search(["Konrad Oravec", "a film"], k=3)) == 2"""
    ),
    "02_agent_loop": (
        """
assert replies[0].stop == "answer" and replies[0].searches >= 1
assert sum(replies[0].loss_mask) == replies[0].sampled_length > 0"""
    ),
    "03_train_grpo": (
        """
grpo.train()
log = (out / "train_log.csv").read_text().splitlines()
assert len(log) == 3 and "accuracy_reward" in log[0]  # a header and two steps
assert any(p.requires_grad and p.abs().sum() > 0
           for name, p in grpo.model.named_parameters() if "lora_B" in name)"""
    ),
    "04_evaluate": (
        f"""
mean, low, high = intervals["2wiki", "em"]
assert low < mean < high and round(mean, 4) == {EM}  # as data/reference has it"""
    ),
    "05_response_length": (
        """
assert len(log) == 60
assert (out / "figures" / "05_six_panels.png").stat().st_size > 10_000"""
    ),
}


def core(name):
    """The cells of a notebook that are tagged `core`, without their outputs."""
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4)
    cells = [c for c in notebook.cells if "core" in c.metadata.get("tags", [])]
    return [
        nbformat.v4.new_code_cell(c.source, metadata={"tags": c.metadata.tags})
        for c in cells
    ]


@pytest.mark.parametrize("name", NEXT)
def test_the_core_of_a_notebook_runs_in_an_empty_one_elsewhere(name, tmp_path):
    cells = core(name)
    assert 1 <= len(cells) <= 3
    takes_parameters = any("parameters" in c.metadata.tags for c in cells)
    notebook = nbformat.v4.new_notebook(
        cells=[*cells, nbformat.v4.new_code_cell(NEXT[name])]
    )
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    papermill.execute_notebook(  # an error in any cell fails the test
        notebook,
        tmp_path / "copy.ipynb",
        cwd=tmp_path,
        progress_bar=False,
        parameters={"OUT": str(tmp_path / "run"), "OVERRIDES": SMALL}
        if takes_parameters
        else None,
    )


def test_every_notebook_that_has_a_core_is_tried():
    names = {f.stem for f in (REPO / "notebooks").glob("*.ipynb")}
    assert {name for name in names if core(name)} == set(NEXT)
