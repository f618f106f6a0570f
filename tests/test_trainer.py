"""Training: TRL is given what was sampled, trains on that alone, and goes on where it
stopped."""

import copy
import csv
import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
import trl
from helpers import ANSWER, SEARCH, Babbler, Shelf, any_limits, any_scripts
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import unwrap_model_for_generation

from kr1_utils import corpus, files, models, rewards, trainer
from kr1_utils.agent import ScriptedEngine, check_limits, rollout
from kr1_utils.checks import check_batch, check_mask
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits, resolve
from kr1_utils.trainer import LOG_COLUMNS, KnowledgeGRPOTrainer, micro_batches

LIMITS = dict(
    max_turns=2,
    top_k=1,
    max_turn_tokens=32,
    max_observation_tokens=64,
    max_response_tokens=220,
)
TINY = resolve(
    "tiny",
    dict(
        **LIMITS,
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        save_steps=2,
        warmup_steps=0,
    ),
)
ROOMY = Limits(3, 2, 60, 120, 700)
TIMED = ("step_time", "peak_memory_gib")


def length_reward(trajectory, **_):
    """A reward that differs within nearly every group, so that there is a gradient."""
    return [t.sampled_length / 10 for t in trajectory]


class Spy(KnowledgeGRPOTrainer):
    """Keeps what TRL makes of each batch; changes nothing."""

    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        self.batches.append(out)
        return out


def make(folder, questions, retriever, profile=TINY, kind=Spy, **more):
    model, tokenizer = models.load("data/tiny-lm")
    more = {"reward_funcs": [rewards.accuracy_reward, rewards.format_reward]} | more
    return kind(
        model,
        retriever=retriever,
        limits=profile.limits,
        system_prompt=profile.system_prompt,
        folder=folder,
        args=trainer.grpo_config(profile, 42, folder / "state"),
        processing_class=tokenizer,
        train_dataset=corpus.training_set(questions["train"][:40]),
        peft_config=models.lora_config(profile),
        **more,
    )


