"""Owns the forecast: the GPU memory that a run will need, before anything is rented."""

import functools
import resource

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kr1_utils.engines.transformers import PREFILL
from kr1_utils.files import REPO
from kr1_utils.memory.simulate import (
    ATTENTION,
    GIB,
    PROMPT_TOKENS,
    STATES,
    Step,
    simulate,
)
from kr1_utils.models import locate, lora_config
from kr1_utils.profiles import Profile

GPU_SIZES = (
    8,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
    64,
    80,
    94,
    96,
    141,
    180,
    192,
    288,
)  # GiB, of GPUs one can rent

# CUDA's context and libraries, fragmentation, what vLLM keeps while it sleeps: an
# allowance, not simulated.
OVERHEAD_GIB = 1.5


def peak_gib() -> float:
    """The most that this process has held so far: of the GPU's memory where there is
    one, else of RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def this_gpu() -> int:
    """The size in GiB, as one rents it, of this machine's GPU; 80 where there is
    none."""
    if not torch.cuda.is_available():
        return 80
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    return min(GPU_SIZES, key=lambda size: abs(size - total))


def config_of(model: str):
    """The config of a folder, of a model whose config lies in data/reference/configs,
    or from the hub."""
    shipped = (
        REPO / "data" / "reference" / "configs" / f"{model.rsplit('/', 1)[-1]}.json"
    )
    return AutoConfig.from_pretrained(
        shipped if shipped.exists() else locate(model), trust_remote_code=False
    )


def count_parameters(model: str) -> int:
    """How many weights a model has, given its config (see `config_of`)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(model)).num_parameters()


