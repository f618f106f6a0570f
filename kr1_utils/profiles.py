"""Owns the scales of the experiment: one `Profile` says everything that differs between them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SYSTEM_PROMPT = (
    "Answer the question with the help of Wikipedia. In every turn, first reason between <think> and "
    "</think>. Then either search with a short query between <search> and </search>, or, once you have "
    "read enough, give the answer in as few words as possible between <answer> and </answer>. What a "
    "search finds comes back between <context> and </context>. Search for one thing at a time.")
PARAMETERS = ("PROFILE", "SEED", "OUT", "DATA", "OVERRIDES")  # of every notebook


@dataclass(frozen=True)
class Limits:
    """Bounds on one trajectory; all but the first two count tokens."""

    max_turns: int = 5  # then one forced answer turn
    top_k: int = 3  # passages a search
    max_turn_tokens: int = 1024  # sampled in one turn
    max_observation_tokens: int = 1024  # the user message that brings passages back
    max_response_tokens: int = 4096  # the whole trajectory, sampled and retrieved together


@dataclass(frozen=True)
class Profile:
    """One scale: model, data, limits, LoRA, GRPO.

    `grpo` goes to `trl.GRPOConfig` as it is; its keys can be overridden like fields.
    """

    name: str
    model: str  # folder, or a hub id
    corpus: str  # JSONL of passages
    train_questions: str
    test_questions: str
    test_single_questions: str
    system_prompt: str
    limits: Limits
    grpo: dict
    use_lora: bool = True  # False trains all weights
    lora_r: int = 16
    lora_alpha: int = 32
    four_bit: bool = False  # base weights packed as NF4 (bitsandbytes); needs CUDA
    tokens_per_micro_batch: int = 0  # padded, in one forward and backward pass; 0 takes a batch at once
    overlong_tokens: int = 0  # the last so many of max_response_tokens cost reward; 0 is off
    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    eval_questions: int = 0  # of each test set; 0 is all
    bootstrap_samples: int = 2000
    pretrain_worlds: int = 150  # A1: worlds to write conversations from
    pretrain_steps: int = 5600  # A1: updates
    cold_start_steps: int = 60  # A3: supervised updates
    cold_start_batch: int = 4  # A3: conversations an update
    expected: dict = field(default_factory=dict)  # measured: {"minutes", "memory", "machine"}


# What the Qwen2.5 profiles share: your corpus and questions, and the arguments for one GPU.
QWEN = dict(corpus="", train_questions="", test_questions="", test_single_questions="",
            system_prompt=SYSTEM_PROMPT, eval_questions=500)
GPU = dict(
    learning_rate=1e-5, lr_scheduler_type="constant_with_warmup", warmup_steps=20,
    per_device_train_batch_size=64, gradient_accumulation_steps=1, num_generations=8, temperature=1.0,
    beta=0.0, loss_type="dapo", max_grad_norm=0.2, save_steps=20, bf16=True, gradient_checkpointing=True,
    use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.45, vllm_enable_sleep_mode=True,
)

PROFILES = {
    "tiny": Profile(
        name="tiny",
        model="data/tiny-lm",
        corpus="data/miniwiki/passages.jsonl",
        train_questions="data/miniwiki/train.jsonl",
        test_questions="data/miniwiki/test.jsonl",
        test_single_questions="data/miniwiki/test_single.jsonl",
        system_prompt="Search, read, answer.",  # tiny-lm learned the format in pre-training
        limits=Limits(max_turns=5, top_k=2, max_turn_tokens=64, max_observation_tokens=128,
                      max_response_tokens=768),
        grpo=dict(
            max_steps=60, learning_rate=2e-3, lr_scheduler_type="constant_with_warmup",
            warmup_steps=5, per_device_train_batch_size=64, gradient_accumulation_steps=1,
            num_generations=8, temperature=1.0, beta=0.0, loss_type="dapo", max_grad_norm=1.0,
            save_steps=20, bf16=False, gradient_checkpointing=False,
        ),
    ),
    "smol": Profile(
        name="smol",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        corpus="", train_questions="", test_questions="", test_single_questions="",  # yours, in DATA
        system_prompt="Answer the question. Think between <think> and </think>, then search Wikipedia "
                      "between <search> and </search>, or answer between <answer> and </answer>.",
        # A trajectory stays under 400 tokens: a CPU trains on about 100 of them a second.
        limits=Limits(max_turns=2, top_k=2, max_turn_tokens=48, max_observation_tokens=128,
                      max_response_tokens=400),
        tokens_per_micro_batch=2048,
        grpo=dict(
            max_steps=25, learning_rate=1e-4, lr_scheduler_type="constant_with_warmup",
            warmup_steps=3, per_device_train_batch_size=16, gradient_accumulation_steps=1,
            num_generations=8, temperature=1.0, beta=0.0, loss_type="dapo", max_grad_norm=1.0,
            save_steps=5, bf16=False, gradient_checkpointing=False,
        ),
        eval_questions=100,
    ),
    "1.5b": Profile(
        name="1.5b", model="Qwen/Qwen2.5-1.5B-Instruct", **QWEN,
        limits=Limits(max_turns=4, max_response_tokens=4096), tokens_per_micro_batch=9216,
        grpo=dict(GPU, max_steps=1000, vllm_max_model_length=4608),
    ),
    "7b": Profile(
        name="7b", model="Qwen/Qwen2.5-7B-Instruct", **QWEN,
        limits=Limits(max_turns=4, max_response_tokens=8192), tokens_per_micro_batch=8704,
        grpo=dict(GPU, max_steps=640, vllm_max_model_length=8704),
    ),
    # On 24 GiB there is no room for a second copy of the weights: transformers samples from the packed ones.
    "7b-4bit": Profile(
        name="7b-4bit", model="Qwen/Qwen2.5-7B-Instruct", **QWEN, four_bit=True,
        limits=Limits(max_turns=4, max_response_tokens=8192), tokens_per_micro_batch=8704,
        grpo=dict(GPU, max_steps=640, per_device_train_batch_size=32, use_vllm=False),
    ),
}


def resolve(name: str, overrides: dict | None = None) -> Profile:
    """The profile called `name` with `overrides` laid over its fields, its limits and its GRPO arguments.

    Raises:
        ValueError: for an unknown profile, an unknown override or one of the wrong type.
    """
    if name not in PROFILES:
        raise ValueError(f"Unknown profile {name!r}: choose one of {', '.join(PROFILES)}.")
    profile = PROFILES[name]
    if not isinstance(overrides or {}, dict):
        raise ValueError(f"OVERRIDES must be a dict, not {overrides!r}.")
    own = {f.name: getattr(profile, f.name) for f in fields(Profile)
           if f.name not in ("name", "limits", "grpo", "expected")}
    bounds = {f.name: getattr(profile.limits, f.name) for f in fields(Limits)}
    changes: dict[str, dict] = {"own": {}, "limits": {}, "grpo": {}}
    for key, value in (overrides or {}).items():
        for group, known in (("own", own), ("limits", bounds), ("grpo", profile.grpo)):
            if key in known:
                changes[group][key] = _checked(key, value, known[key])
                break
        else:
            known_keys = [*own, *bounds, *profile.grpo]
            close = difflib.get_close_matches(key, known_keys, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known_keys)}."
            raise ValueError(f"Unknown override {key!r}: {hint}")
    limits = replace(profile.limits, **changes["limits"])
    if limits.max_response_tokens < limits.max_turn_tokens:
        raise ValueError(f"max_response_tokens={limits.max_response_tokens} is smaller than one turn of "
                         f"max_turn_tokens={limits.max_turn_tokens}.")
    profile = replace(profile, **changes["own"], limits=limits, grpo={**profile.grpo, **changes["grpo"]})
    if 0 < profile.tokens_per_micro_batch <= limits.max_response_tokens:
        raise ValueError(f"tokens_per_micro_batch={profile.tokens_per_micro_batch} is less than one row: a "
                         f"prompt and max_response_tokens={limits.max_response_tokens}.")
    if profile.overlong_tokens >= limits.max_response_tokens:
        raise ValueError(f"overlong_tokens={profile.overlong_tokens} must be fewer than max_response_tokens="
                         f"{limits.max_response_tokens}.")
    return profile


def _checked(key: str, value, default):
    """The value, if it is of the default's type; whole numbers may stand for decimal ones."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"Override {key}={value!r} must be a {type(default).__name__} "
                         f"like {default!r}.")
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        raise ValueError(f"Override {key}={value!r} must not be negative.")
    return value


def path(value: str) -> Path:
    """A path of a profile: relative ones start at the repository."""
    return Path(value) if Path(value).is_absolute() else REPO / value


def table(profile: Profile) -> list[tuple[str, str]]:
    """(setting, value) rows of a resolved profile, for showing."""
    rows = [(f.name, getattr(profile, f.name)) for f in fields(Profile)
            if f.name not in ("limits", "grpo", "expected")]
    rows += [(f.name, getattr(profile.limits, f.name)) for f in fields(Limits)]
    rows += list(profile.grpo.items())
    return [(k, str(v)) for k, v in rows]