def log_of(folder):
    with (folder / "train_log.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, questions, retriever):
    """A run of two steps: (trainer, its folder, the trajectories of each step, the rows
    it told)."""
    folder, seen, told = tmp_path_factory.mktemp("run"), [], []

    def keep(trajectory, **_):
        seen.append(trajectory)
        return length_reward(trajectory)

    profile = resolve(
        "tiny",
        dict(
            **LIMITS,
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            accuracy_weight=0.0,
        ),
    )
    run = make(
        folder,
        questions,
        retriever,
        profile,
        reward_funcs=[rewards.accuracy_reward, keep],
        on_step=told.append,
    )
    run.train()
    return run, folder, seen, told


def test_log_has_exactly_the_promised_columns_and_a_row_a_step(two_steps):
    rows = log_of(two_steps[1])
    assert list(rows[0]) == list(LOG_COLUMNS)
    assert {
        "step",
        "reward",
        "accuracy_reward",
        "format_reward",
        "loss",
        "learning_rate",
        "grad_norm",
        "entropy",
        "completion_length",
        "retrieved_length",
        "searches",
        "frac_reward_zero_std",
        "step_time",
        "peak_memory_gib",
    } <= set(LOG_COLUMNS)
    assert [r["step"] for r in rows] == ["1", "2"]


def test_log_holds_finite_numbers_for_all_that_was_measured(two_steps):
    for row in log_of(two_steps[1]):
        for column, value in row.items():
            if (
                column != "format_reward"
            ):  # this run has another reward function in its place
                assert math.isfinite(float(value)), column
    assert [r["step"] for r in two_steps[3]] == [1, 2]


def test_log_counts_what_the_trajectories_hold(two_steps):
    _, folder, seen, _ = two_steps
    for row, group in zip(log_of(folder), seen, strict=True):
        for column, values in (
            ("completion_length", [t.sampled_length for t in group]),
            ("searches", [t.searches for t in group]),
            ("retrieved_length", [t.retrieved_length for t in group]),
            ("truncated", [t.stop == "truncated" for t in group]),
        ):
            assert float(row[column]) == pytest.approx(
                sum(values) / len(values), abs=1e-4
            ), column


def test_mask_that_trl_trains_on_is_the_loss_mask(two_steps):
    run, _, seen, _ = two_steps
    assert len(run.batches) == len(seen) == 2
    for batch, group in zip(run.batches, seen, strict=True):
        for i, t in enumerate(group):
            n = len(t.completion_ids)
            assert batch["completion_ids"][i, :n].tolist() == t.completion_ids
            used = batch["completion_mask"] * batch["tool_mask"]
            assert used[i].tolist() == t.loss_mask + [0] * (used.shape[1] - n)
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
            assert prompt == t.prompt_ids


def test_rows_of_a_group_share_their_question(two_steps):
    for group in two_steps[2]:
        asked = [t.question["question"] for t in group]
        assert len(asked) == 8 and len(set(asked[:4])) == len(
            set(asked[4:])
        ) == 1 != len(set(asked))


def gradient(run, batch):
    run.model.zero_grad()
    run._compute_loss(run.model, batch).backward()
    out = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    run.model.zero_grad()
    return out


def test_gradient_ignores_tokens_that_were_appended(two_steps):
    run, _, seen, _ = two_steps
    run.model.train()
    batch = copy.deepcopy({k: v for k, v in run.batches[-1].items()})
    batch["advantages"] = torch.ones_like(batch["advantages"])
    last = [
        (i, len(t.completion_ids) - 1)
        for i, t in enumerate(seen[-1])
        if t.loss_mask[-1] == 0
    ]
    assert last  # the last token of a completion is nobody's input: it is a label only
    before = gradient(run, batch)
    changed = {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()
    }
    for i, n in last:
        changed["completion_ids"][i, n] = 300
    assert all(
        torch.equal(a, b) for a, b in zip(before, gradient(run, changed), strict=True)
    )
    for one in (batch, changed):
        for i, n in last:
            one["tool_mask"][i, n] = 1  # were they trained on, it would show
    parts = zip(gradient(run, batch), gradient(run, changed), strict=True)
    assert not all(torch.allclose(a, b) for a, b in parts)


def test_trajectories_of_one_group_a_step_are_kept(two_steps):
    _, folder, seen, _ = two_steps
    rows = [
        json.loads(line)
        for line in (folder / "trajectories.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in rows] == [1] * 4 + [2] * 4
    assert [r["turns"] for r in rows] == [t.texts for group in seen for t in group[:4]]


def test_training_changes_the_adapter_and_not_the_base(two_steps):
    run = two_steps[0]
    base, _ = models.load("data/tiny-lm")
    trained = run.model.base_model.model.model.embed_tokens.weight
    assert torch.equal(trained, base.model.embed_tokens.weight)
    assert any(
        p.abs().max() > 0 for n, p in run.model.named_parameters() if "lora_B" in n
    )


def test_reward_functions_are_given_every_promised_field(
    tmp_path, questions, retriever
):
    given_fields = {}

    def look(**columns):
        given_fields.update(columns)
        return [0.0] * len(columns["prompts"])

    profile = resolve(
        "tiny",
        dict(**LIMITS, max_steps=1, per_device_train_batch_size=4, num_generations=4),
    )
    make(tmp_path, questions, retriever, profile, reward_funcs=[look, look]).train()
    wanted = {*trainer.FIELDS, "trajectory", "golden_answers", "question_id"}
    assert wanted <= set(given_fields)
    assert {len(given_fields[name]) for name in wanted} == {4}
    assert given_fields["answer"] == [t.answer for t in given_fields["trajectory"]]


class CutOffError(Exception):
    pass


def test_resumed_run_logs_what_an_undisturbed_one_logs(tmp_path, questions, retriever):
    profile = resolve(
        "tiny",
        dict(
            **LIMITS,
            max_steps=4,
            per_device_train_batch_size=8,
            num_generations=4,
            save_steps=2,
            warmup_steps=3,
        ),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    make(whole, questions, retriever, profile).train()

    def stop(row):
        if row["step"] == 3:
            raise CutOffError

    with pytest.raises(CutOffError):
        make(cut, questions, retriever, profile, on_step=stop).train()
    assert [r["step"] for r in log_of(cut)] == [
        "1",
        "2",
        "3",
    ]  # step 3 is not in any checkpoint
    make(cut, questions, retriever, profile).train(resume_from_checkpoint=True)
    rows, wanted = log_of(cut), log_of(whole)
    assert [r["step"] for r in rows] == ["1", "2", "3", "4"]
    for row, other in zip(rows, wanted, strict=True):
        for column in set(LOG_COLUMNS) - set(TIMED):
            assert float(row[column]) == pytest.approx(
                float(other[column]), rel=1e-5, abs=1e-7
            ), column
    assert (cut / "trajectories.jsonl").read_text() == (
        whole / "trajectories.jsonl"
    ).read_text()


@pytest.mark.parametrize("save_steps", [5, 6])  # where a second epoch begins, and in it
def test_run_that_goes_on_in_a_later_epoch_is_the_undisturbed_one(
    save_steps, tmp_path, questions, retriever
):
    profile = resolve(
        "tiny",
        dict(
            **LIMITS,
            max_steps=8,
            per_device_train_batch_size=8,
            num_generations=4,
            save_steps=save_steps,
            warmup_steps=0,
        ),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    more = ({"train": questions["train"][:10]}, retriever, profile)  # two a step
    seen = make(whole, *more, reward_funcs=[length_reward] * 2)
    seen.train()

    def stop(row):
        if row["step"] == 7:
            raise CutOffError

    with pytest.raises(CutOffError):
        make(cut, *more, reward_funcs=[length_reward] * 2, on_step=stop).train()
    make(cut, *more, reward_funcs=[length_reward] * 2).train(
        resume_from_checkpoint=True
    )
    for row, wanted in zip(log_of(cut), log_of(whole), strict=True):
        assert {c: row[c] for c in row if c not in TIMED} == {
            c: wanted[c] for c in row if c not in TIMED
        }
    assert (cut / "trajectories.jsonl").read_text() == (
        whole / "trajectories.jsonl"
    ).read_text()
    asked = [b["prompt_ids"][::4].tolist() for b in seen.batches]
    assert asked[:3] != asked[5:]  # each time in another order


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_number_of_epochs_may_stand_in_place_of_steps(
    shuffle, tmp_path, questions, retriever
):
    profile = replace(
        TINY,
        grpo={
            **TINY.grpo,
            "max_steps": -1,
            "num_train_epochs": 2,
            "warmup_steps": 0,
            "shuffle_dataset": shuffle,
        },
    )
    make(tmp_path, {"train": questions["train"][:4]}, retriever, profile).train()
    assert [r["step"] for r in log_of(tmp_path)] == ["1", "2", "3", "4"]


def test_limits_that_disagree_with_trls_are_refused(tmp_path, tiny, retriever):
    with pytest.raises(
        ValueError, match="max_completion_length=220 must equal max_response_tokens=700"
    ):
        KnowledgeGRPOTrainer(
            tiny[0],
            retriever=retriever,
            limits=ROOMY,
            folder=tmp_path,
            args=trainer.grpo_config(TINY, 42, tmp_path),
            processing_class=tiny[1],
        )


# --- the log file ---


def row_of(step, value=0.5):
    return {c: step if c == "step" else value for c in LOG_COLUMNS}


def test_log_row_replaces_its_own_step_and_later_ones(tmp_path):
    file = tmp_path / "train_log.csv"
    for step in (1, 2, 3, 4):
        files.append_log(file, row_of(step))
    files.append_log(file, row_of(3, 0.7))
    assert [(r["step"], r["loss"]) for r in log_of(tmp_path)] == [
        ("1", "0.5"),
        ("2", "0.5"),
        ("3", "0.7"),
    ]


def test_log_row_with_other_columns_than_the_rows_before_is_refused(tmp_path):
    file = tmp_path / "train_log.csv"
    files.append_log(file, row_of(1))
    with pytest.raises(ValueError):
        files.append_log(file, {"step": 2})
    assert [r["step"] for r in log_of(tmp_path)] == ["1"]


def test_training_set_keeps_questions_and_their_answers(questions):
    rows = corpus.training_set(questions["train"][:3])
    assert rows["prompt"] == [q["question"] for q in questions["train"][:3]]
    assert rows["golden_answers"] == [
        q["golden_answers"] for q in questions["train"][:3]
    ]


def test_profile_reaches_trl_as_it_is():
    config = trainer.grpo_config(resolve("tiny", {"accuracy_weight": 0.25}), 7, "x")
    assert config.seed == 7 and config.reward_weights == [0.25, 1.0]
    assert config.max_completion_length == resolve("tiny").limits.max_response_tokens
    for key, value in resolve("tiny").grpo.items():
        assert getattr(config, key) == ([] if value == "none" else value), key


# --- parts of a batch ---

ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 90)), min_size=1, max_size=20
)


@given(ROWS, st.integers(130, 600))
def test_parts_hold_every_row_once_and_no_more_tokens_than_the_budget(lengths, budget):
    parts = micro_batches(lengths, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        prompts, completions = zip(*(lengths[i] for i in part))
        assert len(part) * (max(prompts) + max(completions)) <= budget


def test_a_row_longer_than_the_budget_goes_alone():
    assert micro_batches([(5, 5), (5, 500), (5, 5)], 100) == [[1], [0, 2]]


def one_update(
    folder, questions, retriever, budget, loss_type="dapo", accumulate=1, **more
):
    """Gradients of one step, the padded tokens of each pass with a gradient and without
    one, and the log."""
    profile = resolve(
        "tiny",
        dict(
            LIMITS,
            max_steps=1,
            per_device_train_batch_size=8 // accumulate,
            num_generations=4,
            gradient_accumulation_steps=accumulate,
            loss_type=loss_type,
            max_grad_norm=1e9,
            **more,
        ),
    )
    torch.manual_seed(0)
    run = make(
        folder,
        questions,
        retriever,
        profile,
        tokens_per_micro_batch=budget,
        reward_funcs=[rewards.accuracy_reward, length_reward],
    )
    gradients, passes, silent = {}, [], []

    def look(module, args, kwargs):
        if "labels" in kwargs:  # TRL asks for log-probabilities
            (passes if torch.is_grad_enabled() else silent).append(
                kwargs["input_ids"].numel()
            )

    def keep(optimizer, args, kwargs):
        gradients.update(
            {
                n: p.grad.clone()
                for n, p in run.model.named_parameters()
                if p.grad is not None
            }
        )

    run.model.register_forward_pre_hook(look, with_kwargs=True)
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(keep)
    run.train()
    return gradients, passes, silent, log_of(folder)[0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss_type", trainer.LOSS_WEIGHTING)
def test_gradient_of_the_parts_is_that_of_the_whole(
    loss_type, accumulate, tmp_path, questions, retriever
):
    made = {
        budget: one_update(
            tmp_path / str(budget), questions, retriever, budget, loss_type, accumulate
        )
        for budget in (0, 300)
    }
    (whole, few, _, log), (parts, many, _, log_of_parts) = made[0], made[300]
    assert len(few) == accumulate < len(many) and max(few) > 300 >= max(many)
    assert (
        set(parts) == set(whole) and max(g.abs().max() for g in whole.values()) > 1e-4
    )
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=0, atol=1e-5), name
    for column in ("loss", "entropy", "grad_norm", "reward", "completion_length"):
        assert float(log_of_parts[column]) == pytest.approx(
            float(log[column]), abs=1e-5
        ), column


def test_passes_without_gradient_keep_the_budget_and_say_the_same(
    tmp_path, questions, retriever
):
    """With a penalty for leaving the first model, TRL asks for its log-probabilities
    before the step."""
    (whole, _, few, _), (parts, _, many, _) = (
        one_update(tmp_path / str(budget), questions, retriever, budget, beta=0.1)
        for budget in (0, 300)
    )
    assert few and len(many) > len(few) and max(few) > 300 >= max(many)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    "settings, budget, words",
    [
        ({}, 230, "less than one row"),
        ({"loss_type": "luspo"}, 900, "loss_type"),
        ({"entropy_coef": 0.1}, 900, "entropy"),
        ({"top_entropy_quantile": 0.5}, 900, "entropy"),
    ],
)
def test_settings_that_can_not_be_cut_are_refused(
    settings, budget, words, tmp_path, questions, retriever
):
    profile = replace(TINY, grpo=TINY.grpo | settings)
    with pytest.raises(ValueError, match=words):
        make(tmp_path, questions, retriever, profile, tokens_per_micro_batch=budget)


def test_two_processes_with_other_lengths_run_the_same_number_of_parts(tmp_path):
    """One process has eight short rows, the other eight long ones; the mean of their
    gradients is that of two processes which do not cut."""
    script = REPO / "tests" / "two_processes.py"
    for budget in (0, 300):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                "2",
                str(script),
                str(tmp_path),
                str(budget),
            ],
            check=True,
            capture_output=True,
            timeout=300,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
    whole, parts = (
        torch.load(tmp_path / f"{b}.pt", weights_only=True) for b in (0, 300)
    )
    assert whole["parts"] == [1, 1] and parts["parts"][0] == parts["parts"][1] > 1
    for name, gradient in whole["gradients"].items():
        assert torch.allclose(parts["gradients"][name], gradient, rtol=0, atol=1e-5), (
            name
        )


# --- when memory runs out ---


class Full(Spy):
    """Has no memory left in step 2, once."""

    full = True

    def _compute_loss(self, model, inputs):
        if self.state.global_step == 1 and Full.full:
            Full.full = False
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …"
            )
        return super()._compute_loss(model, inputs)


