"""The notebooks run headless: in order through `reproduce`, and each alone; their files
are checked."""

import json
import math
import os
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from helpers import SHORT, exercises, solution_code
from IPython.core.interactiveshell import InteractiveShell
from papermill.exceptions import PapermillExecutionError
from servers import served

from kr1_utils import files, reproduce, trainer

pytestmark = pytest.mark.notebook
REPO = files.REPO
# Short, and long enough to see that it learns.
LEARNING = {
    "max_steps": 24,
    "per_device_train_batch_size": 48,
    "eval_questions": 80,
    "save_steps": 8,
}
PACK = Path(os.environ.get("KR1_2WIKI", REPO.parent / "shared" / "data" / "2wiki"))


def run(name: str, out: Path, solved: bool = False, **parameters):
    """Execute one notebook into `out` and return it, if `solved` with its exercises'
    solutions behind it."""
    out.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4)
    if solved:
        notebook.cells += [
            nbformat.v4.new_code_cell(solution_code(solution))
            for _, _, solution in exercises(notebook)
        ]
    parameters = {"OUT": str(out), "OVERRIDES": SHORT, **parameters}
    done = papermill.execute_notebook(
        notebook,
        out / f"{name}.ipynb",
        parameters=parameters,
        progress_bar=False,
        cwd=REPO / "notebooks",
    )
    assert all(c.execution_count for c in done.cells if c.cell_type == "code")
    return done


def run_here(name: str, out: Path, **parameters):
    """Execute one notebook's cells in this process, which saves the seconds in which a
    kernel starts. An error in a cell is raised."""
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4)
    parameters = {"OUT": str(out), "OVERRIDES": SHORT, **parameters}
    shell = InteractiveShell()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        shell.run_cell(cell.source, store_history=True).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
            shell.run_cell(given, store_history=True).raise_error()


@pytest.fixture
def in_notebooks(monkeypatch):
    """In the folder in which JupyterLab runs a notebook."""
    monkeypatch.chdir(REPO / "notebooks")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """01–05 in order, as a reader runs them, only shorter."""
    out = tmp_path_factory.mktemp("run")
    reproduce.reproduce(reproduce.Request(out=str(out), overrides=LEARNING))
    return out


def test_a_run_leaves_every_file_that_design_names(whole_run):
    for name in (
        "01.ipynb",
        "02.ipynb",
        "03.ipynb",
        "04.ipynb",
        "05.ipynb",
        "train_log.csv",
        "trajectories.jsonl",
        "predictions.jsonl",
        "summary.json",
        "checkpoint",
    ):
        assert (whole_run / name).exists(), name
    assert len(list((whole_run / "figures").glob("*.png"))) >= 8
    assert not list(whole_run.glob("*.part")) and not list(
        whole_run.glob("*.failed.ipynb")
    )


def test_a_run_learns(whole_run):
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["em_after"] > summary["em_before"] + 0.1
    assert summary["searches_after"] > summary["searches_before"]
    assert summary["response_length_after"] > summary["response_length_before"]


def test_summary_holds_what_design_names(whole_run):
    summary = json.loads((whole_run / "summary.json").read_text())
    names = """profile seed em_before em_after em_single_before em_single_after
    f1_before f1_after searches_before searches_after response_length_before
    response_length_after train_steps seconds"""
    assert set(names.split()) <= set(summary)
    assert set(summary["seconds"]) == {"01", "02", "03", "04", "05", "total"}
    assert (
        summary["train_steps"] == LEARNING["max_steps"] and summary["profile"] == "tiny"
    )


def test_training_log_is_whole_and_finite(whole_run):
    log = pd.read_csv(whole_run / "train_log.csv")
    assert list(log.columns) == list(trainer.LOG_COLUMNS)
    assert log["step"].tolist() == list(range(1, LEARNING["max_steps"] + 1))
    # Evidence was not rewarded, so nothing is known of it.
    assert log["evidence_reward"].isna().all()
    assert log.drop(columns="evidence_reward").map(math.isfinite).all().all()


