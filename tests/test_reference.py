"""data/reference: its tables, logs and predictions agree with each other."""

import gzip
import json
import os
import shutil

import pandas as pd
import pytest

from kr1_utils import corpus, models
from kr1_utils.agent import rollout
from kr1_utils.engines import TransformersEngine
from kr1_utils.evaluation import OUTCOMES, answer_rank, mean
from kr1_utils.files import REPO, write_jsonl
from kr1_utils.profiles import resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.reference import keep, keep_adapter
from kr1_utils.retriever import Retriever
from kr1_utils.scoring import (
    bootstrap,
    exact_match,
    f1_score,
    normalize_answer,
    score_answers,
)

MULTI_HOP = {"compositional", "comparison", "inference", "bridge_comparison"}

REFERENCE = REPO / "data" / "reference"
PACK = (REPO / os.environ.get("KR1_2WIKI", "../shared/data/2wiki")).resolve()
needs_pack = pytest.mark.skipif(
    not (PACK / "passages.jsonl").is_file(),
    reason="the 2WikiMultihopQA pack is not here: name its folder in KR1_2WIKI",
)

PREDICTIONS = [
    "tiny/seed42/predictions_before.jsonl",
    "tiny/seed42/predictions.jsonl",
    "tiny/seed43/predictions.jsonl",
    "tiny/seed44/predictions.jsonl",
    "tiny/seed45/predictions.jsonl",
    "smol_2wiki_untouched.jsonl",
    "smol_2wiki_cold_start.jsonl",
    "smol_2wiki_grpo.jsonl",
    "half_2wiki_untouched.jsonl",
    "half_2wiki_cold_start.jsonl",
]


def lines(name):
    """The rows of a file of data/reference."""
    return list(corpus.read_rows(REFERENCE / name))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_have_the_scores_that_their_answers_earn(name):
    rows = lines(name)
    assert rows
    for row in rows:
        assert row["em"] == exact_match(row["prediction"], row["golden_answers"])
        f1 = f1_score(row["prediction"], row["golden_answers"])
        assert row["f1"] == pytest.approx(f1)
        # Two of the runs did not write the class.
        if "outcome" in row:
            assert row["outcome"] in OUTCOMES
            assert (row["outcome"] == "right") == bool(row["em"])


def test_all_runs_answered_the_shipped_questions():
    asked = {
        q["id"]: (q["type"], q["golden_answers"])
        for name in corpus.TEST_SETS
        for q in corpus.load_questions(REPO / "data" / "miniwiki" / f"{name}.jsonl")
    }
    for name in PREDICTIONS[:5]:
        rows = lines(name)
        said = {row["id"]: (row["type"], row["golden_answers"]) for row in rows}
        assert said == asked, name
        assert len(rows) == len(asked)


@pytest.mark.parametrize("seed", [42, 43, 44, 45])
def test_summary_of_a_run_is_that_of_its_predictions(seed):
    folder = REFERENCE / "tiny" / f"seed{seed}"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = lines(f"tiny/seed{seed}/predictions.jsonl")
    multi_hop = [row for row in rows if row["type"] in MULTI_HOP]
    single = [row for row in rows if row["type"] == "single"]
    assert summary["seed"] == seed
    assert summary["em_after"] == pytest.approx(mean(multi_hop, "em"))
    assert summary["f1_after"] == pytest.approx(mean(multi_hop, "f1"))
    assert summary["searches_after"] == pytest.approx(mean(multi_hop, "searches"))
    assert summary["em_single_after"] == pytest.approx(mean(single, "em"))


