"""The trainer: TRL is given what was sampled, and trains on that alone."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    ANSWER,
    TINY,
    keep_batches,
    length_reward,
    log_of,
    make_trainer,
    tiny_profile,
)

from kr1_utils import models, rewards, trainer
from kr1_utils.engines import Generation
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits, resolve
from kr1_utils.trainer import KnowledgeGRPOTrainer


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, questions, retriever):
    """A run of two steps: its trainer and folder, TRL's batches, and trajectories."""
    folder = tmp_path_factory.mktemp("run")
    groups = []

    def keep(trajectory, **_):
        groups.append(trajectory)
        return length_reward(trajectory)

    run = make_trainer(
        folder,
        questions,
        retriever,
        tiny_profile(accuracy_weight=0.0),
        reward_funcs=[rewards.accuracy_reward, keep],
    )
    batches = keep_batches(run)
    run.train()
    return SimpleNamespace(run=run, folder=folder, batches=batches, groups=groups)


def test_log_counts_what_the_trajectories_hold(two_steps):
    for row, group in zip(log_of(two_steps.folder), two_steps.groups, strict=True):
        counted = {
            "completion_length": [t.sampled_length for t in group],
            "searches": [t.searches for t in group],
            "retrieved_length": [t.retrieved_length for t in group],
            "truncated": [t.stop == "truncated" for t in group],
        }
        for column, values in counted.items():
            mean = sum(values) / len(values)
            assert float(row[column]) == pytest.approx(mean, abs=1e-4), column


def test_mask_that_trl_trains_on_is_the_loss_mask(two_steps):
    assert len(two_steps.batches) == len(two_steps.groups) == 2
    for batch, group in zip(two_steps.batches, two_steps.groups, strict=True):
        trained_on = batch["completion_mask"] * batch["tool_mask"]
        for i, t in enumerate(group):
            n = len(t.completion_ids)
            padding = [0] * (trained_on.shape[1] - n)
            assert batch["completion_ids"][i, :n].tolist() == t.completion_ids
            assert trained_on[i].tolist() == t.loss_mask + padding
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
            assert prompt.tolist() == t.prompt_ids


def test_rows_of_a_group_share_their_question(two_steps):
    for trajectories in two_steps.groups:
        asked = [t.question["question"] for t in trajectories]
        first, second = set(asked[:4]), set(asked[4:])
        assert len(asked) == 8
        assert len(first) == len(second) == 1
        assert first != second


def gradient(run, batch):
    run.model.zero_grad()
    run._compute_loss(run.model, batch).backward()
    gradients = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    run.model.zero_grad()
    return gradients


def test_gradient_ignores_tokens_that_were_appended(two_steps):
    run = two_steps.run
    run.model.train()
    batch = copy.deepcopy(dict(two_steps.batches[-1]))
    batch["advantages"] = torch.ones_like(batch["advantages"])
    # The last token of a completion is nobody's input: it is a label only.
    appended_labels = [
        (row, len(t.completion_ids) - 1)
        for row, t in enumerate(two_steps.groups[-1])
        if t.loss_mask[-1] == 0
    ]
    assert appended_labels
    changed = copy.deepcopy(batch)
    for row, last in appended_labels:
        changed["completion_ids"][row, last] = 300
    for a, b in zip(gradient(run, batch), gradient(run, changed), strict=True):
        assert torch.equal(a, b)
    for one in (batch, changed):
        for row, last in appended_labels:
            one["tool_mask"][row, last] = 1  # if it were trained on, it would show
    pairs = zip(gradient(run, batch), gradient(run, changed), strict=True)
    assert not all(torch.allclose(a, b) for a, b in pairs)


def test_training_changes_the_adapter_and_not_the_base(two_steps):
    model = two_steps.run.model
    base, _ = models.load("data/tiny-lm")
    trained = model.base_model.model.model.embed_tokens.weight
    assert torch.equal(trained, base.model.embed_tokens.weight)
    adapter = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert any(p.abs().max() > 0 for p in adapter)