def test_run_that_is_out_of_memory_says_what_to_lower_and_goes_on(
    tmp_path, questions, retriever
):
    settings = {
        "profile": asdict(
            replace(TINY, grpo=TINY.grpo | {"max_steps": 3, "save_steps": 50})
        )
    }
    profile, state = replace(TINY, grpo=settings["profile"]["grpo"]), tmp_path / "state"
    assert trainer.resume_point(state, settings) is None
    asked = []
    run = make(
        tmp_path,
        questions,
        retriever,
        profile,
        kind=Full,
        reward_funcs=[length_reward] * 2,
        on_out_of_memory=lambda tokens: asked.append(tokens) or "Lower it.",
    )
    with pytest.raises(
        RuntimeError, match=r"step 2, .*Tried to allocate 2.00 GiB. .*\nLower it."
    ) as error:
        run.train()
    assert asked[0] == max(run.longest, 32) and f"of {run.longest} tokens" in str(
        error.value
    )
    assert 20 < asked[0] <= TINY.limits.max_response_tokens
    settings["profile"]["limits"]["max_response_tokens"] = 200  # what it said to lower
    checkpoint = trainer.resume_point(state, settings)
    assert checkpoint.endswith("checkpoint-1")
    assert (
        trainer.resume_point(state, settings) == checkpoint
    )  # also when it was stopped again at once
    lower = replace(profile, limits=Limits(**settings["profile"]["limits"]))
    make(tmp_path, questions, retriever, lower, reward_funcs=[length_reward] * 2).train(
        resume_from_checkpoint=checkpoint
    )
    assert [r["step"] for r in log_of(tmp_path)] == ["1", "2", "3"]
    assert not (state / trainer.OUT_OF_MEMORY).exists()
    assert (
        trainer.resume_point(state, {"profile": asdict(profile)}) is None
    )  # without that reason: a new run