def test_predictions_hold_every_question_once(whole_run):
    rows = [
        json.loads(line)
        for line in (whole_run / "predictions.jsonl").read_text().splitlines()
    ]
    # Multi-hop questions, single-hop ones and known ones.
    assert len(rows) == len({r["id"] for r in rows}) == 3 * LEARNING["eval_questions"]
    assert all({"prediction", "golden_answers", "passage_ids"} <= set(r) for r in rows)


def test_a_complete_run_is_not_run_again(whole_run, capsys):
    before = (whole_run / "03.ipynb").stat().st_mtime_ns
    reproduce.reproduce(reproduce.Request(out=str(whole_run), overrides=LEARNING))
    assert capsys.readouterr().out.count("complete already") == 5
    assert (whole_run / "03.ipynb").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name",
    [
        "01_build_index",
        "02_agent_loop",
        "03_train_grpo",
        "04_evaluate",
        "05_response_length",
        pytest.param("A1_tiny_model", marks=pytest.mark.slow),
        pytest.param("A2_break_it", marks=pytest.mark.slow),
        pytest.param("A3_cold_start", marks=pytest.mark.slow),
    ],
)
def test_a_notebook_runs_alone(name, tmp_path):
    done = run(name, tmp_path, solved=True)
    made = {f.name for f in tmp_path.iterdir()} | {
        f.name for f in (tmp_path / "figures").iterdir()
    }
    wanted = {
        "01_build_index": "retrieval.json",
        "02_agent_loop": "02_lengths.png",
        "03_train_grpo": "train_log.csv",
        "04_evaluate": "summary.json",
        "05_response_length": "05_six_panels.png",
        "A1_tiny_model": "tiny-lm",
        "A2_break_it": "A2_no_mask.png",
        "A3_cold_start": "cold_start_scores.csv",
    }
    assert wanted[name] in made
    assert nbformat.reads(nbformat.writes(done), 4)


def test_a_misspelt_notebook_parameter_is_refused(tmp_path):
    """All notebooks check their parameters in one way (see test_notebook_style)."""
    with pytest.raises(PapermillExecutionError, match="Unknown parameter 'PROFIL'"):
        run("01_build_index", tmp_path, PROFIL="tiny")


@pytest.mark.slow
def test_retrieval_on_real_questions_is_as_measured_before(tmp_path):
    if not (PACK / "passages.jsonl").is_file():
        pytest.skip("the 2WikiMultihopQA pack is not here: set KR1_2WIKI to its folder")
    run("01_build_index", tmp_path, DATA=str(PACK), OVERRIDES={})
    recall = json.loads((tmp_path / "retrieval.json").read_text())["answer_recall"][
        "answer in corpus"
    ]
    for k, wanted in (("1", 0.24), ("3", 0.45), ("5", 0.57), ("10", 0.67)):
        assert abs(recall[k] - wanted) <= 0.02
    run("04_evaluate", tmp_path, DATA=str(PACK), OVERRIDES={"eval_questions": 4})
    assert (
        json.loads((tmp_path / "summary.json").read_text())["em_single_before"] is None
    )


def test_training_on_your_own_data(tmp_path, in_notebooks):
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(REPO / "data/miniwiki/passages.jsonl", own)
    lines = (REPO / "data/miniwiki/train.jsonl").read_text().splitlines(keepends=True)
    (own / "train.jsonl").write_text("".join(lines[:40]))
    run_here("03_train_grpo", tmp_path / "out", DATA=str(own))
    assert len(pd.read_csv(tmp_path / "out" / "train_log.csv")) == SHORT["max_steps"]


