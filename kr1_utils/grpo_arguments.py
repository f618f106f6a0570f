"""Owns what a profile may say to TRL: the arguments of GRPOConfig and their types.

TRL takes seconds to import and is no part of the base install, so it is asked only
about arguments that the shipped profiles do not have (see `PLAIN`).
"""

import dataclasses
import difflib
import os
import types
import typing
import warnings
from typing import Any, Literal

from kr1_utils.extras import missing

# What the shipped profiles set, with the values that need no TRL to be checked: TRL
# takes every one of them.
PLAIN = {
    "max_steps": int,
    "learning_rate": float,
    "lr_scheduler_type": Literal["constant_with_warmup"],
    "warmup_steps": int,
    "per_device_train_batch_size": int,
    "gradient_accumulation_steps": int,
    "num_generations": int,
    "temperature": float,
    "report_to": str,
    "beta": float,
    "loss_type": Literal["dapo"],
    "max_grad_norm": float,
    "save_steps": int,
    "bf16": bool,
    "gradient_checkpointing": bool,
    "use_vllm": bool,
    "vllm_mode": Literal["colocate", "server"],
    "vllm_server_host": str,
    "vllm_server_port": int,
    "vllm_gpu_memory_utilization": float,
    "vllm_enable_sleep_mode": bool,
    "vllm_max_model_length": int,
}

# TRL annotates these more loosely than it reads them: it would refuse another word only
# at the first step, when trajectories have been sampled already.
NARROWER = {
    "loss_type": Literal[
        "grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"
    ],
    "importance_sampling_level": Literal["token", "sequence"],
    "scale_rewards": Literal["group", "batch", "none"] | bool,
    "multi_objective_aggregation": Literal["sum_then_normalize", "normalize_then_sum"],
    "vllm_mode": Literal["colocate", "server"],
    "vllm_model_impl": Literal["vllm", "transformers"],
    "vllm_importance_sampling_mode": Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ],
    # A whole number counts steps, and stays whole; a fraction is a share of all steps.
    "save_steps": int | float,
    "warmup_steps": int | float,
}

_AGENT_LOOP = "the agent loop writes the turns itself, and would not read it"
_EVALUATION = "training measures nothing beside its own rewards; 04_evaluate does"
_LOADING = "the model is loaded before TRL sees it; model, adapter and dtype say how"
_LOG = "train_log.csv has one row per step"
_SPREADING = "--num-processes and --accelerate-config FILE spread training"

# What the kit sets itself, and for each the setting to use, or why there is none.
OWNED = {
    "output_dir": "use OUT",
    "seed": "use SEED",
    "data_seed": "use SEED, which also orders the questions",
    "max_completion_length": "use max_response_tokens",
    "reward_weights": "use accuracy_weight and format_weight",
    "remove_unused_columns": "rewards need every column of a question",
    "use_cpu": "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
    "disable_tqdm": "the notebook draws its own progress bar",
    "logging_strategy": _LOG,
    "logging_steps": _LOG,
    # A run that was cut off must go on as if it had not been.
    "resume_from_checkpoint": "a run goes on by itself when it is run again in its OUT",
    "save_only_model": "a run that was cut off goes on with its optimizer",
    "ignore_data_skip": "a run that goes on asks what it has not asked yet",
    "enable_jit_checkpoint": "use save_steps: between them a run could not go on",
    # Without a set of questions for it, an evaluation would end the run.
    "do_eval": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "load_best_model_at_end": _EVALUATION,
    "model_init_kwargs": _LOADING,
    "trust_remote_code": _LOADING,
    "generation_kwargs": _AGENT_LOOP,
    "chat_template_kwargs": _AGENT_LOOP,
    "cache_implementation": _AGENT_LOOP,
    "max_tool_calling_iterations": "use max_turns",
    "use_transformers_continuous_batching": _AGENT_LOOP,
    "transformers_continuous_batching_config": _AGENT_LOOP,
    "use_transformers_paged": _AGENT_LOOP,
    "vllm_structured_outputs_regex": _AGENT_LOOP,
    "local_rank": _SPREADING,
    "fsdp": _SPREADING,
    "fsdp_config": _SPREADING,
    "deepspeed": _SPREADING,
    "parallelism_config": _SPREADING,
    # Whoever is given the folder OUT could read it there.
    "hub_token": "settings are kept in OUT, and a token is secret: use `hf auth login`",
}


def is_known(name: str) -> bool:
    """Whether GRPOConfig has this argument, as far as `names` knows."""
    return name in PLAIN or name in OWNED or name in names()