# --- where to go on ---


def checkpoint(folder, step, state="{}"):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if state is not None:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)


def test_resume_point_is_the_last_whole_checkpoint(tmp_path):
    folder = tmp_path / "state"
    assert trainer.resume_point(folder, {"a": 1}) is None
    checkpoint(folder, 20)
    checkpoint(folder, 100)
    checkpoint(folder, 120, None)
    checkpoint(folder, 140, '{"half')
    assert trainer.resume_point(folder, {"a": 1}) == str(folder / "checkpoint-100")
    assert {f.name for f in folder.glob("checkpoint-*")} == {
        "checkpoint-20",
        "checkpoint-100",
    }


def test_run_with_other_settings_does_not_go_on(tmp_path):
    folder = tmp_path / "state"
    trainer.resume_point(folder, {"a": 1})
    checkpoint(folder, 20)
    assert trainer.resume_point(folder, {"a": 2}) is None
    assert not list(folder.glob("checkpoint-*"))


# --- the checks of a batch and its mask ---


def scripted(tokenizer, texts, question="Q?"):
    return rollout(
        ScriptedEngine(tokenizer, {question: texts}),
        tokenizer,
        Shelf(),
        [{"question": question}],
        ROOMY,
        "S",
    )[0]


@pytest.fixture
def good(tokenizer):
    return scripted(tokenizer, [SEARCH, "no tag", ANSWER])


