"""Owns the dry run: what a run would take, said before it."""

from kr1_utils.corpus import named_files
from kr1_utils.extras import missing
from kr1_utils.files import in_repository
from kr1_utils.hub_files import SMOLLM2, shown_size
from kr1_utils.memory.forecast import count_parameters, forecast, show
from kr1_utils.memory.measure import this_gpu
from kr1_utils.models import lora_config
from kr1_utils.profiles import Profile, own_settings, resolve
from kr1_utils.reproduce import downloads
from kr1_utils.reproduce.stages import Request
from kr1_utils.rows import is_hub_file
from kr1_utils.trainer import grpo_config

try:
    import torch
except ImportError:
    torch = missing("train")

# Per weight and token: forward while sampling, then, with checkpointing, forward twice
# and backward, which counts double.
OPERATIONS = 10
OPERATIONS_PER_SECOND = 1e14
# The mean length of a response in the original's training.
ORIGINAL_TOKENS = 300

GRPO_SETTINGS = (
    "generation_batch_size",
    "max_completion_length",
    "reward_weights",
    "seed",
)
LORA_SETTINGS = ("r", "lora_alpha", "target_modules", "lora_dropout")
VLLM_SETTINGS = (
    "gpu_memory_utilization",
    "max_model_length",
    "enable_sleep_mode",
    "tensor_parallel_size",
    "importance_sampling_correction",
)


def dry_run(request: Request, gpu_gib: int | None = None) -> str:
    """What a run would take: settings, memory, hours and downloads.

    All arguments are resolved, and TRL's, PEFT's and vLLM's settings are built as a run
    builds them. Nothing is written, fetched or loaded; the hub is asked for sizes and
    licences. The hours are an estimate.

    Args:
        gpu_gib: the GPU's memory; None is this machine's, or 80 GiB without a GPU.

    Raises:
        ValueError, OSError: for a request that a run would refuse.
    """
    profile = resolve(request.profile, request.overrides)
    if request.data:
        # It refuses a folder without passages.
        named_files(profile, request.data)
    config = grpo_config(
        profile,
        request.seed,
        request.out or "OUT",
        use_cpu=not torch.cuda.is_available(),
    )
    weights = count_parameters(profile.model)
    lines = [
        *_profile_lines(profile),
        *_grpo_lines(profile, config),
        *_lora_lines(profile),
        *_vllm_lines(config),
        "memory",
        f"  {show(forecast(profile, gpu_gib=gpu_gib or this_gpu()))}",
        *_time_lines(profile, config, weights),
        *_download_lines(profile, request.data, weights),
    ]
    return "\n".join(lines)


def _profile_lines(profile: Profile) -> list[str]:
    """The profile's own settings."""
    rows = own_settings(profile).items()
    return ["settings", *(f"  {name} = {value}" for name, value in rows)]


def _grpo_lines(profile: Profile, config) -> list[str]:
    """TRL's settings that the profile sets, and those that follow from them."""
    # Each once, in this order.
    names = dict.fromkeys((*profile.grpo, *GRPO_SETTINGS))
    return ["GRPOConfig", *(f"  {name} = {getattr(config, name)}" for name in names)]


def _lora_lines(profile: Profile) -> list[str]:
    """PEFT's settings."""
    lora = lora_config(profile)
    if lora is None:
        return ["no LoRA: all weights"]
    values = [f"  {name} = {getattr(lora, name)}" for name in LORA_SETTINGS]
    return ["LoraConfig", *values]


def _vllm_lines(config) -> list[str]:
    """vLLM's settings, if it samples."""
    if not config.use_vllm:
        return ["no vLLM: transformers samples"]
    values = [f"  {name} = {getattr(config, f'vllm_{name}')}" for name in VLLM_SETTINGS]
    return ["vLLM, colocated", *values]


def _time_lines(profile: Profile, config, weights: int) -> list[str]:
    """The hours of training on one large GPU, for short and for longest responses."""
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    trajectories = config.max_steps * batch
    hours_per_token = trajectories * OPERATIONS * weights / OPERATIONS_PER_SECOND / 3600
    short = hours_per_token * ORIGINAL_TOKENS
    long = hours_per_token * profile.limits.max_response_tokens
    return [
        "time, estimated, not measured",
        f"  {config.max_steps} steps of {batch} trajectories:"
        f" {short:,.1f} hours at the original's {ORIGINAL_TOKENS} tokens each,"
        f" {long:,.1f} at max_response_tokens, on a GPU that does 10^14 operations a"
        " second",
    ]


def _download_lines(profile: Profile, data: str, weights: int) -> list[str]:
    """What a run would fetch, and what it has."""
    # Weights are published in 16 bits.
    lines = downloads.listing(profile, data, 2.0 * weights)
    if in_repository(profile.model).is_dir():
        lines.append(f"{profile.model}: here already")
    elif profile.model == SMOLLM2:
        lines.append(f"{profile.model}: {shown_size(2.0 * weights)}")
    if data or not is_hub_file(profile.corpus):
        corpus = data or profile.corpus or "yours, in --data"
        lines.append(f"passages and questions: {corpus}")
    return ["downloads", *(f"  {line}" for line in lines)]
