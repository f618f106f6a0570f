"""The limits of the house style, for every notebook as it is committed."""

import ast
import json
import re

import pytest
from helpers import exercises, solution_code

from kr1_utils.files import REPO
from kr1_utils.profiles import PARAMETERS
from kr1_utils.reproduce.saved_outputs import is_current

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
WANTED = {
    "01_build_index",
    "02_agent_loop",
    "03_train_grpo",
    "04_evaluate",
    "05_response_length",
    "A1_tiny_model",
    "A2_break_it",
    "A3_cold_start",
}
ABSOLUTE = re.compile(
    r"(?<![\w.~-])/(?:work|tmp|home|root|Users|mnt|opt|usr|var|content)/|[A-Z]:\\\\"
)


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


def markdown_cells(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "markdown"]


def code_lines(cell):
    return [line for line in source(cell).splitlines() if line.strip()]


def texts_of(value):
    """All texts in an output, but not the base64 of its pictures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield "".join(v for v in value if isinstance(v, str))
        for v in value:
            if not isinstance(v, str):
                yield from texts_of(v)
    elif isinstance(value, dict):
        for key, v in value.items():
            if not key.startswith("image/png"):
                yield from texts_of(v)


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_the_notebooks_of_the_plan_are_there():
    assert {f.stem for f in NOTEBOOKS} >= WANTED


def test_number_of_cells(notebook):
    assert 40 <= len(notebook["cells"]) <= 90


def test_cells_have_names_of_their_own(notebook):
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)


def test_code_lines_are_short(notebook):
    for cell in code_cells(notebook):
        for line in source(cell).splitlines():
            assert len(line) <= 88, line


def test_code_can_be_parsed(notebook):
    for cell in code_cells(notebook):
        ast.parse(source(cell))  # also refuses magics and shell commands


def test_cells_were_run_once_from_top_to_bottom(notebook):
    counts = [c["execution_count"] for c in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_those_of_the_code_as_saved(notebook):
    assert is_current(notebook)


def test_no_cell_ended_in_an_error(notebook):
    for cell in code_cells(notebook):
        assert all(o["output_type"] != "error" for o in cell["outputs"]), source(cell)


def test_something_is_shown(notebook):
    assert (
        sum(bool(c["outputs"]) for c in code_cells(notebook))
        >= len(code_cells(notebook)) / 3
    )


def test_no_path_of_the_machine_it_was_run_on(notebook):
    for cell in notebook["cells"]:
        for text in [source(cell), *texts_of(cell.get("outputs", []))]:
            found = ABSOLUTE.search(text)
            assert not found, text[max(0, found.start() - 60) : found.end() + 60]


def test_no_widgets(notebook):
    assert "widgets" not in notebook["metadata"]
    assert "application/vnd.jupyter.widget" not in json.dumps(notebook)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_file_is_small(file):
    # Pictures have twice the page's resolution.
    assert file.stat().st_size <= 500_000


def test_parameters_cell_holds_the_five_parameters_and_nothing_else(notebook):
    tagged = [
        c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])
    ]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    values = {}
    for node in ast.parse(source(tagged[0])).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert list(values) == list(PARAMETERS)
    assert values == {
        "PROFILE": "tiny",
        "SEED": 42,
        "OUT": "",
        "DATA": "",
        "OVERRIDES": {},
    }


def test_parameters_come_after_imports_and_versions_and_are_checked_next(notebook):
    code = [
        c
        for c in code_cells(notebook)  # papermill puts a cell of its own behind them
        if "injected-parameters" not in c["metadata"].get("tags", [])
    ]
    at = next(
        i for i, c in enumerate(code) if "parameters" in c["metadata"].get("tags", [])
    )
    assert 1 <= at <= 5 and "import" in source(code[0])
    assert "notebook.setup(globals())" in source(code[at + 1])


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_first_and_last_cell_lead_on_and_every_link_leads_somewhere(file):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    texts = [source(c) for c in markdown_cells(notebook)]
    for text in (source(notebook["cells"][0]), source(notebook["cells"][-1])):
        # The course map, which leads back to the project.
        assert "README.md" in [link.split("#")[0] for link in links(text)], text
        assert any(link.endswith(".ipynb") for link in links(text)), text
    for link in {link.split("#")[0] for text in texts for link in links(text)} - {""}:
        assert re.match(r"https?://", link) or (file.parent / link).exists(), link


def test_three_exercises_close_it_each_with_a_folded_solution(notebook):
    found = exercises(notebook)
    assert [number for number, _, _ in found] == ["1", "2", "3"]
    closing = "\n\n".join(map(source, markdown_cells(notebook))).rpartition(
        "## Exercises\n"
    )[2]
    assert closing.count("<details>") == closing.count("</details>") == 3
    assert len(re.findall(r"^\d\. ", closing, re.MULTILINE)) == 3
    for _, asked, solution in found:
        assert "```" not in asked
        code = solution_code(solution)
        ast.parse(code)  # also refuses magics and shell commands
        assert "assert " in code or "print(" in code, code  # it shows its claim
        assert all(len(line) <= 88 for line in code.splitlines()), code
        said = re.sub(r"```.*?```", "", solution, flags=re.DOTALL)
        assert len(said.split()) >= 8, solution  # and says it


def test_it_has_one_title(notebook):
    titles = [
        t
        for c in markdown_cells(notebook)
        for t in re.findall(r"^# .+", source(c), re.MULTILINE)
    ]
    assert len(titles) == 1


def test_words_stand_before_most_code(notebook):
    kinds = [c["cell_type"] for c in notebook["cells"]]
    assert kinds.count("markdown") >= 0.5 * kinds.count("code")


def test_no_hidden_ways_of_doing_things(notebook):
    for cell in code_cells(notebook):
        text = source(cell)
        for line in text.splitlines():
            assert not line.lstrip().startswith(("!", "%")), line
        assert "sys.path" not in text and "chdir" not in text
        tree = ast.parse(text)
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), text