@given(st.data())
def test_checks_accept_whatever_a_rollout_makes(tokenizer, chat, data):
    limits = data.draw(any_limits(check_limits(ROOMY, tokenizer, chat)))
    scripts = {
        f"Question {i}?": [
            tokenizer(t, add_special_tokens=False)["input_ids"] for t in turns
        ]
        for i, turns in enumerate(data.draw(any_scripts))
    }
    engine = Babbler(
        tokenizer,
        scripts,
        "S",
        limits.max_turns == 0,
        logprobs=data.draw(st.booleans()),
    )
    trajectories = rollout(
        engine, tokenizer, Shelf(), [{"question": q} for q in scripts], limits, "S"
    )
    check_batch(list(scripts), trajectories, limits)
    for t in trajectories:
        check_mask(t.completion_ids, t.loss_mask, tokenizer, chat)


@given(st.data())
def test_check_refuses_every_inverted_mask_of_a_model_that_spoke(tokenizer, chat, data):
    turns = data.draw(any_scripts.map(lambda s: s[0]))
    t = scripted(tokenizer, ["x" + text for text in turns] or [ANSWER])
    with pytest.raises(ValueError, match="is it inverted"):
        check_mask(t.completion_ids, [1 - m for m in t.loss_mask], tokenizer, chat)


