"""Saved outputs: of the code as saved, with the last state of each bar."""

import base64
import io
import json

import pytest
from PIL import Image, ImageChops

from kr1_utils.reproduce import saved_outputs
from kr1_utils.reproduce.saved_outputs import PNG, adopt, is_current


def notebook(*sources, outputs=(), tags=()):
    cells = [
        {
            "cell_type": "code",
            "source": [source],
            "metadata": {"tags": list(tags)},
            "execution_count": None,
            "outputs": list(outputs),
        }
        for source in sources
    ]
    return {"cells": cells, "metadata": {}}


def stream(text):
    return {"output_type": "stream", "name": "stderr", "text": [text]}


def test_outputs_are_taken_from_a_copy_with_the_same_code():
    ran = notebook("a", "b", outputs=[stream("said\n")])
    injected = notebook("# Parameters", tags=[saved_outputs.INJECTED])["cells"]
    ran["cells"][1:1] = injected
    made = adopt(notebook("a", "b"), ran)
    assert [cell["execution_count"] for cell in made["cells"]] == [1, 2]
    assert made["cells"][1]["outputs"][0]["text"] == ["said\n"]
    assert is_current(made)


def test_other_code_is_refused_and_a_later_change_is_seen():
    with pytest.raises(ValueError, match="other code"):
        adopt(notebook("a"), notebook("b"))
    made = adopt(notebook("a"), notebook("a"))
    made["cells"][0]["source"] = ["c"]
    assert not is_current(made)
    # What explains the code may change.
    made = adopt(notebook("a"), notebook("a"))
    made["cells"].append({"cell_type": "markdown", "source": ["x"], "metadata": {}})
    assert is_current(made)


def test_of_a_bar_the_last_state_is_kept():
    text = "\rworlds:   0%|   | 0/9\rworlds: 100%|###| 9/9\n\rturns:  50%|#  | 1/2\n"
    [cell] = adopt(notebook("a"), notebook("a", outputs=[stream(text)]))["cells"]
    shown = "".join(cell["outputs"][0]["text"])
    assert shown == "worlds: 100%|###| 9/9\nturns:  50%|#  | 1/2\n"


def test_a_bar_that_was_saved_piece_by_piece_is_one_bar():
    said = [
        "steps:   0%|   | 0/9\n",
        "steps:  50%|#  | 5/9\n",
        "steps: 100%|###| 9/9\n",
    ]
    ran = notebook("a", outputs=[stream(text) for text in said])
    [output] = adopt(notebook("a"), ran)["cells"][0]["outputs"]
    assert output["text"] == [said[-1]]


def test_pictures_are_kept_as_they_look_with_few_colours():
    gradient = Image.linear_gradient("L").convert("RGB")
    file = io.BytesIO()
    gradient.save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    shown = {"output_type": "display_data", "metadata": {}, "data": {PNG: encoded}}
    [output] = adopt(notebook("a"), notebook("a", outputs=[shown]))["cells"][0][
        "outputs"
    ]
    small = Image.open(io.BytesIO(base64.b64decode(output["data"][PNG])))
    assert small.mode == "P" and small.size == gradient.size
    most = max(
        high
        for _, high in ImageChops.difference(
            small.convert("RGB"), gradient
        ).getextrema()
    )
    assert most <= 256 / saved_outputs.COLOURS
    # What was made small once stays as it is.
    again = adopt(notebook("a"), notebook("a", outputs=[output]))["cells"][0]["outputs"]
    assert again == [output]


def test_the_folder_of_the_copy_is_not_shown():
    ran = notebook("a", outputs=[stream("/somewhere/run/tiny-lm\n")])
    made = adopt(notebook("a"), ran, "/somewhere/run")
    assert "data/runs/tiny/tiny-lm" in json.dumps(made)


def test_a_notebook_is_executed_once(tmp_path, monkeypatch):
    ran = []

    def run_notebook(source, parameters, executed):
        ran.append(source.name)
        content = json.loads(source.read_text())
        for cell in content["cells"]:
            cell["outputs"] = [stream("done\n")]
        executed.write_text(json.dumps(content))
        return 1.0

    monkeypatch.setattr(saved_outputs, "run_notebook", run_notebook)
    monkeypatch.setattr(saved_outputs, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr("sys.argv", ["saved_outputs"])
    (tmp_path / "01_a.ipynb").write_text(json.dumps(notebook("a")))
    saved_outputs._main()
    saved_outputs._main()
    assert ran == ["01_a.ipynb"]
    assert is_current(json.loads((tmp_path / "01_a.ipynb").read_text()))