def names() -> list[str]:
    """All arguments of GRPOConfig; without TRL, those that need none."""
    if trl_is_installed():
        return list(_annotations())
    return [*PLAIN, *OWNED]


def trl_is_installed() -> bool:
    """Whether TRL can be asked. It takes seconds to say so."""
    try:
        _grpo_config_class()
    except ImportError:
        return False
    return True


def close_to(name, *more_names: str) -> str | None:
    """The name that was probably meant, among GRPOConfig's and others."""
    close = difflib.get_close_matches(str(name), [*more_names, *names()], n=1)
    return close[0] if close else None


def checked(name: str, value, label: str):
    """The value of an argument, if TRL takes one of its type.

    Args:
        label: where the argument was found, for the sentence that refuses it.

    Returns:
        the value; a whole number as a decimal one where TRL wants that.

    Raises:
        ValueError: in one sentence, for an unknown argument, one of `OWNED`, or a value
            of the wrong type.
        ImportError: if only TRL could say, and it is not installed.
    """
    if name in OWNED:
        # Without the value, for that may be a token.
        raise ValueError(f"{label} is refused: {OWNED[name]}.")
    if _is_plain(name, value):
        return converted(value, PLAIN[name], label)
    if name not in _annotations():
        meant = close_to(name)
        hint = f": did you mean {meant!r}?" if meant else "."
        raise ValueError(f"{label} is no argument of TRL's GRPOConfig{hint}")
    return converted(value, _annotations()[name], label)


def converted(value, annotation, label: str):
    """The value as the annotation wants it: a whole number becomes a decimal one.

    Raises:
        ValueError: for a value of another type, or a negative whole number.
    """
    if fits(value, annotation):
        if fits(value, int) and value < 0:
            raise ValueError(f"{label}={value!r} must not be negative.")
        return value
    wants_decimal = annotation is float or float in typing.get_args(annotation)
    if wants_decimal and fits(value, int):
        return float(value)
    raise ValueError(f"{label}={value!r} must be {describe(annotation)}.")


def fits(value, annotation) -> bool:
    """Whether a value is of the annotated type, as plain JSON values are."""
    kind = typing.get_origin(annotation) or annotation
    members = typing.get_args(annotation)
    if kind is Any:
        return True
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, member) for member in members)
    if kind is Literal:
        return any(type(value) is type(m) and value == m for m in members)
    # Python counts True and False as whole numbers; a setting does not.
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, kind):
        return False
    if kind is list and members:
        return all(fits(item, members[0]) for item in value)
    if kind is dict and members:
        return all(
            fits(k, members[0]) and fits(v, members[1]) for k, v in value.items()
        )
    return True


def describe(annotation) -> str:
    """An annotation in words, such as "float or None"."""
    kind = typing.get_origin(annotation)
    members = typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in members)
    if kind is Literal:
        return " or ".join(repr(member) for member in members)
    if annotation is type(None):
        return "None"
    if kind is None and isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def check_together(arguments: dict) -> None:
    """Have TRL say whether these arguments go together, if it must be asked.

    GRPOConfig is built as training will build it, but on the CPU and without looking
    for other processes, so that nothing is left behind.

    Raises:
        ValueError: with TRL's own reason, in one sentence.
    """
    if all(_is_plain(name, value) for name, value in arguments.items()):
        return
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # The process that launched this one has asked.
        return
    try:
        with warnings.catch_warnings():
            # They come again when training builds it.
            warnings.simplefilter("ignore")
            _without_a_device()(output_dir="OUT", use_cpu=True, **arguments)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"TRL's GRPOConfig refuses the settings: {reason}") from None


def _is_plain(name: str, value) -> bool:
    """Whether TRL need not be asked about this value."""
    if name not in PLAIN:
        return False
    try:
        converted(value, PLAIN[name], name)
    except ValueError:
        return False
    return True


def _annotations() -> dict[str, Any]:
    """Every argument of GRPOConfig with the type that TRL wants.

    Raises:
        ImportError: without TRL.
    """
    config = _grpo_config_class()
    hints = typing.get_type_hints(config)
    annotations = {}
    for field in dataclasses.fields(config):
        annotations[field.name] = hints[field.name]
        if "choices" in field.metadata:
            annotations[field.name] = Literal[tuple(field.metadata["choices"])]
    return annotations | NARROWER


def _grpo_config_class() -> type:
    try:
        from trl import GRPOConfig
    except ImportError:
        # Says which extra brings it.
        return missing("train")()
    return GRPOConfig


def _without_a_device() -> type:
    """GRPOConfig that looks at no device and joins no other processes."""
    import torch

    class Config(_grpo_config_class()):
        device = torch.device("cpu")
        world_size = 1

    return Config
