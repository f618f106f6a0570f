"""Owns the scales of the experiment: a `Profile` holds all that differs between them.

Their values are in profiles.toml; a table added there is a profile too.
"""

import math
import os
import tomllib
import typing
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kr1_utils import grpo_arguments

PROFILES_FILE = Path(__file__).with_name("profiles.toml")

# Of a profile that has none of its own; the one key of the file that is no profile.
SYSTEM_PROMPT = tomllib.loads(PROFILES_FILE.read_text("utf-8-sig"))["system_prompt"]

# What every notebook takes.
PARAMETERS = ("PROFILE", "SEED", "OUT", "DATA", "OVERRIDES")

# Fields of a profile that OVERRIDES cannot name: its own name, and those whose keys
# OVERRIDES names one by one.
NOT_OVERRIDABLE = ("name", "limits", "grpo")


@dataclass(frozen=True)
class Limits:
    """Bounds on one trajectory; all but the first two count tokens."""

    # Turns of search before one forced answer turn.
    max_turns: int = 5
    # Passages that one search brings.
    top_k: int = 3
    # Sampled in one turn.
    max_turn_tokens: int = 1024
    # The user message that brings passages back.
    max_observation_tokens: int = 1024
    # The whole trajectory, sampled and retrieved together.
    max_response_tokens: int = 4096


@dataclass(frozen=True)
class Profile:
    """One scale: model, data, limits, LoRA, GRPO.

    `grpo` goes to `trl.GRPOConfig` as it is. It may hold any argument of that, but not
    those that the kit sets itself (see `grpo_arguments.OWNED`).
    """

    name: str
    # A folder, or an id of the hub.
    model: str = ""
    # The folder of an adapter to go on training; if empty, a new one is trained.
    adapter: str = ""
    # A file of passages, or one of the hub (`owner/name:FILE`); if empty, the profile
    # needs yours, in DATA.
    corpus: str = ""
    # Files too. Of a data set on the hub, FILE may be a split: `owner/name:train`.
    train_questions: str = ""
    test_questions: str = ""
    test_single_questions: str = ""
    test_known_questions: str = ""
    # The URL of a served index, see `kr1 serve`; if empty, a run has its own.
    retriever: str = ""
    system_prompt: str = SYSTEM_PROMPT
    limits: Limits = Limits()
    grpo: dict = field(default_factory=dict)
    # False trains all weights.
    use_lora: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    # Base weights packed as NF4 (bitsandbytes); needs CUDA.
    four_bit: bool = False
    # Of weights that are not trained: "bfloat16" or "float32"; if empty, bfloat16 on a
    # GPU and float32 on a CPU.
    dtype: str = ""
    # Padded tokens in one forward and backward pass; 0 takes a whole batch at once.
    tokens_per_micro_batch: int = 0
    # How many of the last max_response_tokens cost reward; 0 is off.
    overlong_tokens: int = 0
    # Whether training ends when it collapses, see alarms.py.
    stop_on_alarm: bool = False
    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    # What each search of a right answer costs, see rewards.py; 0 is off.
    search_cost: float = 0.0
    # Of the share of supporting titles that were found; 0 is off.
    evidence_weight: float = 0.0
    # Training steps between two looks at the model's decisions; 0 is off.
    decision_steps: int = 0
    # Questions taken from each test set; 0 takes all.
    eval_questions: int = 0
    # Of these, questions asked on the ladder's rungs with other help; 0 takes all.
    ladder_questions: int = 0
    bootstrap_samples: int = 2000
    # A1: worlds to write conversations from.
    pretrain_worlds: int = 150
    # A1: updates.
    pretrain_steps: int = 5040
    # Whether GRPO starts from a model that A3 has taught the format; text is the folder
    # of such a model, made earlier.
    cold_start: bool | str = False
    # A3: supervised updates.
    cold_start_steps: int = 60
    # A3: conversations per update.
    cold_start_batch: int = 4


# Field of a profile -> its type.
FIELD_TYPES = typing.get_type_hints(Profile)


def read_profiles(file: Path) -> tuple[dict[str, Profile], dict[str, str]]:
    """The profiles of a TOML file, and for each table that is none a sentence on why.

    One broken table does not break the others: `resolve` raises its sentence when that
    profile is asked for.

    Args:
        file: one table per profile. `like` names the table that a profile starts from;
            `limits` and `grpo` are tables of their own. A `system_prompt` outside the
            tables is no profile.

    Returns:
        (name -> profile, name -> what is wrong with its table).

    Raises:
        ValueError: if the file is no TOML.
    """
    tables = tomllib.loads(Path(file).read_text("utf-8-sig"))
    tables.pop("system_prompt", None)
    profiles, broken = {}, {}
    for name in tables:
        try:
            profiles[name] = _from_table(name, tables)
        except (KeyError, TypeError, RecursionError) as error:
            broken[name] = (
                f"[{name}] in {Path(file).name} is no profile:"
                f" {type(error).__name__}, {error}."
            )
    return profiles, broken


