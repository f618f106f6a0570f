"""What dashboards show: our columns, the six panels' names, trajectories as text."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from helpers import make_trainer, tiny_profile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kr1_utils import plots
from kr1_utils.rewards import reward_functions
from kr1_utils.trainer import LOG_COLUMNS, grpo_config
from kr1_utils.trainer.reports import as_markdown, with_table

# With every reward that has a column of its own.
REPORTED = tiny_profile(
    report_to="tensorboard", save_steps=1, search_cost=0.05, evidence_weight=0.3
)


def shown_in(folder):
    """What TensorBoard shows of a folder."""
    shown = EventAccumulator(str(folder))
    shown.Reload()
    return shown


def text_of(shown, name):
    """{step: text} of a text in TensorBoard."""
    return {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in shown.Tensors(f"{name}/text_summary")
    }


@pytest.fixture
def reported(tmp_path, questions, retriever, monkeypatch):
    """The folder of a run of two steps that went on after the first."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    arguments = (tmp_path, questions, retriever, REPORTED)
    functions, _ = reward_functions(REPORTED)
    make_trainer(*arguments, reward_funcs=functions).train()
    again = make_trainer(*arguments, reward_funcs=functions)
    again.train(resume_from_checkpoint=str(tmp_path / "state" / "checkpoint-1"))
    return tmp_path


def test_tensorboard_shows_every_column_and_the_best_and_worst_trajectory(reported):
    shown = shown_in(reported / "tensorboard")
    tags = set(shown.Tags()["scalars"])
    columns = set(LOG_COLUMNS) - {"step"}
    assert {f"train/{LOG_COLUMNS[column]}" for column in columns} <= tags
    assert set(plots.PANELS) <= columns
    lines = (reported / "trajectories.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    best, worst = text_of(shown, "trajectory/best"), text_of(shown, "trajectory/worst")
    assert set(best) == set(worst) == {1, 2}
    for step in (1, 2):
        group = sorted(
            (row for row in rows if row["step"] == step), key=lambda r: r["reward"]
        )
        assert best[step] == as_markdown(group[-1])
        assert worst[step] == as_markdown(group[0])


def test_steps_that_are_trained_again_are_shown_once(reported):
    rewards = shown_in(reported / "tensorboard").Scalars("train/reward")
    assert [event.step for event in rewards] == [1, 2]


def test_a_folder_that_the_user_named_is_kept(
    tmp_path, questions, retriever, monkeypatch
):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    profile = replace(REPORTED, grpo={**REPORTED.grpo, "max_steps": 1})
    functions, _ = reward_functions(profile)
    make_trainer(
        tmp_path / "run", questions, retriever, profile, reward_funcs=functions
    ).train()
    assert shown_in(tmp_path / "board").Scalars("train/reward")
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("report_to", ["wandb", "trackio", ["tensorboard", "wandb"]])
def test_dashboards_that_can_show_tables_get_trls(report_to):
    arguments = with_table({"report_to": report_to})
    assert arguments["log_completions"] is True
    assert arguments["num_completions_to_print"] == 0


@pytest.mark.parametrize("report_to", ["none", "tensorboard", [], None])
def test_others_do_not_have_trl_write_its_tables(report_to):
    assert with_table({"report_to": report_to}) == {"report_to": report_to}


def test_trls_table_can_be_made_of_our_trajectories(tmp_path, questions, retriever):
    shown = with_table({"report_to": "wandb"}) | {"report_to": "none"}
    profile = tiny_profile(max_steps=1)
    profile = replace(profile, grpo={**profile.grpo, **shown})
    make_trainer(tmp_path, questions, retriever, profile).train()
    table = pd.read_parquet(tmp_path / "state" / "completions")
    assert len(table) == profile.grpo["per_device_train_batch_size"]
    assert table["completion"].str.contains("<think>").all()
    assert {"accuracy_reward", "format_reward", "advantage"} <= set(table.columns)


def test_a_table_that_the_user_refused_is_not_made(tmp_path):
    profile = tiny_profile()
    changes = {"report_to": "wandb", "log_completions": False}
    config = grpo_config(profile, 42, tmp_path, **changes)
    assert config.log_completions is False


def test_text_is_no_markup_in_tensorboard():
    row = {
        "question": "<b>\n# Q?",
        "turns": ["<think> a\n\nb</think>", "c"],
        "observations": ["<context>\n- x\n</context>"],
        "golden_answers": ["A"],
        "reward": 1.0,
        "advantage": 0.5,
    }
    text = as_markdown(row)
    assert all(line.startswith("    ") for line in text.splitlines())
    words = " ".join(text.split())
    for part in ("# Q?", "<think> a b</think>", "<context> - x </context>", "A", "c"):
        assert part in words
