"""What a profile or an override gets wrong is refused in one clear sentence."""

from dataclasses import replace

import pytest
import torch
from helpers import Shelf, log_of, make_trainer, tiny_profile

from kr1_utils import files, models, profiles, trainer
from kr1_utils.profiles import PROFILES, resolve
from kr1_utils.rows import is_hub_file

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


def test_files_of_a_profile_are_shipped_or_named_on_the_hub():
    for profile in PROFILES.values():
        for file in (
            profile.corpus,
            profile.train_questions,
            profile.test_questions,
            profile.test_single_questions,
        ):
            if file and not is_hub_file(file):
                assert files.shipped(file).is_file()


# --- what becomes of a profile ---


@pytest.mark.parametrize("name", ["1.5b", "3b", "7b", "7b-4bit"])
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


# --- arguments of TRL's GRPOConfig ---


@pytest.mark.parametrize(
    "name, value",
    [
        ("report_to", "tensorboard"),
        ("report_to", ["tensorboard", "wandb"]),
        ("num_iterations", 2),
        ("epsilon_high", 0.28),
        ("importance_sampling_level", "sequence"),
        ("scale_rewards", "none"),
        ("scale_rewards", False),
        ("loss_type", "cispo"),
        ("top_entropy_quantile", 0.2),
        ("entropy_coef", 0.01),
        ("mask_truncated_completions", True),
        ("router_aux_loss_coef", 0.0),
        ("delta", None),
        ("lr_scheduler_type", "cosine"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}),
        ("optim_target_modules", ["q_proj"]),
        ("warmup_steps", 0.1),
        ("save_strategy", "no"),
    ],
)
def test_any_argument_of_trl_reaches_grpo_config(name, value, tmp_path):
    profile = resolve("tiny", {name: value})
    assert profile.grpo[name] == value
    assert type(profile.grpo[name]) is type(value)
    args = trainer.grpo_config(profile, 42, tmp_path)
    if name == "report_to" and isinstance(value, str):
        value = [value]
    if value is False:
        # So TRL reads `scale_rewards`.
        value = "none"
    assert getattr(args, name) == value


def test_epochs_are_taken_with_the_remark_that_steps_decide(tmp_path):
    with pytest.warns(UserWarning, match="num_train_epochs=2.*max_steps=60"):
        profile = resolve("tiny", {"num_train_epochs": 2})
    args = trainer.grpo_config(profile, 42, tmp_path)
    assert (args.num_train_epochs, args.max_steps) == (2.0, 60)


def test_a_name_that_is_both_is_the_profiles_and_trls_has_a_prefix(tmp_path):
    profile = resolve("tiny", {"top_k": 5, "grpo.top_k": 20, "grpo.beta": 1})
    assert profile.limits.top_k == 5
    assert (profile.grpo["top_k"], profile.grpo["beta"]) == (20, 1.0)
    assert trainer.grpo_config(profile, 42, tmp_path).top_k == 20
    rows = dict(profiles.table(profile))
    assert (rows["top_k"], rows["grpo.top_k"]) == ("5", "20")


@pytest.mark.parametrize("name", ["max_steps", "loss_type", "top_k", "epsilon_high"])
def test_the_prefix_works_for_every_argument(name):
    value = {"loss_type": "grpo", "epsilon_high": 0.28}.get(name, 4)
    changes = {f"grpo.{name}": value, "save_steps": 4}
    assert resolve("tiny", changes).grpo[name] == value


def test_one_argument_under_two_names_is_refused():
    with pytest.raises(ValueError, match="max_steps and grpo.max_steps are one"):
        resolve("tiny", {"max_steps": 20, "grpo.max_steps": 40})


@pytest.mark.parametrize(
    "key, meant",
    [
        ("epsilon_hihg", "epsilon_high"),
        ("grpo.epsilon_hihg", "epsilon_high"),
        ("lora_rr", "lora_r"),
        ("max_turn", "max_turns"),
    ],
)
def test_a_misspelled_name_is_compared_with_all_names(key, meant):
    with pytest.raises(ValueError, match=f"'{key}': did you mean '{meant}'"):
        resolve("tiny", {key: 1})


