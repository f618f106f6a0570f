"""Owns the forecast: the GPU memory that a run will need, before anything is rented."""

import sys
from collections.abc import Callable

from kr1_utils.engines.layers import Layers, Memory, layers_of
from kr1_utils.engines.transformers import PREFILL
from kr1_utils.extras import missing
from kr1_utils.files import REPO
from kr1_utils.memory.measure import GPU_SIZES
from kr1_utils.memory.simulate import (
    ATTENTION,
    GIB,
    PROMPT_TOKENS,
    STATES,
    LiveBytes,
    Step,
    simulate,
)
from kr1_utils.models import locate, lora_config, read_config
from kr1_utils.profiles import Profile

try:
    import torch
    from transformers import AutoModelForCausalLM
except ImportError:
    torch = missing("train")
    AutoModelForCausalLM = missing("train")

# CUDA's context and libraries, fragmentation, what vLLM keeps while it sleeps: an
# allowance, not simulated.
OVERHEAD_GIB = 1.5

# What vLLM needs beside weights and cache, to compute in: an allowance too.
VLLM_WORK_GIB = 1

# Rows that transformers samples together, see TransformersEngine.
SAMPLED_ROWS = 64

# Of a layer's MLP, in a prompt's pass: seven tensors as wide as it, in 16 bits.
MLP_BYTES_PER_WIDTH = 7 * 2

# Tokens of a row, where the model has no limit.
NO_WINDOW = 2**20

# What was simulated in this process, by the model's config and the step.
_SIMULATED: dict[tuple[str, str], LiveBytes] = {}

# Configs of models that are too large to ship.
CONFIGS = REPO / "data" / "reference" / "configs"


def config_of(model: str):
    """The config of a folder, of a model whose config lies in data/reference/configs,
    or from the hub.

    Raises:
        FileNotFoundError: if none of them has it.
        ValueError: if it has an encoder and a decoder.
    """
    shipped = CONFIGS / f"{model.rsplit('/', 1)[-1]}.json"
    source = str(shipped) if shipped.exists() else locate(model)
    try:
        config = read_config(source)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"No config of the model {model!r}: it is taken from the repository's"
            f" folder data, else from the hub, and neither gave one ({reason})"
        ) from None
    if config.is_encoder_decoder:
        raise ValueError(
            f"{model} ({config.model_type}) has an encoder and a decoder: take a causal"
            " language model."
        )
    return config