def _from_table(name: str, tables: dict[str, dict]) -> Profile:
    """The profile of one table, laid over the profile that it is `like`."""
    fields = {**tables[name]}
    parent = fields.pop("like", "")
    start = _from_table(parent, tables) if parent else Profile(name)
    limits = fields.pop("limits", {})
    grpo = fields.pop("grpo", {})
    return replace(
        start,
        name=name,
        limits=replace(start.limits, **limits),
        grpo={**start.grpo, **grpo},
        **fields,
    )


PROFILES, BROKEN = read_profiles(PROFILES_FILE)


def resolve(name: str, overrides: dict | None = None) -> Profile:
    """The profile called `name` with `overrides` laid over its settings.

    Args:
        overrides: setting -> value. A setting is a field of `Profile` or `Limits`, or
            an argument of TRL's GRPOConfig. Where a name is both, it is the profile's,
            and TRL's is called "grpo.NAME"; that works for every argument of TRL.

    Raises:
        ValueError: for an unknown profile, an unknown override or one of the wrong
            type, for settings that contradict each other, and for what GRPOConfig
            itself refuses.
        ImportError: for an argument that only TRL can check, if it is not installed.
    """
    profile = _override(_lookup(name), overrides or {})
    _check_turn_fits(profile.limits)
    _check_counts(profile.grpo)
    grpo_arguments.check_together(profile.grpo)
    _check_groups(profile.grpo)
    _check_save_steps(profile.grpo)
    _check_token_counts(profile)
    _check_rewards(profile)
    _warn_of_epochs(profile.grpo)
    return profile


def table(profile: Profile) -> list[tuple[str, str]]:
    """(setting, value) rows of a resolved profile, to show."""
    own = own_settings(profile)
    rows = [(key, str(value)) for key, value in own.items()]
    for key, value in profile.grpo.items():
        label = f"grpo.{key}" if key in own else key
        rows.append((label, str(value)))
    return rows


def own_settings(profile: Profile) -> dict:
    """The settings of a profile that are not TRL's: its fields and its limits."""
    fields = {
        key: value
        for key, value in vars(profile).items()
        if key not in ("limits", "grpo")
    }
    return fields | vars(profile.limits)


def _lookup(name: str) -> Profile:
    if name in BROKEN:
        raise ValueError(BROKEN[name])
    if name not in PROFILES:
        raise ValueError(
            f"Unknown profile {name!r}: choose one of {', '.join(PROFILES)}."
        )
    return PROFILES[name]


def _override(profile: Profile, overrides: dict) -> Profile:
    """The profile with each override in the group that has a setting of its name."""
    if not isinstance(overrides, dict):
        raise ValueError(f"OVERRIDES must be a dict, not {overrides!r}.")
    fields = {
        key: value for key, value in vars(profile).items() if key not in NOT_OVERRIDABLE
    }
    limits = asdict(profile.limits)
    grpo = {
        key: grpo_arguments.checked(key, value, f"[{profile.name}.grpo] {key}")
        for key, value in profile.grpo.items()
    }
    for_trl = {}
    for key, value in overrides.items():
        label = f"Override {key}"
        if key in fields:
            annotation = FIELD_TYPES[key]
            fields[key] = grpo_arguments.converted(value, annotation, label)
        elif key in limits:
            limits[key] = grpo_arguments.converted(value, type(limits[key]), label)
        else:
            argument = _argument_of(key, [*fields, *limits], grpo)
            if argument in for_trl:
                raise ValueError(
                    f"Overrides {argument} and grpo.{argument} are one setting: give it"
                    " once."
                )
            for_trl[argument] = grpo_arguments.checked(argument, value, label)
    return replace(profile, **fields, limits=Limits(**limits), grpo=grpo | for_trl)


def _argument_of(key: str, own: list[str], grpo: dict) -> str:
    """The argument of GRPOConfig that an override names, with "grpo." or without.

    Args:
        own: names of settings that are not TRL's.
        grpo: the arguments that the profile has.
    """
    name = str(key).removeprefix("grpo.")
    if grpo_arguments.is_known(name):
        return name
    close = grpo_arguments.close_to(name, *own)
    if close:
        hint = f"did you mean {close!r}?"
    else:
        hint = (
            f"choose one of {', '.join([*own, *grpo])}, or another argument of TRL's"
            " GRPOConfig."
        )
    if not grpo_arguments.trl_is_installed():
        hint += " Other arguments of GRPOConfig need the extra [train]."
    raise ValueError(f"Unknown override {key!r}: {hint}")


