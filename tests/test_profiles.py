"""What a profile or an override gets wrong is refused in one clear sentence."""

from dataclasses import replace

import pytest
import torch

from kr1_utils import files, models, profiles, trainer
from kr1_utils.profiles import PROFILES, resolve

# --- overrides ---


def test_overrides_reach_fields_limits_and_grpo():
    profile = resolve(
        "tiny", {"lora_r": 8, "top_k": 5, "max_steps": 3, "use_lora": False}
    )
    assert profile.lora_r == 8
    assert profile.limits.top_k == 5
    assert profile.grpo["max_steps"] == 3
    assert profile.use_lora is False


def test_overrides_leave_the_rest_and_the_profile_itself_alone():
    tiny = PROFILES["tiny"]
    before = repr(tiny)
    profile = resolve("tiny", {"max_steps": 3})
    assert repr(tiny) == before
    assert {**profile.grpo, "max_steps": tiny.grpo["max_steps"]} == tiny.grpo
    assert profile.limits == tiny.limits


@pytest.mark.parametrize("overrides", [None, {}])
def test_no_overrides_give_the_profile(overrides):
    assert resolve("tiny", overrides) == PROFILES["tiny"]


def test_whole_number_will_do_for_a_decimal_one():
    value = resolve("tiny", {"temperature": 1}).grpo["temperature"]
    assert value == 1.0
    assert isinstance(value, float)


def test_unknown_profile_is_refused_and_the_known_are_named():
    with pytest.raises(ValueError, match="Unknown profile 'tinny'.*tiny"):
        resolve("tinny")


def test_unknown_override_is_refused_with_a_suggestion():
    with pytest.raises(
        ValueError, match="Unknown override 'max_step'.*did you mean 'max_steps'"
    ):
        resolve("tiny", {"max_step": 3})


@pytest.mark.parametrize("key", ["zzz", 7])
def test_override_far_from_any_name_is_refused_with_the_list(key):
    with pytest.raises(
        ValueError, match=f"Unknown override {key!r}.*choose one of .*max_steps"
    ):
        resolve("tiny", {key: 3})


@pytest.mark.parametrize("key", ["name", "limits", "grpo"])
def test_what_is_no_setting_cannot_be_overridden(key):
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


def test_negative_whole_number_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        resolve("tiny", {"max_steps": -1})


@pytest.mark.parametrize("overrides", [["max_steps"], "max_steps=3", 3])
def test_overrides_that_are_no_dict_are_refused(overrides):
    with pytest.raises(ValueError, match="must be a dict"):
        resolve("tiny", overrides)


# --- settings that contradict each other ---


@pytest.mark.parametrize(
    "key",
    [
        "max_steps",
        "num_generations",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ],
)
def test_none_of_what_it_takes_to_train_is_refused(key):
    with pytest.raises(ValueError, match=f"{key}=0 must be at least 1"):
        resolve("tiny", {key: 0})


def test_a_response_smaller_than_one_turn_is_refused():
    with pytest.raises(
        ValueError, match="max_response_tokens=40 is smaller than one turn"
    ):
        resolve("7b", {"max_response_tokens": 40})


def test_a_micro_batch_smaller_than_one_row_is_refused():
    with pytest.raises(ValueError, match="tokens_per_micro_batch=768 is less than one"):
        resolve("tiny", {"tokens_per_micro_batch": 768})
    assert resolve("tiny", {"tokens_per_micro_batch": 769})


def test_a_whole_response_that_costs_reward_is_refused():
    with pytest.raises(ValueError, match="overlong_tokens=768 must be fewer"):
        resolve("tiny", {"overlong_tokens": 768})
    assert resolve("tiny", {"overlong_tokens": 767})


def tiny_with(monkeypatch, **grpo):
    """Give the profile `tiny` more arguments of GRPOConfig for one test."""
    tiny = PROFILES["tiny"]
    changed = replace(tiny, grpo={**tiny.grpo, **grpo})
    monkeypatch.setitem(PROFILES, "tiny", changed)


def test_checkpoint_between_two_uses_of_trajectories_is_refused(monkeypatch):
    tiny_with(monkeypatch, num_iterations=2)
    with pytest.raises(ValueError, match="save_steps=5: trajectories serve 2 steps"):
        resolve("tiny", {"save_steps": 5})
    assert resolve("tiny", {"save_steps": 4})


def test_checkpoint_within_a_larger_generation_of_trajectories_is_refused(monkeypatch):
    tiny_with(monkeypatch, generation_batch_size=256)
    with pytest.raises(ValueError, match="save_steps=3: trajectories serve 4 steps"):
        resolve("tiny", {"save_steps": 3})
    assert resolve("tiny", {"save_steps": 8})


