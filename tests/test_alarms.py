"""Alarms: each sign of collapse is seen, once, and a run that learns raises none."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import ANSWER, SEARCH, TINY, Shelf, make_trainer
from transformers import TrainerControl, TrainerState

from kr1_utils import alarms
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.alarms import SIGNS, WINDOW, CollapseAlarms
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits as RolloutLimits

FINE = {
    "loss": 0.1,
    "frac_reward_zero_std": 0.2,
    "truncated": 0.0,
    "entropy": 0.1,
    "grad_norm": 0.1,
}


@pytest.fixture
def said(tokenizer):
    """texts of turns -> a real trajectory in which they are said."""

    def say(*texts):
        engine = ScriptedEngine(tokenizer, {"Q?": list(texts)})
        limits = RolloutLimits(len(texts), 1, 200, 60, 2000)
        return rollout(engine, tokenizer, Shelf(), [{"question": "Q?"}], limits, "S")[0]

    return say


@pytest.fixture
def watch(said, tmp_path):
    """Alarms over a trainer that has made one good trajectory; `step(**logs)` lets it
    log."""
    trainer = SimpleNamespace(
        trajectories=[said(SEARCH, ANSWER)],
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device="cpu", reduce=lambda tensor, reduction: tensor
        ),
        _step=0,
    )
    watch = CollapseAlarms(trainer, tmp_path)
    state = TrainerState(global_step=0)
    watch.train_state = state
    watch.args = SimpleNamespace(steps_per_generation=1, num_iterations=1)

    def step(**logs):
        state.global_step += 1
        trainer._step += 1
        control = TrainerControl()
        watch.on_log(watch.args, state, control, {**FINE, **logs})
        return control

    watch.step = step
    return watch


@pytest.mark.parametrize(
    "sign, value", [("frac_reward_zero_std", 1.0), ("truncated", 0.6), ("entropy", 0.0)]
)
def test_a_sign_that_lasts_warns_once_saves_and_keeps_the_trajectories(
    watch, sign, value, capsys, tmp_path
):
    controls = [watch.step(**{sign: value}) for _ in range(2 * WINDOW)]
    assert [r["step"] for r in watch.raised] == [WINDOW] and watch.raised[0][
        "sign"
    ] == sign
    assert [c.should_save for c in controls] == [
        n == WINDOW - 1 for n in range(2 * WINDOW)
    ]
    assert not any(c.should_training_stop for c in controls)
    message = next(s.message for s in SIGNS if s.name == sign)
    assert capsys.readouterr().out.count(message) == 1
    rows = [
        json.loads(line)
        for line in (tmp_path / f"alarm-{WINDOW}.jsonl").read_text().splitlines()
    ]
    assert rows == [t.to_record() for t in watch.trainer.trajectories]


def test_a_sign_that_went_away_warns_again(watch):
    for value in [0.9] * WINDOW + [0.0] * WINDOW + [0.9] * WINDOW:
        watch.step(truncated=value)
    assert len(watch.raised) == 2


def test_it_stops_where_asked(watch):
    watch.stop = True
    controls = [watch.step(truncated=0.9) for _ in range(WINDOW)]
    assert [c.should_training_stop for c in controls] == [False] * (WINDOW - 1) + [True]


def test_no_checkpoint_is_made_while_trajectories_serve_more_steps(watch):
    watch.args.num_iterations = 2
    assert not any(
        watch.step(truncated=0.9).should_save for _ in range(WINDOW)
    )  # it rings at step 5
    assert watch.raised


def saved_state(watch, folder):
    """The trainer's state as it comes back from a checkpoint."""
    watch.train_state.stateful_callbacks["CollapseAlarms"] = watch.state()
    watch.train_state.save_to_json(folder / "state.json")
    return TrainerState.load_from_json(folder / "state.json")


def test_a_run_that_goes_on_is_watched_as_if_it_had_never_been_cut_off(watch, tmp_path):
    for _ in range(WINDOW - 1):
        watch.step(truncated=0.9, grad_norm=0.3)
    state = saved_state(watch, tmp_path)
    resumed = CollapseAlarms(watch.trainer, tmp_path, stop=True)
    control = TrainerControl()
    resumed.on_train_begin(watch.args, state, control)
    assert not control.should_training_stop and resumed.state() == watch.state()
    state.global_step += 1
    resumed.on_log(watch.args, state, control, {**FINE, "truncated": 0.9})
    assert [(r["step"], r["sign"]) for r in resumed.raised] == [(WINDOW, "truncated")]


def test_a_run_that_goes_on_after_an_alarm_stops_if_asked_to(watch, tmp_path):
    for _ in range(WINDOW):
        watch.step(truncated=0.9)
    again = CollapseAlarms(watch.trainer, tmp_path, stop=True)
    control = TrainerControl()
    again.on_train_begin(watch.args, saved_state(watch, tmp_path), control)
    assert control.should_training_stop and not again.raised