def step_of(
    profile: Profile, response_tokens: int, zero: int = 0, num_gpus: int = 1
) -> Step:
    """The largest forward and backward pass of a profile whose responses all have this
    length."""
    rows, half = (
        profile.grpo["per_device_train_batch_size"],
        profile.grpo.get("bf16", True),
    )
    if profile.tokens_per_micro_batch:
        rows = min(
            rows,
            max(1, profile.tokens_per_micro_batch // (PROMPT_TOKENS + response_tokens)),
        )
    return Step(
        rows,
        PROMPT_TOKENS + response_tokens,
        padded=rows > 1,
        lora=lora_config(profile),
        four_bit=profile.four_bit,
        zero=zero,
        num_gpus=num_gpus,
        checkpointing=profile.grpo.get("gradient_checkpointing", True),
        dtype=torch.bfloat16 if half else torch.float32,
        autocast=half,
    )


def sampling(
    config, profile: Profile, states: dict, tokens: int, gpu_gib: float
) -> tuple[dict, int]:
    """GiB by label while trajectories of `tokens` are sampled, and the longest that
    could be.

    The training model stays on the GPU. vLLM takes a share of it and must hold its own
    weights and one trajectory; transformers keeps keys and values of a whole batch, and
    computes `PREFILL` tokens of each."""
    parts = {
        k: states.get(k, 0) / GIB for k in ("weights", "packed", "adapter", "optimizer")
    }
    width = (
        getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )
    a_token = (
        2 * config.num_hidden_layers * config.num_key_value_heads * width / GIB
    )  # keys and values
    a_token *= 2 if profile.grpo.get("bf16", True) else 4
    if profile.grpo.get("use_vllm"):
        parts["vLLM"] = profile.grpo["vllm_gpu_memory_utilization"] * gpu_gib
        weights = 2 * count_parameters(profile.model) / GIB
        free = parts["vLLM"] - weights - 1  # a GiB to compute in
        return parts, int(free / a_token) if sum(
            parts.values()
        ) + OVERHEAD_GIB <= gpu_gib else 0
    rows = min(
        64,
        profile.grpo["per_device_train_batch_size"]
        * profile.grpo["gradient_accumulation_steps"],
    )
    parts["prompts"] = (
        rows * PREFILL * 14 * config.intermediate_size / GIB
    )  # seven halves as wide as its MLP
    longest = int((gpu_gib - OVERHEAD_GIB - sum(parts.values())) / a_token / rows)
    return parts | {"KV cache": tokens * a_token * rows}, longest


def forecast(
    profile: Profile,
    response_tokens: int = 0,
    gpu_gib: float = 80,
    num_gpus: int = 1,
    zero: int = 0,
) -> dict:
    """What training and sampling of a profile need on each GPU, in GiB.

    Args:
        response_tokens: of a whole trajectory; 0 is the profile's
            `max_response_tokens`.

    Returns:
        `peak_gib` and `fits` of the larger; `longest_response_tokens` that fits; by
        label, `breakdown` at the peak of training, and `sampling`; `timeline` of
        training: [(phase, {label: bytes})]; `advice`.

    Raises:
        ValueError: for an unknown size of GPU, or a response shorter than one turn or
            too long for the model.
    """
    tokens = response_tokens or profile.limits.max_response_tokens
    config = config_of(profile.model)
    window = config.max_position_embeddings - PROMPT_TOKENS
    if gpu_gib not in GPU_SIZES:
        raise ValueError(
            f"Unknown GPU size {gpu_gib} GiB: choose one of"
            f" {', '.join(map(str, GPU_SIZES))}."
        )
    if not profile.limits.max_turn_tokens <= tokens <= window:
        raise ValueError(
            f"A response of {tokens} tokens must hold one turn of max_turn_tokens="
            f"{profile.limits.max_turn_tokens}, and fit the model: at most {window}."
        )
    if zero not in (0, 2, 3) or num_gpus < 1:
        raise ValueError(
            f"ZeRO's stage is 0, 2 or 3, not {zero}, on at least one GPU, not"
            f" {num_gpus}."
        )
    lived = functools.cache(
        lambda length: simulate(config, step_of(profile, length, zero, num_gpus))
    )
    live = lived(tokens)
    sampled, longest_sampled = sampling(
        config, profile, live.at_peak, PROMPT_TOKENS + tokens, gpu_gib
    )
    longest = min(
        longest_sampled - PROMPT_TOKENS,
        longest_that_fits(
            lambda length: lived(length).peak,
            tokens,
            (gpu_gib - OVERHEAD_GIB) * GIB,
            window,
        ),
    )
    sampled["overhead"], total = OVERHEAD_GIB, live.peak / GIB + OVERHEAD_GIB
    states = sum(live.at_peak.get(k, 0) for k in STATES) / GIB
    if longest >= tokens:
        advice = "It fits."
    elif states + OVERHEAD_GIB > gpu_gib:
        advice = (
            f"Weights and what trains them take {states:.1f} GiB: use LoRA, 4 bits, or"
            " more GPUs."
        )
    elif longest_sampled < tokens and "vLLM" in sampled:
        advice = (
            "Sampling does not fit: change vllm_gpu_memory_utilization, or take a"
            " larger GPU."
        )
    elif longest >= profile.limits.max_turn_tokens:
        advice = f"It does not fit: lower max_response_tokens to {longest}."
    else:
        advice = (
            "It does not fit: turn on gradient_checkpointing, and lower"
            " per_device_train_batch_size."
        )
    return {
        "profile": profile.name,
        "response_tokens": tokens,
        "rows": step_of(profile, tokens).rows,
        "gpu_gib": gpu_gib,
        "attention": ATTENTION,
        "fits": longest >= tokens,
        "advice": advice,
        "longest_response_tokens": max(0, longest),
        "peak_gib": max(total, sum(sampled.values())),
        "breakdown": {k: v / GIB for k, v in live.at_peak.items()}
        | {"overhead": OVERHEAD_GIB},
        "sampling": sampled,
        "timeline": live.timeline,
    }


def longest_that_fits(peak, tokens: int, room: float, window: int) -> int:
    """The longest response whose step fits: interpolated from two lengths, checked at a
    third. A mask grows with the square; then the line lies above, what it says is too
    short, and it is drawn again there."""
    short = (
        tokens
        if peak(tokens) <= room and 2 * tokens <= window
        else max(1, tokens // 16)
    )
    if peak(short) > room:
        return 0
    long = min(2 * tokens, window) if short == tokens else tokens
    while True:
        slope = (peak(long) - peak(short)) / (long - short)
        guess = (
            int(min(window, short + (room - peak(short)) / slope))
            if slope > 0
            else window
        )
        if peak(guess) > room:
            long = guess
        elif peak(long) <= room or guess <= 1.01 * short:
            return guess
        else:
            short = guess


def show(result: dict) -> str:
    """A forecast as text."""
    training, sampled = (
        f"{sum(parts.values()):.1f} GiB = "
        + " + ".join(f"{k} {v:.1f}" for k, v in parts.items() if v > 0.05)
        for parts in (result["breakdown"], result["sampling"])
    )
    return (
        "{profile}, simulated: responses of {response_tokens} tokens, {rows} in a pass,"
        " attention {attention}, {gpu_gib} GiB a GPU\n  training: {0}\n  sampling:"
        " {1}\n  {advice} Longest response that fits: {longest_response_tokens} tokens."
    ).format(training, sampled, **result)
