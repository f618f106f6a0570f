"""A whole run: it reports, logs decisions, and goes on only as the same run."""

from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import make_trainer, tiny_profile

from kr1_utils import corpus, rewards, trainer


@pytest.fixture
def prepare(tmp_path, questions, retriever):
    """A function that makes a trainer and what belongs to its run."""
    where = corpus.locate_files(tiny_profile())

    def make(seed=42, **changes):
        profile = tiny_profile(decision_steps=1, save_steps=1, **changes)
        grpo = make_trainer(tmp_path, questions, retriever, profile)
        grpo.args.output_dir = str(tmp_path / "training")
        run = trainer.run(grpo, profile, seed, where, questions["train"][:40])
        return SimpleNamespace(grpo=grpo, run=run, folder=tmp_path)

    return make


def train(prepared):
    with prepared.run as checkpoint:
        prepared.grpo.train(resume_from_checkpoint=checkpoint)
    return checkpoint


def test_a_run_reports_and_logs_its_steps_and_its_decisions(prepare, capsys):
    one = prepare()
    assert train(one) is None
    assert "step   1: accuracy" in capsys.readouterr().out
    assert list(pd.read_csv(one.folder / "train_log.csv")["step"]) == [1, 2]
    rows = list(corpus.read_rows(one.folder / "decisions.jsonl"))
    assert {row["step"] for row in rows} == {0, 1, 2}


def test_the_same_run_goes_on_and_another_starts_anew(prepare):
    train(prepare())
    assert train(prepare()).endswith("checkpoint-2")
    assert train(prepare(seed=7)) is None
    assert train(prepare(seed=7, learning_rate=1e-3)) is None


def test_a_run_that_starts_anew_has_a_folder_for_trls_tables(prepare):
    one = prepare(max_steps=1, log_completions=True, num_completions_to_print=0)
    train(one)
    assert len(list((one.folder / "training" / "completions").glob("*.parquet"))) == 1


def test_another_reward_starts_anew(prepare):
    train(prepare())
    other = prepare()

    def kind(answer, **_):
        return [1.0] * len(answer)

    other.grpo.reward_funcs = [rewards.accuracy_reward, kind]
    with other.run as checkpoint:
        assert checkpoint is None


def test_weights_are_gathered_on_the_first_process_only(prepare):
    one = prepare()
    one.grpo.model_wrapped = one.grpo.model
    names = set(trainer.gathered_weights(one.grpo))
    assert names == set(one.grpo.model.state_dict())
    one.grpo.accelerator = SimpleNamespace(
        get_state_dict=lambda model: {},
        end_training=lambda: None,
        is_main_process=False,
    )
    with pytest.raises(SystemExit):
        trainer.gathered_weights(one.grpo)