def _check_turn_fits(limits: Limits) -> None:
    if limits.max_response_tokens < limits.max_turn_tokens:
        raise ValueError(
            f"max_response_tokens={limits.max_response_tokens} is smaller than one turn"
            f" of max_turn_tokens={limits.max_turn_tokens}."
        )


def _check_counts(grpo: dict) -> None:
    for key in (
        "max_steps",
        "num_generations",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ):
        value = grpo.get(key)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r} must be at least 1, and a whole number.")
    for key in ("num_iterations", "steps_per_generation", "generation_batch_size"):
        value = grpo.get(key)
        if value is not None and value < 1:
            raise ValueError(f"{key}={value!r} must be at least 1.")


def _rows_per_micro_batch(grpo: dict) -> int:
    """Trajectories of one micro-batch, in all processes together."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return grpo["per_device_train_batch_size"] * processes


def _micro_batches_per_generation(grpo: dict) -> int:
    """How many micro-batches are sampled at once, as TRL's GRPOConfig works it out."""
    if grpo.get("steps_per_generation"):
        return grpo["steps_per_generation"]
    if grpo.get("generation_batch_size"):
        return max(1, grpo["generation_batch_size"] // _rows_per_micro_batch(grpo))
    return grpo["gradient_accumulation_steps"]


def _check_groups(grpo: dict) -> None:
    """Trajectories are sampled in whole groups, one group per question."""
    group = grpo["num_generations"]
    if group < 2:
        raise ValueError(
            f"num_generations={group} must be at least 2: the trajectories of a"
            " question are compared with each other."
        )
    rows = _rows_per_micro_batch(grpo) * _micro_batches_per_generation(grpo)
    if rows % group:
        raise ValueError(
            f"num_generations={group} must divide the {rows} trajectories that are"
            " sampled at once."
        )


def _check_save_steps(grpo: dict) -> None:
    """A checkpoint must fall between two generations of trajectories.

    TRL keeps the trajectories of a generation in memory only, so a run that goes on
    from a step between would sample others. An epoch ends where a generation ends.
    """
    if grpo.get("save_strategy", "steps") != "steps":
        return
    micro_batches_per_step = grpo["gradient_accumulation_steps"]
    uses = grpo.get("num_iterations", 1)
    micro_batches_served = _micro_batches_per_generation(grpo) * uses
    # 500 is transformers' own default.
    save_steps = grpo.get("save_steps", 500)
    if 0 < save_steps < 1:
        # A share of all steps, as transformers reads it.
        save_steps = math.ceil(save_steps * grpo["max_steps"])
    if save_steps * micro_batches_per_step % micro_batches_served:
        steps_served = micro_batches_served / micro_batches_per_step
        raise ValueError(
            f"save_steps={save_steps}: trajectories serve {steps_served:g} steps, and"
            " between those a run would not go on as it was."
        )


def _warn_of_epochs(grpo: dict) -> None:
    if "num_train_epochs" in grpo:
        warnings.warn(
            f"num_train_epochs={grpo['num_train_epochs']:g} has no effect:"
            f" max_steps={grpo['max_steps']} says how long training goes on.",
            stacklevel=3,
        )


def _check_rewards(profile: Profile) -> None:
    dearest = profile.search_cost * profile.limits.max_turns
    if not 0 <= dearest < profile.accuracy_weight and profile.search_cost:
        raise ValueError(
            f"search_cost={profile.search_cost:g}: {profile.limits.max_turns} searches"
            f" would cost {dearest:g}, and a right answer earns"
            f" accuracy_weight={profile.accuracy_weight:g}; it must stay worth more."
        )
    if profile.evidence_weight < 0:
        raise ValueError(
            f"evidence_weight={profile.evidence_weight:g} must not be negative."
        )


def _check_token_counts(profile: Profile) -> None:
    longest = profile.limits.max_response_tokens
    if 0 < profile.tokens_per_micro_batch <= longest:
        raise ValueError(
            f"tokens_per_micro_batch={profile.tokens_per_micro_batch} is less than one"
            f" row: a prompt and max_response_tokens={longest}."
        )
    if profile.overlong_tokens >= longest:
        raise ValueError(
            f"overlong_tokens={profile.overlong_tokens} must be fewer than"
            f" max_response_tokens={longest}."
        )
