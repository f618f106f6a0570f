"""The model card tells the scores of the run, and its code loads the model."""

import csv
import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from kr1_utils import runs
from kr1_utils.files import REPO, write_jsonl
from kr1_utils.model_card import SCORES, Base, model_card, read_scores
from kr1_utils.rows import read_rows

NAME = "ada/my-agent"
HUB = Base("somebody/base-model")
FOLDER = Base("", "/somewhere/base-model")


@pytest.fixture
def run(tmp_path):
    return runs.read_run(
        shutil.copytree(REPO / runs.SHIPPED_RUN, tmp_path / "my-run"), "tiny"
    )


@pytest.fixture
def summary(run):
    return json.loads((run.folder / "summary.json").read_text())


@pytest.fixture
def scores(run, summary):
    """(name, before or after) -> score."""
    return {(s.name, s.when): s for s in read_scores(run, summary)}


def metadata(card):
    """What the hub reads of a card."""
    return ModelCard(card).data


def test_every_score_of_the_summary_is_told_as_it_is(summary, scores):
    for name in SCORES:
        for when in ("before", "after"):
            assert scores[name, when].mean == summary[f"{name}_{when}"]


def test_intervals_are_those_that_the_evaluation_wrote(run, scores):
    with (run.folder / "scores.csv").open(newline="") as lines:
        table = {(r["type"], r["when"], r["metric"]): r for r in csv.DictReader(lines)}
    for when in ("before", "after"):
        for name, kind, metric in (
            ("em", "multi-hop", "em"),
            ("f1", "multi-hop", "f1"),
            ("em_single", "single", "em"),
        ):
            row = table[kind, when, metric]
            told = scores[name, when].interval
            wanted = (float(row["low"]), float(row["high"]))
            if told is None:
                # All answers score alike.
                assert wanted[0] == wanted[1]
            else:
                assert told == pytest.approx(wanted, abs=1e-4)


def test_without_the_answers_scores_are_told_without_intervals(run, summary):
    for file in run.folder.glob("predictions*"):
        file.unlink()
    told = read_scores(run, summary)
    assert len(told) == 2 * len(SCORES)
    assert all(score.interval is None for score in told)
    assert "(" not in str(told[0])


def test_a_score_that_there_is_none_of_is_left_out(run, summary):
    summary["em_single_after"] = None
    summary["f1_after"] = float("nan")
    told = {(score.name, score.when) for score in read_scores(run, summary)}
    assert not told & {("em_single", "after"), ("f1", "after")}
    card = model_card(run, summary, NAME, HUB, "mit")
    assert "nan" not in card


def test_answers_of_another_evaluation_are_refused(run, summary):
    file = run.folder / "predictions.jsonl"
    rows = list(read_rows(file))
    rows[0]["em"] = 1.0 - rows[0]["em"]
    write_jsonl(file, rows)
    with pytest.raises(ValueError, match="different evaluations"):
        read_scores(run, summary)


def test_the_hub_reads_what_the_card_says(run, summary):
    data = metadata(model_card(run, summary, NAME, HUB, "apache-2.0"))
    assert data.base_model == HUB.hub_id
    assert data.license == "apache-2.0"
    assert data.library_name == "peft"
    assert data.model_name == "my-agent"
    told = {r.metric_type: r.metric_value for r in data.eval_results}
    assert told["exact_match"] == round(summary["em_after"], 4)
    assert told["f1"] == round(summary["f1_after"], 4)
    assert {r.dataset_name for r in data.eval_results} == {"miniwiki"}


def test_a_whole_model_names_no_base_that_others_cannot_load(run, summary):
    card = model_card(run, summary, NAME, FOLDER, "mit")
    data = metadata(card)
    assert data.base_model is None
    assert data.library_name == "transformers"
    assert "/somewhere" not in card
    assert "peft" not in card


@pytest.mark.parametrize("base", [HUB, FOLDER], ids=["adapter", "whole"])
def test_code_on_the_card_is_python_that_names_the_model(run, summary, base):
    card = model_card(run, summary, NAME, base, "mit")
    (code,) = re.findall(r"```python\n(.+?)```", card, re.DOTALL)
    compile(code, "card", "exec")
    assert code.count(f'"{NAME}"') == 2
    assert run.profile.system_prompt in card


def test_data_of_ones_own_is_told_by_name_without_its_path(run, summary):
    own = runs.Run(run.folder, run.profile, "/home/ada/secret/films", run.checkpoint)
    card = model_card(own, summary, NAME, HUB, "mit")
    assert "films" in card
    assert "/home" not in card
