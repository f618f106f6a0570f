"""Parts of a batch: none above the budget, and the gradient of the whole."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from helpers import TINY, length_reward, make_trainer, tiny_profile
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from kr1_utils import models, rewards, trainer
from kr1_utils.files import REPO
from kr1_utils.trainer import micro_batches
from kr1_utils.trainer.token_budget import TokenBudget

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


def train_in(folder, questions, retriever, budget, accumulate=1, **settings):
    """A short training: its first gradients, the padded tokens of each pass with a
    gradient and without one, and all that TRL logged of each step."""
    profile = tiny_profile(
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=1e9,
        save_steps=50,
    )
    profile = replace(profile, grpo=profile.grpo | {"max_steps": 1} | settings)
    torch.manual_seed(0)
    run = make_trainer(
        folder,
        questions,
        retriever,
        profile,
        tokens_per_micro_batch=budget,
        reward_funcs=[rewards.accuracy_reward, length_reward],
    )
    training = SimpleNamespace(gradients={}, passes=[], silent_passes=[])

    def count_tokens(module, args, kwargs):
        if "labels" in kwargs:  # TRL asks for log-probabilities
            with_gradient = torch.is_grad_enabled()
            passes = training.passes if with_gradient else training.silent_passes
            passes.append(kwargs["input_ids"].numel())

    def keep_gradients(optimizer, args, kwargs):
        if training.gradients:
            return
        for name, parameter in run.model.named_parameters():
            if parameter.grad is not None:
                training.gradients[name] = parameter.grad.clone()

    run.model.register_forward_pre_hook(count_tokens, with_kwargs=True)
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(keep_gradients)
    run.train()
    training.logged = [row for row in run.state.log_history if "loss" in row]
    return training


def assert_equal_gradients(whole, parts):
    assert set(parts) == set(whole)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=0, atol=1e-5), name


def assert_equal_logs(whole, parts):
    """All that TRL logs, but for times and memory."""
    assert len(whole) == len(parts)
    for row, other in zip(whole, parts, strict=True):
        assert set(row) == set(other)
        for name, value in row.items():
            if isinstance(value, float) and "time" not in name and "memory" not in name:
                assert other[name] == pytest.approx(value, abs=2e-5), name


def compare(folder, questions, retriever, **settings):
    """Train whole and in parts; both must say the same."""
    arguments = (questions, retriever)
    whole = train_in(folder / "whole", *arguments, 0, **settings)
    parts = train_in(folder / "parts", *arguments, BUDGET, **settings)
    assert max(whole.passes) > BUDGET >= max(parts.passes)
    assert len(whole.passes) < len(parts.passes)
    assert max(g.abs().max() for g in whole.gradients.values()) > 1e-4
    assert_equal_gradients(whole.gradients, parts.gradients)
    assert_equal_logs(whole.logged, parts.logged)
    return whole


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss_type", trainer.LOSS_WEIGHTING)
def test_gradient_and_log_of_the_parts_are_those_of_the_whole(
    loss_type, accumulate, tmp_path, questions, retriever
):
    settings = {"loss_type": loss_type, "accumulate": accumulate}
    compare(tmp_path, questions, retriever, **settings)


# Later steps of a generation, whose ratios are not 1, with clipping that is reached.
# Plain gradient descent: Adam divides by the size of each gradient, so where one is
# nearly 0 it turns the last digit into a whole step.
SEVERAL_STEPS = {
    "num_iterations": 2,
    "max_steps": 2,
    "epsilon": 1e-3,
    "optim": "sgd",
    "learning_rate": 0.5,
}


def test_ratios_of_whole_sequences_and_their_extremes_are_logged_as_of_the_whole(
    tmp_path, questions, retriever
):
    settings = SEVERAL_STEPS | {"importance_sampling_level": "sequence", "beta": 0.1}
    whole = compare(tmp_path, questions, retriever, **settings)
    assert whole.logged[1]["clip_ratio/region_mean"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", trainer.LOSS_WEIGHTING)
def test_every_loss_with_and_without_beta_logs_what_the_whole_logs(
    loss_type, beta, level, tmp_path, questions, retriever
):
    settings = {"loss_type": loss_type, "beta": beta}
    settings |= SEVERAL_STEPS | {"importance_sampling_level": level}
    compare(tmp_path, questions, retriever, **settings)


def test_passes_without_gradient_keep_the_budget_and_say_the_same(
    tmp_path, questions, retriever
):
    """With a penalty for leaving the first model, TRL asks for its log-probabilities
    before the step."""
    whole = train_in(tmp_path / "whole", questions, retriever, 0, beta=0.1)
    parts = train_in(tmp_path / "parts", questions, retriever, BUDGET, beta=0.1)
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


def test_mixture_of_experts_is_told_what_to_set(tmp_path, questions, retriever):
    tiny, tokenizer = models.load("data/tiny-lm")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=tiny.config.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        max_position_embeddings=2048,
    )
    arguments = (tmp_path, questions, retriever)
    network = Qwen3MoeForCausalLM(config)
    with pytest.raises(ValueError, match="router_aux_loss_coef=0, or"):
        make_trainer(*arguments, model=network, tokens_per_micro_batch=900)
    profile = tiny_profile(max_steps=1)
    profile = replace(profile, grpo=profile.grpo | {"router_aux_loss_coef": 0.0})
    network = Qwen3MoeForCausalLM(config)
    make_trainer(*arguments, profile, model=network, tokens_per_micro_batch=900).train()


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
    assert set(whole["metrics"]) == set(parts["metrics"]) > {"entropy"}
    for name, value in whole["metrics"].items():
        assert parts["metrics"][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.NO])
def test_parts_are_not_divided_by_the_accumulation_under_deepspeed(kind):
    """transformers asks DeepSpeed not to divide, and so must the parts."""
    called = {}
    accelerator = SimpleNamespace(
        distributed_type=kind, backward=lambda loss, **kwargs: called.update(kwargs)
    )
    TokenBudget._backward(SimpleNamespace(accelerator=accelerator), torch.ones(1))
    wanted = {"scale_wrt_gas": False} if kind == DistributedType.DEEPSPEED else {}
    assert called == wanted