def test_reward_functions_are_given_every_promised_field(
    tmp_path, questions, retriever
):
    given = {}

    def look(**columns):
        given.update(columns)
        return [0.0] * len(columns["prompts"])

    profile = tiny_profile(max_steps=1, per_device_train_batch_size=4)
    run = make_trainer(
        tmp_path, questions, retriever, profile, reward_funcs=[look, look]
    )
    run.train()
    wanted = {*trainer.FIELDS, "trajectory", "golden_answers", "question_id"}
    assert wanted <= set(given)
    assert {len(given[name]) for name in wanted} == {4}
    assert given["answer"] == [t.answer for t in given["trajectory"]]


def test_limits_that_disagree_with_trls_are_refused(tmp_path, tiny, retriever):
    sentence = "max_completion_length=220 must equal max_response_tokens=700"
    with pytest.raises(ValueError, match=sentence):
        KnowledgeGRPOTrainer(
            tiny[0],
            retriever=retriever,
            limits=Limits(3, 2, 60, 120, 700),
            folder=tmp_path,
            args=trainer.grpo_config(TINY, 42, tmp_path),
            processing_class=tiny[1],
        )


def test_profile_reaches_trl_as_it_is():
    profile = resolve("tiny", {"accuracy_weight": 0.5, "search_cost": 0.03})
    config = trainer.grpo_config(profile, 7, "x")
    assert config.seed == 7
    assert config.reward_weights == [0.5, 1.0, 0.03]
    assert config.max_completion_length == profile.limits.max_response_tokens
    for key, value in profile.grpo.items():
        assert getattr(config, key) == ([] if value == "none" else value), key


# --- conversations that a limit cut off ---


class TalksOn:
    """Never closes a turn: it says one word until its limit."""

    def __init__(self, tokenizer):
        self.word = tokenizer(" river", add_special_tokens=False)["input_ids"][0]

    def generate(self, prompt_ids, max_new_tokens):
        return [Generation([self.word] * limit) for limit in max_new_tokens]


class OftenCutOff(KnowledgeGRPOTrainer):
    """Half of its conversations never end by themselves."""

    @staticmethod
    def run_agent(prompts, trainer):
        tokenizer = trainer.processing_class
        talker = TalksOn(tokenizer)
        answer = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
        half = len(prompts) // 2

        class Both:
            def generate(self, prompt_ids, max_new_tokens):
                out = talker.generate(prompt_ids, max_new_tokens)
                if len(out) == len(prompts):  # the first turn
                    out[:half] = [Generation(answer) for _ in range(half)]
                return out

        trainer.engine = lambda: nullcontext(Both())
        return KnowledgeGRPOTrainer.run_agent(prompts, trainer)


def train_often_cut_off(folder, questions, retriever, **settings):
    profile = tiny_profile(max_steps=1)
    profile = replace(profile, grpo=profile.grpo | settings)
    run = make_trainer(
        folder,
        questions,
        retriever,
        profile,
        kind=OftenCutOff,
        reward_funcs=[length_reward, length_reward],
    )
    batches = keep_batches(run)
    run.train()
    return run, batches[0]


def test_trl_sees_which_conversations_were_cut_off(tmp_path, questions, retriever):
    run, batch = train_often_cut_off(tmp_path, questions, retriever)
    assert run.state.log_history[0]["completions/clipped_ratio"] == 0.5
    assert run.state.log_history[0]["truncated"] == 0.5
    assert (batch["completion_mask"].sum(1) > 0).all()


def test_loss_leaves_out_what_was_cut_off_if_it_is_told_to(
    tmp_path, questions, retriever
):
    run, batch = train_often_cut_off(
        tmp_path, questions, retriever, mask_truncated_completions=True
    )
    cut_off = [t.stop == "truncated" for t in run.trajectories]
    assert sum(cut_off) == 4
    # TRL shuffles the rows of a batch.
    trained_on = (batch["completion_mask"] * batch["tool_mask"]).sum(1)
    assert sorted((trained_on > 0).tolist()) == sorted(not cut for cut in cut_off)