def test_check_refuses_any_appended_token_that_is_trained_on(good, tokenizer, chat):
    ours = [i for i, m in enumerate(good.loss_mask) if m == 0]
    ends = {
        i
        for i in ours
        if good.completion_ids[i] == chat.end_of_turn
        and (i == 0 or good.loss_mask[i - 1] == 1)
    }  # where the model's turn ends: may be sampled
    assert len(ends) == 3 and len(ours) > 60
    for i in sorted(set(ours) - ends):
        mask = [*good.loss_mask[:i], 1, *good.loss_mask[i + 1 :]]
        with pytest.raises(
            ValueError, match=f"trains on token {i} .*observation or a header"
        ):
            check_mask(good.completion_ids, mask, tokenizer, chat)


def test_check_refuses_any_sampled_token_that_is_left_out(good, tokenizer, chat):
    for i in [i for i, m in enumerate(good.loss_mask) if m == 1]:
        mask = [*good.loss_mask[:i], 0, *good.loss_mask[i + 1 :]]
        with pytest.raises(ValueError, match=f"leaves out token {i} "):
            check_mask(good.completion_ids, mask, tokenizer, chat)


def test_check_refuses_a_mask_that_trains_on_everything(good, tokenizer, chat):
    with pytest.raises(ValueError, match="observation or a header"):
        check_mask(good.completion_ids, [1] * len(good.loss_mask), tokenizer, chat)


def test_check_refuses_a_mask_shifted_by_one(good, tokenizer, chat):
    for mask in ([0, *good.loss_mask[:-1]], [*good.loss_mask[1:], 0]):
        with pytest.raises(ValueError, match="loss mask"):
            check_mask(good.completion_ids, mask, tokenizer, chat)


def test_check_refuses_turns_without_a_message_between_them(tokenizer, chat):
    ids = tokenizer(f"{SEARCH}<|im_end|>{ANSWER}<|im_end|>", add_special_tokens=False)[
        "input_ids"
    ]
    with pytest.raises(ValueError, match="comes no user message"):
        check_mask(ids, [1] * len(ids), tokenizer, chat)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.completion_ids.append(5), "of lengths"),
        (lambda t: t.loss_mask.pop(), "of lengths"),
        (lambda t: setattr(t, "logprobs", [0.0]), "of lengths"),
        (lambda t: (t.completion_ids.clear(), t.loss_mask.clear()), "of lengths"),
        (
            lambda t: t.question.update(question="Another?"),
            "answers another question than prompt 1",
        ),
    ],
)
def test_check_refuses_a_batch_with_one_bad_row(tokenizer, change, message):
    rows = [scripted(tokenizer, [ANSWER]), scripted(tokenizer, [ANSWER], "R?")]
    check_batch(["Q?", "R?"], rows, ROOMY)
    change(rows[1])
    with pytest.raises(ValueError, match=message):
        check_batch(["Q?", "R?"], rows, ROOMY)


def test_check_refuses_rows_in_another_order_or_number(tokenizer):
    rows = [scripted(tokenizer, [ANSWER]), scripted(tokenizer, [ANSWER], "R?")]
    with pytest.raises(ValueError, match="Trajectory 0 answers another question"):
        check_batch(["Q?", "R?"], rows[::-1], ROOMY)
    with pytest.raises(ValueError, match="1 trajectories came back for 2 prompts"):
        check_batch(["Q?", "R?"], rows[:1], ROOMY)


def test_check_refuses_a_row_beyond_the_limit(good):
    limits = Limits(3, 2, 60, 120, len(good.completion_ids))
    check_batch(["Q?"], [good], limits)
    with pytest.raises(ValueError, match="more than max_response_tokens"):
        check_batch(["Q?"], [good], Limits(3, 2, 60, 120, len(good.completion_ids) - 1))