@pytest.mark.slow
def test_with_a_served_index_a_run_needs_neither_passages_nor_01(tmp_path, retriever):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("train", "test", "test_single"):
        shutil.copy(REPO / "data" / "miniwiki" / f"{name}.jsonl", own)
    out = tmp_path / "out"
    with served(retriever) as url:
        overrides = {**SHORT, "retriever": url}
        reproduce.reproduce(
            reproduce.Request(out=str(out), data=str(own), overrides=overrides)
        )
    assert len(pd.read_csv(out / "train_log.csv")) == SHORT["max_steps"]
    lines = (out / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line)["passage_ids"] for line in lines]
    assert any(found) and len(found) == 2 * SHORT["eval_questions"]
    assert not (out / "01.ipynb").exists() and not (out / "index").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["01_build_index", "A1_tiny_model", "A2_break_it", "A3_cold_start"]
)
def test_a_served_index_is_searched_by_the_other_notebooks_too(
    name, tmp_path, retriever, in_notebooks
):
    index = CountsSearches(retriever)
    with served(index) as url:
        run_here(name, tmp_path, OVERRIDES={**SHORT, "retriever": url})
    # More than the one that asks whether the server is there.
    assert index.searches > 1


class CountsSearches:
    def __init__(self, index):
        self.index = index
        self.searches = 0

    def __len__(self):
        return len(self.index)

    def search(self, queries, k):
        self.searches += 1
        return self.index.search(queries, k)


ODD = [
    {
        "id": 1,
        "question": "Who directed Velvet Garden?",
        "golden_answers": ["Karla Brandt"],
        "type": None,
        "supporting_titles": ["Velvet Garden"],
    },  # every title stands in its question
    {
        "id": 2,
        "question": "Was it Leo Holm?",
        "golden_answers": ["no"],
        "type": 2,
        "supporting_titles": ["It"],
    },  # a title without a word to search for
    {
        "_id": "3",
        "question": "What did Leo Holm direct" + " and why" * 300 + "?",
        "answer": "Sunken Lantern",
    },
]


def odd_data(folder: Path, questions: str) -> str:
    """Three passages, and as many questions unlike those of 2WikiMultihopQA."""
    files.write_jsonl(
        folder / "passages.jsonl",
        [
            {"id": title, "title": title, "text": f"{title} was directed by {name}."}
            for title, name in (
                ("Velvet Garden", "Karla Brandt"),
                ("Sunken Lantern", "Leo Holm"),
                ("Plan B", "Ada Lind"),
            )
        ],
    )
    files.write_jsonl(folder / f"{questions}.jsonl", ODD)
    return str(folder)


@pytest.mark.parametrize("name", ["01_build_index", "02_agent_loop", "04_evaluate"])
def test_a_few_odd_questions_of_your_own_will_do(name, tmp_path, in_notebooks):
    small = {**SHORT, "max_turns": 2, "max_turn_tokens": 48, "max_response_tokens": 400}
    own = odd_data(tmp_path, "questions")
    run_here(name, tmp_path / "out", DATA=own, OVERRIDES=small)
    assert list((tmp_path / "out" / "figures").glob("*.png"))


@pytest.mark.parametrize(
    "name, questions, more, words",
    [
        ("01_build_index", "train", {}, "nothing to test on"),
        ("02_agent_loop", "train", {}, "nothing to test on"),
        ("04_evaluate", "train", {}, "nothing to test on"),
        ("03_train_grpo", "questions", {}, "nothing to train on"),
        (
            "03_train_grpo",
            "train",
            {"OVERRIDES": {}},
            "3 training questions: a step takes 8",
        ),
        (
            "04_evaluate",
            "questions",
            {"PROFILE": "smol", "OVERRIDES": {}},
            "run A3_cold_start first",
        ),
        (
            "04_evaluate",
            "questions",
            {"PROFILE": "smol", "OVERRIDES": {"cold_start": False}},
            "run 03 to its end",
        ),
    ],
)
def test_what_is_missing_is_said_before_any_long_work(
    name, questions, more, words, tmp_path, in_notebooks
):
    own = odd_data(tmp_path, questions)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run_here(name, tmp_path / "out", DATA=own, **more)