@pytest.mark.parametrize("budget", [0, 300])
def test_questions_that_are_too_long_are_named_counted_and_trained_around(
    budget, tmp_path, questions, retriever, capsys
):
    asked = copy.deepcopy(questions["train"][:2])
    asked[1]["question"] = "river " * 3000
    run = make_trainer(
        tmp_path,
        {"train": asked},
        retriever,
        tiny_profile(save_steps=50),
        tokens_per_micro_batch=budget,
        reward_funcs=[length_reward, length_reward],
    )
    assert "1 of the training questions are too long" in capsys.readouterr().out
    run.train()
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert [float(row["truncated"]) >= 0.5 for row in rows] == [True, True]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    history = run.state.log_history
    assert all(row["completions/clipped_ratio"] >= 0.5 for row in history[:2])


def test_trl_is_told_which_token_ends_a_turn(tmp_path, questions, retriever):
    """Where it is not the tokenizer's end of a sequence, as in Gemma's template."""
    run = make_trainer(tmp_path, questions, retriever)
    assert run.chat.end_of_turn in run.eos_token_ids


# --- what is trained ---


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_training_goes_on_with_an_adapter(beta, tmp_path, questions, retriever):
    profile = tiny_profile(beta=beta)
    first = make_trainer(
        tmp_path / "first",
        questions,
        retriever,
        profile,
        reward_funcs=[length_reward, length_reward],
    )
    first.train()
    folder = models.save_adapter(first.model, first.processing_class, tmp_path / "a")
    model, _ = models.load("data/tiny-lm", folder, trainable=True)
    second = make_trainer(
        tmp_path / "second",
        questions,
        retriever,
        profile,
        model=model,
        reward_funcs=[length_reward, length_reward],
    )
    saved = adapter_weights(first.model)
    assert all(
        torch.equal(adapter_weights(second.model)[n], w) for n, w in saved.items()
    )
    second.train()
    trained = adapter_weights(second.model)
    assert not all(torch.equal(trained[name], weight) for name, weight in saved.items())


def adapter_weights(model):
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if ".default." in name
    }


def test_model_with_nothing_to_train_is_refused(tmp_path, questions, retriever):
    adapter = REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint"
    model, _ = models.load("data/tiny-lm", adapter)
    with pytest.raises(ValueError, match="train"):
        make_trainer(tmp_path, questions, retriever, model=model)


def test_what_is_trained_is_float32_over_a_base_in_bfloat16(
    tmp_path, questions, retriever
):
    model, _ = models.load("data/tiny-lm")
    run = make_trainer(tmp_path, questions, retriever, model=model.to(torch.bfloat16))
    trained = [p for p in run.model.parameters() if p.requires_grad]
    base = [p for p in run.model.parameters() if not p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in base} == {torch.bfloat16}


@pytest.mark.parametrize("bf16", [False, True])
def test_tokens_are_sampled_in_the_precision_of_the_loss(
    bf16, tmp_path, questions, retriever
):
    profile = replace(TINY, grpo=TINY.grpo | {"bf16": bf16})
    run = make_trainer(tmp_path, questions, retriever, profile)
    with run.engine():
        assert torch.is_autocast_enabled("cpu") == bf16
    run.train()
    losses = [float(row["loss"]) for row in log_of(tmp_path)]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    trained = models.trained_weights(run.model).values()
    assert {weight.dtype for weight in trained} == {torch.float32}


def test_sampling_arguments_of_trl_shape_what_is_sampled(
    tmp_path, questions, retriever
):
    """With the best token alone to choose from, all of a group say the same."""
    profile = tiny_profile(max_steps=1, **{"grpo.top_k": 1})
    run = make_trainer(tmp_path, questions, retriever, profile)
    run.train()
    said = {}
    for trajectory in run.trajectories:
        question = trajectory.question["question"]
        said.setdefault(question, set()).add(tuple(trajectory.completion_ids))
    assert [len(ways) for ways in said.values()] == [1, 1]