def count_parameters(model: str) -> int:
    """How many weights a model has, given its config (see `config_of`)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(model)).num_parameters()


def step_of(
    profile: Profile, response_tokens: int, zero: int = 0, num_gpus: int = 1
) -> Step:
    """The largest forward and backward pass of a profile.

    Args:
        response_tokens: the length of all its responses.
        zero: DeepSpeed's stage.
    """
    tokens = PROMPT_TOKENS + response_tokens
    rows = profile.grpo["per_device_train_batch_size"]
    if profile.tokens_per_micro_batch:
        rows = min(rows, max(1, profile.tokens_per_micro_batch // tokens))
    half = computes_in_bfloat16(profile)
    return Step(
        rows,
        tokens,
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
    """What is on the GPU while trajectories are sampled.

    The training model stays there. vLLM takes a share of the GPU and must hold its own
    weights and one trajectory. transformers keeps the cache of a whole batch, and
    computes `PREFILL` tokens of each prompt at a time, or all of them where a layer
    keeps more than keys and values.

    Args:
        states: bytes by label, as a simulated step has them.
        tokens: of a trajectory, its prompt included.

    Returns:
        GiB by label, and the tokens of the longest trajectory that could be sampled.
    """
    training = {
        label: states.get(label, 0) / GIB
        for label in ("weights", "packed", "adapter", "optimizer")
    }
    if profile.grpo.get("use_vllm"):
        return _sampling_with_vllm(config, profile, training, gpu_gib)
    return _sampling_with_transformers(config, profile, training, tokens, gpu_gib)


def computes_in_bfloat16(profile: Profile) -> bool:
    """As TRL has it: unless told otherwise, or to compute in float16."""
    bf16 = profile.grpo.get("bf16")
    return not profile.grpo.get("fp16") if bf16 is None else bf16


def _sampling_with_vllm(
    config, profile: Profile, training: dict, gpu_gib: float
) -> tuple[dict, int]:
    # 0.3 is TRL's own.
    share = profile.grpo.get("vllm_gpu_memory_utilization", 0.3) * gpu_gib
    parts = training | {"vLLM": share}
    if sum(parts.values()) + OVERHEAD_GIB > gpu_gib:
        return parts, 0
    weights = 2 * count_parameters(profile.model) / GIB
    room = share - weights - VLLM_WORK_GIB
    memory = _layers(config, profile).memory
    return parts, longest_in_cache(memory, room, rows=1)


def _sampling_with_transformers(
    config, profile: Profile, training: dict, tokens: int, gpu_gib: float
) -> tuple[dict, int]:
    batch = (
        profile.grpo["per_device_train_batch_size"]
        * profile.grpo["gradient_accumulation_steps"]
    )
    rows = min(SAMPLED_ROWS, batch)
    layers = _layers(config, profile)
    in_one_pass = PREFILL if layers.only_attention else tokens
    width = _widest_layer(config.get_text_config(decoder=True))
    prompts = rows * in_one_pass * MLP_BYTES_PER_WIDTH * width / GIB
    parts = training | {"prompts": prompts}
    free = gpu_gib - OVERHEAD_GIB - sum(parts.values())
    longest = longest_in_cache(layers.memory, free, rows)
    cache = cache_gib(layers.memory, tokens) * rows
    return parts | {"KV cache": cache}, longest


def _widest_layer(text_config) -> int:
    """Numbers of a token in an MLP: the config's own, else four times the hidden size,
    as in GPT-2."""
    width = getattr(text_config, "intermediate_size", None)
    if isinstance(width, list):
        return max(width)
    return width or 4 * text_config.hidden_size


def _layers(config, profile: Profile) -> Layers:
    """What the layers of the model keep, without its weights."""
    half = computes_in_bfloat16(profile)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.bfloat16 if half else torch.float32,
            # The other kinds look into a mask, or are for bfloat16 alone.
            attn_implementation="eager",
            experts_implementation="batched_mm",
        )
    return layers_of(model.eval())


def cache_gib(memory: tuple[Memory, ...], tokens: int) -> float:
    """GiB that the layers keep of a row of `tokens`."""
    kept = 0
    for layer in memory:
        seen = tokens if layer.window is None else min(tokens, layer.window)
        kept += seen * layer.per_token + layer.state
    return kept / GIB


def longest_in_cache(memory: tuple[Memory, ...], room: float, rows: int) -> int:
    """Tokens of the longest rows whose cache fits into `room` GiB.

    It grows along a line until the smallest window is full, then along a flatter one.
    Where no layer keeps all tokens, every row fits that fits its windows.
    """
    growing = sum(layer.per_token for layer in memory) / GIB
    room -= rows * sum(layer.state for layer in memory) / GIB
    windows = [layer for layer in memory if layer.window is not None]
    for layer in sorted(windows, key=lambda layer: layer.window):
        if room < rows * growing * layer.window:
            break
        room -= rows * layer.per_token * layer.window / GIB
        growing -= layer.per_token / GIB
    if growing > 0:
        return int(room / growing / rows)
    return sys.maxsize if room >= 0 else 0


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
        gpu_gib: one of `GPU_SIZES`.
        zero: DeepSpeed's stage, which divides states among `num_gpus`.

    Returns:
        `peak_gib` and `fits` of the larger; `longest_response_tokens` that fits; by
        label, `breakdown` at the peak of training, and `sampling`; `timeline` of
        training: [(phase, {label: bytes})]; `advice`.

    Raises:
        ValueError: for an unknown size of GPU or stage, or a response shorter than one
            turn or too long for the model.
        FileNotFoundError: if the model's config cannot be found.
    """
    tokens = response_tokens or profile.limits.max_response_tokens
    _check_gpus(gpu_gib, num_gpus, zero)
    config = config_of(profile.model)
    window = _window(config) - PROMPT_TOKENS
    _check_tokens(profile, tokens, window)

    def simulated(length: int) -> LiveBytes:
        return _simulated_once(config, step_of(profile, length, zero, num_gpus))

    training = simulated(tokens)
    states = training.at_peak
    sampled, longest_sampled = sampling(
        config, profile, states, PROMPT_TOKENS + tokens, gpu_gib
    )
    room = (gpu_gib - OVERHEAD_GIB) * GIB
    longest_trained = longest_that_fits(
        lambda length: simulated(length).peak, tokens, room, window
    )
    longest = min(longest_sampled - PROMPT_TOKENS, longest_trained)
    overhead = {"overhead": OVERHEAD_GIB}
    sampled = sampled | overhead
    peak = max(training.peak / GIB + OVERHEAD_GIB, sum(sampled.values()))
    return {
        "profile": profile.name,
        "response_tokens": tokens,
        "rows": step_of(profile, tokens).rows,
        "gpu_gib": gpu_gib,
        "attention": ATTENTION,
        "fits": longest >= tokens,
        "advice": _advice(profile, tokens, longest, longest_sampled, states, gpu_gib),
        "longest_response_tokens": max(0, longest),
        "peak_gib": peak,
        "breakdown": {label: size / GIB for label, size in states.items()} | overhead,
        "sampling": sampled,
        "timeline": training.timeline,
    }