def test_a_run_that_begins_anew_has_seen_nothing(watch, tmp_path):
    for _ in range(WINDOW):
        watch.step(truncated=0.9)
    watch.on_train_begin(watch.args, TrainerState(), TrainerControl())
    assert watch.state() == CollapseAlarms(watch.trainer, tmp_path).state()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_warns_at_once_and_nothing_spoiled_is_saved(
    watch, bad
):
    for _ in range(WINDOW):
        watch.step()
    assert not watch.step(grad_norm=bad).should_save
    assert [(r["step"], r["sign"]) for r in watch.raised] == [(WINDOW + 1, "grad_norm")]
    control = TrainerControl(should_save=True)  # save_steps asks for a checkpoint
    watch.on_log(
        watch.args, TrainerState(global_step=9), control, {**FINE, "grad_norm": bad}
    )
    assert not control.should_save


def test_an_exploding_gradient_warns_at_once(watch):
    for _ in range(WINDOW):
        watch.step()
    watch.step(grad_norm=0.1 * 20)
    assert not watch.raised
    watch.step(grad_norm=0.1 * 60)
    assert watch.raised[0]["sign"] == "grad_norm"


def test_the_first_gradients_after_steps_without_spread_are_no_explosion(watch):
    for norm in [0.0] * (2 * WINDOW) + [0.3, 0.2, 0.4]:
        watch.step(grad_norm=norm)
    assert not watch.raised


@pytest.mark.parametrize("text", ["!" * 300, "北京" * 100, "no. " * 80])
def test_repetition_is_seen_in_any_script(said, text):
    assert alarms.repetition(said(f"<think> {text}</think>", ANSWER)) > 0.7


def test_trajectories_of_alarms_of_an_earlier_run_go(watch, tmp_path):
    for step in (3, 7):
        (tmp_path / f"alarm-{step}.jsonl").write_text("{}\n")
    watch.on_train_begin(watch.args, TrainerState(global_step=5), TrainerControl())
    assert [f.name for f in tmp_path.iterdir()] == ["alarm-3.jsonl"]
    watch.on_train_begin(watch.args, TrainerState(), TrainerControl())
    assert not list(tmp_path.iterdir())


def test_repetition_and_empty_thoughts_are_read_off_the_turns(watch, said):
    talk = said(
        "<think> so it is so it is so it is so it is so it is</think><answer>"
        " x</answer>"
    )
    assert alarms.repetition(talk) > 0.5 > alarms.repetition(said(SEARCH, ANSWER))
    silent = said("<think></think><search> x</search>", "<answer> x</answer>")
    assert (
        alarms.empty_thoughts(silent) == 1.0
        and alarms.empty_thoughts(said(SEARCH, ANSWER)) == 0.0
    )
    for trajectory in (talk, silent):
        watch.trainer.trajectories = [trajectory]
        for _ in range(WINDOW):
            watch.step()
    assert [r["sign"] for r in watch.raised] == ["repetition", "empty_thoughts"]


def test_an_evaluation_and_the_last_summary_of_a_run_are_not_looked_at(watch):
    watch.on_log(watch.args, TrainerState(), TrainerControl(), {"train_runtime": 1.0})
    watch.trainer.model.training = False
    for _ in range(WINDOW):
        watch.step(truncated=1.0)
    assert not watch.raised


@pytest.mark.parametrize(
    "file",
    [
        *(REPO / "data" / "reference").rglob("train_log.csv"),
        REPO / "data" / "reference" / "smol_2wiki_train_log.csv",
    ],
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_runs_that_learned_raise_none(watch, file):
    log = pd.read_csv(file)
    for row in log.to_dict("records"):
        watch.step(**{k: row[k] for k in FINE})
    assert not watch.raised
    assert len(watch.norms) == (log["grad_norm"] > 0).sum()


def test_in_training_an_alarm_saves_a_checkpoint_and_stops(
    tmp_path, questions, retriever
):
    def always(trajectory, **_):
        return [1.0] * len(trajectory)

    run = make_trainer(
        tmp_path, questions, retriever, profile=TINY, reward_funcs=[always, always]
    )
    run.args.max_steps = run.args.save_steps = 99
    run.add_callback(CollapseAlarms(run, tmp_path, stop=True))
    run.train()
    assert run.state.global_step == WINDOW
    assert (
        tmp_path / "state" / f"checkpoint-{WINDOW}" / "trainer_state.json"
    ).is_file()
    assert len((tmp_path / f"alarm-{WINDOW}.jsonl").read_text().splitlines()) == 8
    again = make_trainer(
        tmp_path, questions, retriever, profile=TINY, reward_funcs=[always, always]
    )
    again.args.max_steps = 99
    again.add_callback(CollapseAlarms(again, tmp_path, stop=True))
    again.train(
        resume_from_checkpoint=True
    )  # as if it had been killed before it could end
    assert again.state.global_step == WINDOW


def test_alarms_that_are_added_twice_watch_once(tmp_path, questions, retriever):
    run = make_trainer(tmp_path, questions, retriever)
    alarms.watch(run, tmp_path)
    second = alarms.watch(run, tmp_path, stop=True)
    watching = [
        callback
        for callback in run.callback_handler.callbacks
        if isinstance(callback, CollapseAlarms)
    ]
    assert watching == [second]