@pytest.mark.parametrize("name", ["tiny/seed42/ladder", "smol_2wiki_ladder"])
def test_ladder_is_of_the_same_questions_and_its_table_of_its_lines(name):
    table = pd.read_csv(REFERENCE / f"{name}.csv")
    said = {}
    for prediction in lines(f"{name}.jsonl.gz"):
        key = (prediction["rung"], prediction["stage"])
        said.setdefault(key, []).append(prediction)
    assert len(said) == len(table)
    assert len({tuple(p["id"] for p in part) for part in said.values()}) == 1
    for row in table.to_dict("records"):
        part = said[(row["rung"], row["stage"])]
        scores = score_answers(part, part)
        assert scores[("2wiki", "em")].mean() == pytest.approx(row["em"], abs=1e-4)
        assert scores[("2wiki", "f1")].mean() == pytest.approx(row["f1"], abs=1e-4)
        for key in ("searches", "sampled_length", "retrieved_length"):
            assert mean(part, key) == pytest.approx(row[key], abs=1e-3)


def test_no_text_of_a_passage_lies_in_the_reference_of_real_data():
    for file in REFERENCE.glob("*.jsonl*"):
        for row in lines(file.name):
            texts = {"text", "title", "passages", "question", "turns", "observations"}
            assert not texts & set(row), file.name


def test_agent_is_ahead_of_every_rung_that_searches_once_on_miniwiki():
    table = pd.read_csv(REFERENCE / "tiny/seed42/ladder.csv")
    after = table[table["stage"] == "after"].set_index("rung")
    others = after.drop(["agent", "oracle"])
    assert after["em_low"]["agent"] > others["em_high"].max()


def test_comparisons_name_both_candidates():
    for question in corpus.load_questions(REPO / "data" / "miniwiki" / "test.jsonl"):
        if "comparison" in question["type"]:
            titles = question["supporting_titles"]
            named = [title for title in titles if title in question["question"]]
            assert len(named) == 2


def test_every_killed_run_went_on_and_ended_equal():
    table = pd.read_csv(REFERENCE / "kills.csv")
    assert table["equal"].equals(table["kills"])
    assert table["kills"].nunique() == 1


def test_scores_of_the_real_run_follow_from_its_predictions():
    scores = pd.read_csv(REFERENCE / "smol_2wiki_scores.csv")
    scores = scores.set_index(["metric", "stage"])
    metrics = {
        "format valid": "format",
        "exact match": "em",
        "F1": "f1",
        "searches": "searches",
        "sampled tokens": "sampled_length",
    }
    stages = {
        "untouched": lines("smol_2wiki_untouched.jsonl"),
        "cold start": lines("smol_2wiki_cold_start.jsonl"),
        "GRPO": lines("smol_2wiki_grpo.jsonl"),
    }
    ids = {tuple(row["id"] for row in rows) for rows in stages.values()}
    assert len(ids) == 1
    for stage, rows in stages.items():
        assert len(rows) == 100
        for metric, key in metrics.items():
            told = scores.loc[(metric, stage), ["mean", "low", "high"]]
            found = bootstrap([row[key] for row in rows], 2000, 42)
            assert tuple(told) == pytest.approx(found, abs=1e-4)


def test_mined_questions_that_were_read_are_right_and_of_every_kind():
    verdicts = pd.read_csv(REFERENCE / "mining_verdicts.csv")
    counts = pd.read_csv(REFERENCE / "mining_counts.csv")
    assert len(verdicts) == 200
    assert verdicts["question_id"].is_unique
    assert set(verdicts["verdict"]) == {"right", "wrong"}
    assert (verdicts["verdict"] == "right").mean() >= 0.95
    found = counts[counts["found"] > 0]
    read = set(zip(verdicts["type"], verdicts["kind"]))
    assert read == set(zip(found["type"], found["kind"]))


def test_mining_loses_questions_at_every_stage_and_none_on_the_way():
    counts = pd.read_csv(REFERENCE / "mining_counts.csv")
    totals = counts[["before", "after", "found"]].sum()
    assert totals["before"] >= 3000
    assert totals["before"] > totals["after"] > totals["found"]
    assert (counts["found"] == counts["train"] + counts["dev"]).all()