# --- what of TRL is leant on, beside its public interface ---


def parameters_of(function):
    return list(inspect.signature(function).parameters)


def test_trl_calls_log_as_we_override_it():
    assert parameters_of(GRPOTrainer.log) == ["self", "logs", "start_time"]
    assert parameters_of(KnowledgeGRPOTrainer.log) == ["self", "logs", "start_time"]
    assert inspect.signature(GRPOTrainer.log).parameters["start_time"].default is None


def test_trl_takes_a_rollout_function_and_calls_it_as_ours_is_made():
    assert "rollout_func" in parameters_of(GRPOTrainer.__init__)
    assert parameters_of(KnowledgeGRPOTrainer.run_agent) == ["prompts", "trainer"]
    source = inspect.getsource(GRPOTrainer._generate)
    assert "self.rollout_func(prompts, self)" in source and 'pop("env_mask"' in source


def test_trl_unwraps_a_model_as_we_ask():
    assert parameters_of(unwrap_model_for_generation)[:2] == ["model", "accelerator"]


def test_trl_passes_the_loss_as_this_test_file_asks_for_it():
    assert parameters_of(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert parameters_of(GRPOTrainer._generate_and_score_completions) == [
        "self",
        "inputs",
    ]


def test_trl_has_the_attributes_that_we_read(two_steps):
    run = two_steps[0]
    assert (
        set(run._metrics) == {"train", "eval"}
        and run._metrics["train"]["new name"] == []
    )
    del run._metrics["train"]["new name"]
    assert run.num_generations == 4 and run.temperature == 1.0
    assert run.processing_class.chat_template and run.model_wrapped is not None
    assert run.accelerator.is_main_process and run.state.global_step == 2


def test_nothing_of_trl_is_overridden_but_what_is_tested_here():
    own = {name for name in vars(KnowledgeGRPOTrainer) if not name.startswith("__")}
    assert own & set(dir(GRPOTrainer)) == {
        "log",
        "compute_loss",
        "training_step",
        "_get_train_sampler",
        "_get_per_token_logps_and_entropies",
        "_save_rng_state",
        "_run_epoch",
    }


def test_transformers_completes_a_checkpoint_after_all_saved_their_random_states():
    source = inspect.getsource(GRPOTrainer._save_checkpoint) + inspect.getsource(
        Trainer._save_checkpoint
    )
    assert source.index("self._save_rng_state(output_dir)") < source.index(
        "save_to_json("
    )
    ours = inspect.getsource(KnowledgeGRPOTrainer._save_rng_state)
    assert ours.index("super()._save_rng_state") < ours.index("wait_for_everyone")


def test_trl_is_the_pinned_version():
    assert f"trl=={trl.__version__}" in (REPO / "requirements.txt").read_text().replace(
        " ", ""
    )


def test_trainer_is_short_enough_to_read():
    lines = (REPO / "kr1_utils" / "trainer.py").read_text().splitlines()
    assert len(lines) <= 250


def test_private_parts_of_trls_vllm_that_are_used_are_as_they_were():
    assert parameters_of(VLLMGeneration.sync_weights) == ["self"]
    assert parameters_of(VLLMGeneration._iter_named_params) == ["self"]
    source = inspect.getsource(VLLMGeneration)
    assert "for name, param in self._iter_named_params():" in source
    assert "self._llm_weights_sleeping = self.enable_sleep_mode" in source
    push = inspect.getsource(GRPOTrainer._generate)
    assert push.index("self.vllm_generation.sync_weights()") < push.index(
        "self.rollout_func(prompts, self)"
    )


def test_a_checkpoint_of_the_last_step_is_the_end(tmp_path, questions, retriever):
    """transformers would go on for one step more."""
    run = make(
        tmp_path, questions, retriever, reward_funcs=[length_reward, length_reward]
    )
    run.train()
    before = (
        log_of(tmp_path),
        {n: p.detach().clone() for n, p in run.model.named_parameters() if "lora" in n},
    )
    again = make(
        tmp_path, questions, retriever, reward_funcs=[length_reward, length_reward]
    )
    again.train(resume_from_checkpoint=str(tmp_path / "state" / "checkpoint-2"))
    assert log_of(tmp_path) == before[0] and len(before[0]) == 2
    after = dict(again.model.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in before[1].items())
    assert any(p.abs().sum() > 0 for n, p in before[1].items() if "lora_B" in n)