def test_checkpoint_within_the_steps_of_a_generation_is_refused(monkeypatch):
    tiny_with(monkeypatch, steps_per_generation=3)
    with pytest.raises(ValueError, match="save_steps=20: trajectories serve 3 steps"):
        resolve("tiny")
    assert resolve("tiny", {"save_steps": 21})


def test_larger_generation_serves_fewer_steps_of_more_processes(monkeypatch):
    tiny_with(monkeypatch, generation_batch_size=256)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve("tiny", {"save_steps": 2})


def test_checkpoint_after_any_step_is_fine_where_each_samples_its_own():
    assert resolve("tiny", {"gradient_accumulation_steps": 2, "save_steps": 5})


# --- the file of profiles ---


@pytest.mark.parametrize(
    "table, words",
    [
        ('like = "smoll"', "smoll"),
        ('like = "mine"', "RecursionError"),
        ('like = "tiny"\nmodell = "x"', "modell"),
        ('like = "tiny"\nlimits = { max_turn = 3 }', "max_turn"),
        ('like = "tiny"\ngrpo = 3', "TypeError"),
        ("", "max_steps=None"),
        ('like = "tiny"\ngrpo = { max_steps = "5" }', "max_steps='5'"),
    ],
)
def test_a_table_that_is_no_profile_is_named_where_it_is_asked_for(
    monkeypatch, tmp_path, table, words
):
    file = tmp_path / "profiles.toml"
    shipped = profiles.PROFILES_FILE.read_text("utf-8")
    file.write_text(f"{shipped}\n[mine]\n{table}\n", encoding="utf-8")
    found, broken = profiles.read_profiles(file)
    assert {name: found[name] for name in PROFILES} == PROFILES

    monkeypatch.setattr(profiles, "PROFILES", found)
    monkeypatch.setattr(profiles, "BROKEN", broken)
    with pytest.raises(ValueError, match=words):
        resolve("mine")
    assert resolve("tiny") == PROFILES["tiny"]


def test_a_profile_like_another_changes_only_what_its_table_names(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("""
[base]
model = "a"
limits = { top_k = 7, max_turns = 9 }
grpo = { max_steps = 1, beta = 0.5 }

[mine]
like = "base"
lora_r = 4
limits = { top_k = 8 }
grpo = { beta = 0.25 }
""")
    found, broken = profiles.read_profiles(file)
    assert broken == {}
    mine = found["mine"]
    assert (mine.name, mine.model, mine.lora_r) == ("mine", "a", 4)
    assert (mine.limits.top_k, mine.limits.max_turns) == (8, 9)
    assert mine.grpo == {"max_steps": 1, "beta": 0.25}
    assert mine.system_prompt == profiles.SYSTEM_PROMPT
    assert found["base"].lora_r == profiles.Profile("x").lora_r


def test_table_shows_every_setting_with_its_resolved_value():
    profile = resolve("tiny", {"max_steps": 3, "top_k": 4})
    rows = dict(profiles.table(profile))
    assert rows["max_steps"] == "3"
    assert rows["top_k"] == "4"
    assert rows["model"] == profile.model
    assert {"profile", "grpo", "limits"} & set(rows) == set()
    assert all(isinstance(value, str) for value in rows.values())


def test_files_of_a_profile_are_shipped():
    for profile in PROFILES.values():
        for file in (
            profile.corpus,
            profile.train_questions,
            profile.test_questions,
            profile.test_single_questions,
        ):
            assert not file or files.shipped(file).is_file()


# --- what becomes of a profile ---


@pytest.mark.parametrize("name", ["1.5b", "7b", "7b-4bit"])
def test_profiles_for_a_gpu_give_whole_arguments(name, tmp_path):
    profile = resolve(name)
    # On a CPU, where bf16 needs no GPU.
    args = trainer.grpo_config(profile, 42, tmp_path, use_cpu=True)
    assert args.bf16
    assert args.gradient_checkpointing
    assert args.generation_batch_size >= 32
    assert args.generation_batch_size % args.num_generations == 0
    assert args.max_completion_length == profile.limits.max_response_tokens
    assert args.use_vllm == (name != "7b-4bit")
    if args.use_vllm:
        # Asleep while the policy is trained, and with room for prompt and response.
        assert args.vllm_enable_sleep_mode
        assert args.vllm_max_model_length >= args.max_completion_length + 256
    assert models.lora_config(profile).r == 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_four_bits_without_cuda_are_refused_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="need CUDA"):
        models.load("no/such-model", four_bit=True)