@pytest.mark.parametrize(
    "name, use",
    [
        ("output_dir", "OUT"),
        ("seed", "SEED"),
        ("data_seed", "SEED"),
        ("max_completion_length", "max_response_tokens"),
        ("reward_weights", "accuracy_weight"),
        ("remove_unused_columns", "column"),
        ("logging_steps", "train_log.csv"),
        ("use_cpu", "CUDA_VISIBLE_DEVICES"),
        ("deepspeed", "--accelerate-config"),
        ("eval_strategy", "04_evaluate"),
        ("generation_kwargs", "agent loop"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "grpo."])
def test_what_the_kit_sets_is_refused_with_what_to_use(prefix, name, use):
    with pytest.raises(ValueError, match=f"Override {prefix}{name} is refused.*{use}"):
        resolve("tiny", {prefix + name: 1})


def test_a_refused_token_is_not_printed():
    with pytest.raises(ValueError, match="hf auth login") as refused:
        resolve("tiny", {"hub_token": "hf_secret"})
    assert "hf_secret" not in str(refused.value)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("epsilon_high", "high", "float or None."),
        ("num_iterations", 2.0, "int"),
        ("num_iterations", True, "int"),
        ("mask_truncated_completions", 1, "bool"),
        ("loss_type", "cipso", "'cispo'"),
        ("importance_sampling_level", "seq", "'token' or 'sequence'"),
        ("scale_rewards", "std", "'group' or 'batch' or 'none' or bool"),
        ("report_to", ["wandb", 3], "list"),
        ("run_name", 7, "str or None"),
        ("lr_scheduler_kwargs", [1], "dict"),
        ("log_level", "loud", "'debug'"),
        ("grpo.top_k", 0.5, "int"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_with_trls_type(name, value, wanted):
    with pytest.raises(ValueError) as refused:
        resolve("tiny", {name: value})
    sentence = str(refused.value)
    assert sentence.startswith(f"Override {name}={value!r} must be ")
    assert wanted in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"generation_batch_size": 100}, "must be divisible by the global batch size"),
        (
            {"generation_batch_size": 128, "steps_per_generation": 2},
            "can not be both configured",
        ),
        ({"lr_scheduler_type": "cosin"}, "cosin is not a valid SchedulerType"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported"),
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
        ({"save_steps": 2.5}, "save_steps must be an integer"),
    ],
)
def test_what_grpo_config_refuses_is_said_when_the_profile_is_resolved(
    overrides, words
):
    with pytest.raises(ValueError, match=words) as refused:
        resolve("tiny", overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "group, words", [(7, "must divide the 64"), (1, "must be at least 2")]
)
def test_groups_that_do_not_fill_a_batch_are_refused(group, words):
    with pytest.raises(ValueError, match=f"num_generations={group} {words}"):
        resolve("tiny", {"num_generations": group})


@pytest.mark.parametrize(
    "name", ["num_iterations", "steps_per_generation", "generation_batch_size"]
)
def test_none_of_what_a_generation_serves_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        resolve("tiny", {name: 0})


@pytest.mark.parametrize(
    "changes, steps",
    [
        ({"num_iterations": 2}, 2),
        ({"steps_per_generation": 3}, 3),
        ({"generation_batch_size": 256}, 4),
        ({"generation_batch_size": 256, "num_iterations": 2}, 8),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2),
    ],
)
def test_a_checkpoint_between_two_uses_is_refused_for_overrides_too(changes, steps):
    with pytest.raises(ValueError, match=f"trajectories serve {steps} steps"):
        resolve("tiny", {**changes, "save_steps": steps + 1})
    assert resolve("tiny", {**changes, "save_steps": 2 * steps})


def test_a_checkpoint_after_a_share_of_all_steps_is_counted_in_steps():
    # A tenth of 60 steps is 6.
    with pytest.raises(ValueError, match="save_steps=6: trajectories serve 4 steps"):
        resolve("tiny", {"save_steps": 0.1, "steps_per_generation": 4})
    assert resolve("tiny", {"save_steps": 0.1, "steps_per_generation": 3})


def test_unset_sizes_of_a_generation_are_trls_own():
    unset = {"generation_batch_size": None, "steps_per_generation": None}
    assert resolve("tiny", {**unset, "save_steps": 5}).grpo["save_steps"] == 5


@pytest.mark.parametrize(
    "table, words",
    [
        ("epsilon_hihg = 0.28", r"\[mine.grpo\] epsilon_hihg.*'epsilon_high'"),
        ('epsilon_high = "x"', r"\[mine.grpo\] epsilon_high='x' must be float"),
        ('output_dir = "x"', r"\[mine.grpo\] output_dir is refused: use OUT"),
        ("generation_batch_size = 100", "must be divisible"),
    ],
)
def test_a_table_with_a_bad_argument_of_trl_breaks_only_its_own_profile(
    monkeypatch, tmp_path, table, words
):
    file = tmp_path / "mine.toml"
    shipped = profiles.PROFILES_FILE.read_text("utf-8")
    file.write_text(f'{shipped}\n[mine]\nlike = "tiny"\n[mine.grpo]\n{table}\n')
    found, broken = profiles.read_profiles(file)
    monkeypatch.setattr(profiles, "PROFILES", found)
    monkeypatch.setattr(profiles, "BROKEN", broken)
    with pytest.raises(ValueError, match=words):
        resolve("mine")
    assert resolve("tiny") == PROFILES["tiny"]


def test_profiles_are_read_behind_a_byte_order_mark(tmp_path):
    file = tmp_path / "mine.toml"
    shipped = profiles.PROFILES_FILE.read_text("utf-8")
    file.write_text(f"\ufeff{shipped}", encoding="utf-8")
    assert profiles.read_profiles(file) == profiles.read_profiles(
        profiles.PROFILES_FILE
    )


def test_a_table_may_hold_any_argument_of_trl(monkeypatch):
    tiny_with(monkeypatch, epsilon_high=0.28, top_k=20)
    profile = resolve("tiny", {"top_k": 4})
    assert (profile.grpo["epsilon_high"], profile.grpo["top_k"]) == (0.28, 20)
    assert profile.limits.top_k == 4


@pytest.mark.parametrize(
    "changes",
    [{"loss_type": "cispo"}, {"importance_sampling_level": "sequence"}],
    ids=["cispo", "sequence"],
)
def test_a_step_is_trained_with_an_argument_of_trl(changes, questions, tmp_path):
    profile = tiny_profile(max_steps=1, save_steps=1, **changes)
    run = make_trainer(tmp_path, questions, Shelf(), profile)
    run.train()
    assert [row["step"] for row in log_of(tmp_path)] == ["1"]
    for name, value in changes.items():
        assert getattr(run, name) == value
