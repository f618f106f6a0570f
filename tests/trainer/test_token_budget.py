"""Parts of a batch: none above the budget, and the gradient of the whole."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, length_reward, log_of, make_trainer, tiny_profile
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import rewards, trainer
from kr1_utils.files import REPO
from kr1_utils.trainer import micro_batches

BUDGET = 300  # tokens: a batch of these tests has more, and each of its rows fewer
LENGTHS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 90)), min_size=1, max_size=20
)


@given(LENGTHS, st.integers(130, 600))
def test_parts_hold_every_row_once_and_no_more_tokens_than_the_budget(lengths, budget):
    parts = micro_batches(lengths, budget)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        prompts, completions = zip(*(lengths[row] for row in part))
        assert len(part) * (max(prompts) + max(completions)) <= budget


def test_a_row_longer_than_the_budget_goes_alone():
    assert micro_batches([(5, 5), (5, 500), (5, 5)], 100) == [[1], [0, 2]]


def one_update(folder, questions, retriever, budget, accumulate=1, **settings):
    """One step of training: its gradients, the padded tokens of each pass with a
    gradient and without one, the row of the log, and all that TRL logged."""
    profile = tiny_profile(
        max_steps=1,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=1e9,
        **settings,
    )
    torch.manual_seed(0)
    run = make_trainer(
        folder,
        questions,
        retriever,
        profile,
        tokens_per_micro_batch=budget,
        reward_funcs=[rewards.accuracy_reward, length_reward],
    )
    update = SimpleNamespace(gradients={}, passes=[], silent_passes=[])

    def count_tokens(module, args, kwargs):
        if "labels" in kwargs:  # TRL asks for log-probabilities
            passes = update.passes if torch.is_grad_enabled() else update.silent_passes
            passes.append(kwargs["input_ids"].numel())

    def keep_gradients(optimizer, args, kwargs):
        for name, parameter in run.model.named_parameters():
            if parameter.grad is not None:
                update.gradients[name] = parameter.grad.clone()

    run.model.register_forward_pre_hook(count_tokens, with_kwargs=True)
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(keep_gradients)
    run.train()
    update.log = log_of(folder)[0]
    update.logged = run.state.log_history[0]
    return update


def assert_equal_gradients(whole, parts):
    assert set(parts) == set(whole)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss_type", trainer.LOSS_WEIGHTING)
def test_gradient_and_log_of_the_parts_are_those_of_the_whole(
    loss_type, accumulate, tmp_path, questions, retriever
):
    arguments = (questions, retriever)
    settings = {"loss_type": loss_type, "accumulate": accumulate}
    whole = one_update(tmp_path / "whole", *arguments, 0, **settings)
    parts = one_update(tmp_path / "parts", *arguments, BUDGET, **settings)
    assert len(whole.passes) == accumulate < len(parts.passes)
    assert max(whole.passes) > BUDGET >= max(parts.passes)
    assert max(g.abs().max() for g in whole.gradients.values()) > 1e-4
    assert_equal_gradients(whole.gradients, parts.gradients)
    measured = {
        name: value
        for name, value in whole.logged.items()
        if isinstance(value, float) and "time" not in name and "memory" not in name
    }
    for name, value in measured.items():
        assert parts.logged[name] == pytest.approx(value, abs=1e-5), name


def test_passes_without_gradient_keep_the_budget_and_say_the_same(
    tmp_path, questions, retriever
):
    """With a penalty for leaving the first model, TRL asks for its log-probabilities
    before the step."""
    whole = one_update(tmp_path / "whole", questions, retriever, 0, beta=0.1)
    parts = one_update(tmp_path / "parts", questions, retriever, BUDGET, beta=0.1)
    assert whole.silent_passes
    assert len(parts.silent_passes) > len(whole.silent_passes)
    assert max(whole.silent_passes) > BUDGET >= max(parts.silent_passes)
    assert_equal_gradients(whole.gradients, parts.gradients)


@pytest.mark.parametrize(
    "settings, budget, words",
    [
        ({}, 230, "less than one row"),
        ({"loss_type": "luspo"}, 900, "loss_type"),
        ({"entropy_coef": 0.1}, 900, "entropy"),
        ({"top_entropy_quantile": 0.5}, 900, "entropy"),
    ],
)
def test_settings_that_cannot_be_cut_are_refused(
    settings, budget, words, tmp_path, questions, retriever
):
    profile = replace(TINY, grpo=TINY.grpo | settings)
    with pytest.raises(ValueError, match=words):
        make_trainer(
            tmp_path, questions, retriever, profile, tokens_per_micro_batch=budget
        )


def test_two_processes_with_other_lengths_run_the_same_number_of_parts(tmp_path):
    """One process has eight short rows, the other eight long ones; the mean of their
    gradients is that of two processes which do not cut."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(REPO / "tests" / "two_processes.py")
    for budget in (0, BUDGET):
        subprocess.run(
            [sys.executable, *launcher, script, str(tmp_path), str(budget)],
            check=True,
            capture_output=True,
            timeout=300,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
    whole = torch.load(tmp_path / "0.pt", weights_only=True)
    parts = torch.load(tmp_path / f"{BUDGET}.pt", weights_only=True)
    assert whole["parts"] == [1, 1]
    assert parts["parts"][0] == parts["parts"][1] > 1
    assert_equal_gradients(whole["gradients"], parts["gradients"])
