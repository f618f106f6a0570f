"""Owns the scales of the experiment: a `Profile` says all that differs between them.

Their values stand in profiles.toml; a table added there is a profile too.
"""

import difflib
import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

PROFILES_FILE = Path(__file__).with_name("profiles.toml")

_TABLES = tomllib.loads(PROFILES_FILE.read_text(encoding="utf-8"))
SYSTEM_PROMPT = _TABLES.pop("system_prompt")  # of a profile that has none of its own
PARAMETERS = ("PROFILE", "SEED", "OUT", "DATA", "OVERRIDES")  # of every notebook


@dataclass(frozen=True)
class Limits:
    """Bounds on one trajectory; all but the first two count tokens."""

    max_turns: int = 5  # then one forced answer turn
    top_k: int = 3  # passages a search
    max_turn_tokens: int = 1024  # sampled in one turn
    max_observation_tokens: int = 1024  # the user message that brings passages back
    max_response_tokens: int = (
        4096  # the whole trajectory, sampled and retrieved together
    )


@dataclass(frozen=True)
class Profile:
    """One scale: model, data, limits, LoRA, GRPO.

    `grpo` goes to `trl.GRPOConfig` as it is; its keys can be overridden like fields.
    """

    name: str
    model: str = ""  # folder, or a hub id
    corpus: str = ""  # JSONL of passages; "" waits for yours, in DATA
    train_questions: str = ""
    test_questions: str = ""
    test_single_questions: str = ""
    system_prompt: str = SYSTEM_PROMPT
    limits: Limits = Limits()
    grpo: dict = field(default_factory=dict)
    use_lora: bool = True  # False trains all weights
    lora_r: int = 16
    lora_alpha: int = 32
    four_bit: bool = False  # base weights packed as NF4 (bitsandbytes); needs CUDA
    tokens_per_micro_batch: int = (
        0  # padded, in one forward and backward pass; 0 takes a batch at once
    )
    overlong_tokens: int = (
        0  # the last so many of max_response_tokens cost reward; 0 is off
    )
    stop_on_alarm: bool = False  # end training where it collapses, see alarms.py
    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    eval_questions: int = 0  # of each test set; 0 is all
    bootstrap_samples: int = 2000
    pretrain_worlds: int = 150  # A1: worlds to write conversations from
    pretrain_steps: int = 5600  # A1: updates
    cold_start_steps: int = 60  # A3: supervised updates
    cold_start_batch: int = 4  # A3: conversations an update
    expected: dict = field(
        default_factory=dict
    )  # measured: {"minutes", "memory", "machine"}


def _read(name: str, tables: dict) -> Profile:
    """The profile of one table, and of the table that it is `like`."""
    table = {**tables[name]}
    start = _read(like, tables) if (like := table.pop("like", "")) else Profile(name)
    changes = {
        part: {
            **(vars(start.limits) if part == "limits" else start.grpo),
            **table.pop(part, {}),
        }
        for part in ("limits", "grpo")
    }
    return replace(
        start,
        name=name,
        limits=Limits(**changes["limits"]),
        grpo=changes["grpo"],
        **table,
    )


def _profile(name: str, tables: dict) -> Profile | ValueError:
    """A profile, or what is wrong with its table: said where it is asked for, and no
    matter to the others."""
    try:
        return _read(name, tables)
    except (KeyError, TypeError, RecursionError) as error:
        return ValueError(
            f"[{name}] in profiles.toml is no profile: {type(error).__name__}, {error}."
        )


PROFILES = {name: _profile(name, _TABLES) for name in _TABLES}


def resolve(name: str, overrides: dict | None = None) -> Profile:
    """The profile called `name` with `overrides` laid over its fields, its limits and
    its GRPO arguments.

    Raises:
        ValueError: for an unknown profile, an unknown override or one of the wrong
            type.
    """
    if name not in PROFILES:
        raise ValueError(
            f"Unknown profile {name!r}: choose one of {', '.join(PROFILES)}."
        )
    if isinstance(profile := PROFILES[name], ValueError):
        raise profile
    if not isinstance(overrides or {}, dict):
        raise ValueError(f"OVERRIDES must be a dict, not {overrides!r}.")
    own = {
        k: v
        for k, v in vars(profile).items()
        if k not in ("name", "limits", "grpo", "expected")
    }
    bounds, changes = vars(profile.limits), {"own": {}, "limits": {}, "grpo": {}}
    for key, value in (overrides or {}).items():
        for group, known in (("own", own), ("limits", bounds), ("grpo", profile.grpo)):
            if key in known:
                changes[group][key] = _checked(key, value, known[key])
                break
        else:
            known_keys = [*own, *bounds, *profile.grpo]
            close = difflib.get_close_matches(key, known_keys, 1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"choose one of {', '.join(known_keys)}."
            )
            raise ValueError(f"Unknown override {key!r}: {hint}")
    limits = replace(profile.limits, **changes["limits"])
    if limits.max_response_tokens < limits.max_turn_tokens:
        raise ValueError(
            f"max_response_tokens={limits.max_response_tokens} is smaller than one turn"
            f" of max_turn_tokens={limits.max_turn_tokens}."
        )
    profile = replace(
        profile,
        **changes["own"],
        limits=limits,
        grpo={**profile.grpo, **changes["grpo"]},
    )
    for key in (
        "max_steps",
        "num_generations",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ):
        if not isinstance(value := profile.grpo.get(key), int) or value < 1:
            raise ValueError(f"{key}={value!r} must be at least 1, and a whole number.")
    grpo, part = profile.grpo, profile.grpo["gradient_accumulation_steps"]
    rows = grpo["per_device_train_batch_size"] * int(os.environ.get("WORLD_SIZE", 1))
    once = grpo.get("steps_per_generation") or max(
        1, grpo.get("generation_batch_size", part * rows) // rows
    )
    whole = once * grpo.get("num_iterations", 1)
    if (steps := grpo.get("save_steps", 500)) * part % whole:  # 500: transformers' own
        raise ValueError(
            f"save_steps={steps}: trajectories serve {whole / part:g} steps, and"
            " between those a run would not go on as it was."
        )
    if 0 < profile.tokens_per_micro_batch <= limits.max_response_tokens:
        raise ValueError(
            f"tokens_per_micro_batch={profile.tokens_per_micro_batch} is less than one"
            f" row: a prompt and max_response_tokens={limits.max_response_tokens}."
        )
    if profile.overlong_tokens >= limits.max_response_tokens:
        raise ValueError(
            f"overlong_tokens={profile.overlong_tokens} must be fewer than"
            f" max_response_tokens={limits.max_response_tokens}."
        )
    return profile


def _checked(key: str, value, default):
    """The value, if it is of the default's type; whole numbers may stand for decimal
    ones."""
    if (
        isinstance(default, float)
        and isinstance(value, int)
        and not isinstance(value, bool)
    ):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(
            f"Override {key}={value!r} must be a {type(default).__name__} like"
            f" {default!r}."
        )
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        raise ValueError(f"Override {key}={value!r} must not be negative.")
    return value


def table(profile: Profile) -> list[tuple[str, str]]:
    """(setting, value) rows of a resolved profile, for showing."""
    return [
        (k, str(v))
        for part in (vars(profile), vars(profile.limits), profile.grpo)
        for k, v in part.items()
        if k not in ("limits", "grpo", "expected")
    ]