def _simulated_once(config, step: Step) -> LiveBytes:
    """`simulate`, or what it said before of the same model and step: many questions
    about one profile differ only in the GPU."""
    key = (config.to_json_string(use_diff=False), repr(step))
    if key not in _SIMULATED:
        _SIMULATED[key] = simulate(config, step)
    return _SIMULATED[key]


def _window(config) -> int:
    """Tokens that the model takes; Mamba takes any number."""
    text_config = config.get_text_config(decoder=True)
    return getattr(text_config, "max_position_embeddings", None) or NO_WINDOW


def _check_gpus(gpu_gib: float, num_gpus: int, zero: int) -> None:
    if gpu_gib not in GPU_SIZES:
        raise ValueError(
            f"Unknown GPU size {gpu_gib} GiB: choose one of"
            f" {', '.join(map(str, GPU_SIZES))}."
        )
    if zero not in (0, 2, 3) or num_gpus < 1:
        raise ValueError(
            f"ZeRO's stage is 0, 2 or 3, not {zero}, on at least one GPU, not"
            f" {num_gpus}."
        )


def _check_tokens(profile: Profile, tokens: int, window: int) -> None:
    shortest = profile.limits.max_turn_tokens
    if not shortest <= tokens <= window:
        raise ValueError(
            f"A response of {tokens} tokens must hold one turn of"
            f" max_turn_tokens={shortest}, and fit the model: at most {window}."
        )


def _advice(
    profile: Profile,
    tokens: int,
    longest: int,
    longest_sampled: int,
    states: dict,
    gpu_gib: float,
) -> str:
    """One sentence: that it fits, or what to change."""
    states_gib = sum(states.get(label, 0) for label in STATES) / GIB
    if longest >= tokens:
        return "It fits."
    if states_gib + OVERHEAD_GIB > gpu_gib:
        return (
            f"Weights and what trains them take {states_gib:.1f} GiB: use LoRA, 4 bits,"
            " or more GPUs."
        )
    if longest_sampled < tokens and profile.grpo.get("use_vllm"):
        return (
            "Sampling does not fit: change vllm_gpu_memory_utilization, or take a"
            " larger GPU."
        )
    if longest >= profile.limits.max_turn_tokens:
        return f"It does not fit: lower max_response_tokens to {longest}."
    return (
        "It does not fit: turn on gradient_checkpointing, and lower"
        " per_device_train_batch_size."
    )


def longest_that_fits(
    peak: Callable[[int], float], tokens: int, room: float, window: int
) -> int:
    """The longest response whose step fits into `room` bytes.

    A line through the peaks of two lengths says which length that is, and a simulation
    checks it. If a mask grows with the square of the length, the line lies above the
    peaks and its answer is too short; then a new line is drawn from there.

    Args:
        peak: bytes at the peak of a step with responses of this length.
        tokens: a length to start from.
        window: the longest response that the model takes.
    """

    def fits(length: int) -> bool:
        return peak(length) <= room

    if fits(tokens) and 2 * tokens <= window:
        short = tokens
        long = 2 * tokens
    else:
        short = max(1, tokens // 16)
        long = tokens
    if not fits(short):
        return 0
    while True:
        slope = (peak(long) - peak(short)) / (long - short)
        guess = window
        if slope > 0:
            guess = int(min(window, short + (room - peak(short)) / slope))
        if not fits(guess):
            long = guess
        elif fits(long) or guess <= 1.01 * short:
            return guess
        else:
            short = guess


def show(result: dict) -> str:
    """A forecast as text."""
    return (
        f"{result['profile']}, simulated: responses of {result['response_tokens']}"
        f" tokens, {result['rows']} in a pass, attention {result['attention']},"
        f" {result['gpu_gib']} GiB a GPU\n"
        f"  training: {_sum_of(result['breakdown'])}\n"
        f"  sampling: {_sum_of(result['sampling'])}\n"
        f"  {result['advice']} Longest response that fits:"
        f" {result['longest_response_tokens']} tokens."
    )


def _sum_of(parts: dict) -> str:
    """ "5.8 GiB = activations 3.6 + …", without what is too small to show."""
    shown = [f"{label} {size:.1f}" for label, size in parts.items() if size > 0.05]
    return f"{sum(parts.values()):.1f} GiB = {' + '.join(shown)}"
