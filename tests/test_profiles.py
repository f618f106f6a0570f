"""Profiles and overrides: what is unknown or of the wrong type is refused in one clear
sentence."""

import pytest
import torch

from kr1_utils import corpus, files, models, profiles, trainer
from kr1_utils.profiles import PROFILES, resolve


def test_overrides_reach_fields_limits_and_grpo():
    p = resolve("tiny", {"lora_r": 8, "top_k": 5, "max_steps": 3, "use_lora": False})
    assert (p.lora_r, p.limits.top_k, p.grpo["max_steps"], p.use_lora) == (
        8,
        5,
        3,
        False,
    )


def test_overrides_leave_the_rest_and_the_profile_itself_alone():
    before = repr(PROFILES["tiny"])
    p = resolve("tiny", {"max_steps": 3})
    assert repr(PROFILES["tiny"]) == before
    assert {**p.grpo, "max_steps": PROFILES["tiny"].grpo["max_steps"]} == PROFILES[
        "tiny"
    ].grpo
    assert p.limits == PROFILES["tiny"].limits


@pytest.mark.parametrize("overrides", [None, {}])
def test_no_overrides_give_the_profile(overrides):
    assert resolve("tiny", overrides) == PROFILES["tiny"]


def test_whole_number_stands_for_a_decimal_one():
    value = resolve("tiny", {"temperature": 1}).grpo["temperature"]
    assert value == 1.0 and isinstance(value, float)


def test_unknown_profile_is_refused_and_the_known_are_named():
    with pytest.raises(ValueError, match="Unknown profile 'tinny'.*tiny"):
        resolve("tinny")


def test_unknown_override_is_refused_with_a_suggestion():
    with pytest.raises(
        ValueError, match="Unknown override 'max_step'.*did you mean 'max_steps'"
    ):
        resolve("tiny", {"max_step": 3})


def test_override_far_from_any_name_is_refused_with_the_list():
    with pytest.raises(
        ValueError, match="Unknown override 'zzz'.*choose one of .*max_steps"
    ):
        resolve("tiny", {"zzz": 3})


@pytest.mark.parametrize("key", ["name", "limits", "grpo", "expected"])
def test_what_is_no_setting_can_not_be_overridden(key):
    with pytest.raises(ValueError, match="Unknown override"):
        resolve("tiny", {key: PROFILES["tiny"].name})


@pytest.mark.parametrize(
    "key, value",
    [
        ("max_steps", "3"),
        ("max_steps", 3.0),
        ("max_steps", True),
        ("max_steps", None),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("model", 7),
        ("use_lora", 1),
        ("top_k", [1]),
    ],
)
def test_override_of_the_wrong_type_is_refused(key, value):
    with pytest.raises(ValueError, match=f"Override {key}="):
        resolve("tiny", {key: value})


@pytest.mark.parametrize(
    "table, words",
    [
        ({"like": "smoll"}, "smoll"),
        ({"like": "mine"}, "RecursionError"),
        ({"like": "tiny", "modell": "x"}, "modell"),
        ({"like": "tiny", "limits": {"max_turn": 3}}, "max_turn"),
        ({}, "max_steps=None"),
        ({"like": "tiny", "grpo": {"max_steps": "5"}}, "max_steps='5'"),
    ],
)
def test_a_table_that_is_no_profile_is_named_where_it_is_asked_for(
    monkeypatch, table, words
):
    tables = profiles._TABLES | {"mine": table}
    monkeypatch.setitem(PROFILES, "mine", profiles._profile("mine", tables))
    with pytest.raises(ValueError, match=words):
        resolve("mine")
    assert profiles._profile("tiny", tables) == resolve("tiny")


@pytest.mark.parametrize(
    "key", ["max_steps", "num_generations", "per_device_train_batch_size"]
)
def test_none_of_what_it_takes_to_train_is_refused(key):
    with pytest.raises(ValueError, match=f"{key}=0 must be at least 1"):
        resolve("tiny", {key: 0})


def test_negative_whole_number_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        resolve("tiny", {"max_steps": -1})


@pytest.mark.parametrize("overrides", [["max_steps"], "max_steps=3", 3])
def test_overrides_that_are_no_dict_are_refused(overrides):
    with pytest.raises(ValueError, match="must be a dict"):
        resolve("tiny", overrides)


def test_table_shows_every_setting_with_its_resolved_value():
    p = resolve("tiny", {"max_steps": 3, "top_k": 4})
    rows = dict(profiles.table(p))
    assert (
        rows["max_steps"] == "3" and rows["top_k"] == "4" and rows["model"] == p.model
    )
    assert {"profile", "grpo", "limits"} & set(rows) == set()
    assert all(isinstance(v, str) for v in rows.values())


def test_files_of_a_profile_are_shipped():
    for p in PROFILES.values():
        for file in (
            p.corpus,
            p.train_questions,
            p.test_questions,
            p.test_single_questions,
        ):
            assert (
                not file.startswith("data/miniwiki")
                or files.in_repository(file).is_file()
            ), file


def test_relative_paths_start_at_the_repository(tmp_path):
    assert files.in_repository("data") == files.REPO / "data"
    assert files.in_repository(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["1.5b", "7b", "7b-4bit"])
def test_profiles_for_a_gpu_give_whole_arguments(name, tmp_path):
    profile = resolve(name)
    args = trainer.grpo_config(
        profile, 42, tmp_path, use_cpu=True
    )  # here, where bf16 needs no GPU then
    assert args.bf16 and args.gradient_checkpointing
    assert (
        args.generation_batch_size >= 32
        and args.generation_batch_size % args.num_generations == 0
    )
    assert args.max_completion_length == profile.limits.max_response_tokens
    assert args.use_vllm == (name != "7b-4bit")
    if args.use_vllm:  # asleep while training, and room for prompt and response
        assert (
            args.vllm_enable_sleep_mode
            and args.vllm_max_model_length >= args.max_completion_length + 256
        )
    assert models.lora_config(profile).r == 16
    with pytest.raises(ValueError, match="has no corpus of its own"):
        corpus.locate_files(profile)


def test_a_response_smaller_than_one_turn_is_refused():
    with pytest.raises(
        ValueError, match="max_response_tokens=40 is smaller than one turn"
    ):
        resolve("7b", {"max_response_tokens": 40})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_four_bits_without_cuda_are_refused_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="need CUDA"):
        models.load("no/such-model", four_bit=True)


def test_checkpoint_inside_a_batch_of_trajectories_is_refused(monkeypatch):
    twice = profiles.replace(
        PROFILES["tiny"], grpo={**PROFILES["tiny"].grpo, "num_iterations": 2}
    )
    monkeypatch.setitem(PROFILES, "twice", twice)
    with pytest.raises(
        ValueError,
        match="save_steps=5: trajectories serve 2 steps, and between those a run",
    ):
        resolve("twice", {"save_steps": 5})
    assert resolve("twice", {"save_steps": 4}).grpo["save_steps"] == 4
    larger = profiles.replace(
        PROFILES["tiny"], grpo={**PROFILES["tiny"].grpo, "generation_batch_size": 256}
    )
    monkeypatch.setitem(PROFILES, "larger", larger)
    with pytest.raises(ValueError, match="save_steps=3: trajectories serve 4 steps"):
        resolve("larger", {"save_steps": 3})
    assert resolve("larger", {"save_steps": 8})
    assert resolve("tiny", {"gradient_accumulation_steps": 2, "save_steps": 5})