@needs_pack
def test_most_right_answers_of_the_real_run_stand_in_the_question():
    """Of 40 questions that name their answer 9 are right, then 17; of the others one,
    then one."""
    asked = {
        q["id"]: normalize_answer(q["question"])
        for q in corpus.load_questions(PACK / "questions.jsonl")
    }
    for stage, right_named, right_others in (("cold_start", 9, 1), ("grpo", 17, 1)):
        named = []
        others = []
        for row in lines(f"smol_2wiki_{stage}.jsonl"):
            golden = [normalize_answer(g) for g in row["golden_answers"]]
            if any(g in asked[row["id"]] for g in golden):
                named.append(row["em"])
            else:
                others.append(row["em"])
        assert len(named) == 40
        assert sum(named) == right_named
        assert sum(others) == right_others


@needs_pack
def test_ranks_on_real_passages_are_found_again():
    questions = corpus.load_questions(PACK / "questions.jsonl")
    passages = corpus.load_passages(PACK / "passages.jsonl")
    retriever = Retriever.build(passages)
    found = retriever.search([q["question"] for q in questions], 10)
    told = lines("pack_retrieval.jsonl")
    for question, passages, row in zip(questions, found, told, strict=True):
        golden = question["golden_answers"]
        closed = {"yes", "no"} & {normalize_answer(g) for g in golden}
        assert row["id"] == question["id"]
        assert row["counts"] == (question["answer_in_corpus"] and not closed)
        assert row["passage_ids"] == [p["id"] for p in passages]
        assert row["rank"] == answer_rank(passages, golden)


def test_what_is_kept_of_a_run_is_what_it_left_but_for_passages(tmp_path):
    shown = REFERENCE / "tiny" / "seed42"
    run = tmp_path / "run"
    shutil.copytree(shown, run)
    with gzip.open(shown / "ladder.jsonl.gz") as packed:
        (run / "ladder.jsonl").write_bytes(packed.read())
    rows = [{"id": "a", "turns": ["x"], "observations": ["a passage"]}]
    write_jsonl(run / "predictions.jsonl", rows)
    kept = keep(run, tmp_path / "kept", shown=True)
    assert {file.name for file in kept} >= {"summary.json", "adapter_config.json"}
    said = list(corpus.read_rows(tmp_path / "kept" / "predictions.jsonl"))
    assert said == [{"id": "a", "turns": ["x"]}]
    log = (tmp_path / "kept" / "train_log.csv").read_bytes()
    assert log == (shown / "train_log.csv").read_bytes()
    again = (tmp_path / "kept" / "ladder.jsonl.gz").read_bytes()
    assert gzip.decompress(again) == (run / "ladder.jsonl").read_bytes()


def test_an_adapter_kept_in_bfloat16_is_half_as_large_and_answers_the_same(
    tmp_path, questions, retriever
):
    shipped = REFERENCE / "tiny" / "seed42" / "checkpoint"
    kept = tmp_path / "kept"
    keep_adapter(shipped, kept, "data/tiny-lm")
    sizes = [
        (folder / "adapter_model.safetensors").stat().st_size
        for folder in (shipped, kept)
    ]
    assert sizes[1] < 0.6 * sizes[0]
    profile = resolve("tiny")
    answers = []
    for folder in (shipped, kept):
        model, tokenizer = models.load("data/tiny-lm", folder)
        end = ChatFormat.from_tokenizer(tokenizer).end_of_turn
        made = rollout(
            TransformersEngine(model, tokenizer, end, 0.0),
            tokenizer,
            retriever,
            questions["test"][:20],
            profile.limits,
            profile.system_prompt,
        )
        answers.append([t.answer for t in made])
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert same >= 19


def test_a_kept_adapter_names_its_model_as_the_repository_does(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(REFERENCE / "tiny" / "seed42" / "checkpoint", run / "checkpoint")
    settings = run / "checkpoint" / "adapter_config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path)}))
    (run / "ladder.jsonl").write_text("{}")
    keep(run, tmp_path / "kept", shown=True)
    kept = json.loads(
        (tmp_path / "kept" / "checkpoint" / "adapter_config.json").read_text()
    )
    assert kept["base_model_name_or_path"] == "data/tiny-lm"
