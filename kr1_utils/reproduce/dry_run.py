"""Owns the dry run: what a run would take, said before it."""

import argparse

import torch

from kr1_utils import memory, models
from kr1_utils.corpus import locate_files
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve, table
from kr1_utils.trainer import grpo


def dry_run(args: argparse.Namespace) -> str:
    """What a run would take: all arguments resolved, TRL's, PEFT's and vLLM's
    configurations built, memory, hours and downloads. Nothing is written, fetched or
    loaded.

    The hours are an estimate: sampling and training take 10 operations a weight and
    token (forward while sampling, then forward twice and backward for checkpointing),
    of which a large GPU does 10^14 a second."""
    profile = resolve(args.profile, args.overrides)
    if args.data:
        locate_files(profile, args.data)  # refuses a folder without passages
    config = grpo.grpo_config(
        profile, args.seed, args.out or "OUT", use_cpu=not torch.cuda.is_available()
    )
    lora, size = models.lora_config(profile), memory.count_parameters(profile.model)
    sampled, longest = (
        config.max_steps * config.generation_batch_size,
        profile.limits.max_response_tokens,
    )
    hours = [sampled * tokens * 10 * size / 1e14 / 3600 for tokens in (300, longest)]
    forecast = memory.forecast(profile, gpu_gib=args.gpu_gib or memory.this_gpu())
    local = (REPO / profile.model).is_dir()
    return "\n".join(
        [
            "settings",
            *(
                f"  {name} = {value}"
                for name, value in table(profile)
                if name not in profile.grpo
            ),
            "GRPOConfig",
            *(
                f"  {name} = {getattr(config, name)}"
                for name in (
                    *profile.grpo,
                    "generation_batch_size",
                    "max_completion_length",
                    "reward_weights",
                    "seed",
                )
            ),
            "LoraConfig" if lora else "no LoRA: all weights",
            *(
                f"  {name} = {getattr(lora, name)}"
                for name in ("r", "lora_alpha", "target_modules", "lora_dropout")
                if lora
            ),
            "vLLM, colocated" if config.use_vllm else "no vLLM: transformers samples",
            *(
                f"  {name} = {getattr(config, f'vllm_{name}')}"
                for name in (
                    "gpu_memory_utilization",
                    "max_model_length",
                    "enable_sleep_mode",
                    "tensor_parallel_size",
                    "importance_sampling_correction",
                )
                if config.use_vllm
            ),
            "memory",
            f"  {memory.show(forecast)}",
            (
                f"time, estimated, not measured\n  {config.max_steps} steps of"
                f" {config.generation_batch_size} trajectories: {hours[0]:,.1f} hours"
                f" at the original's 300 tokens each, {hours[1]:,.1f} at"
                " max_response_tokens, on a GPU that does 10^14 operations a second"
            ),
            "downloads",
            (
                f"  {profile.model}:"
                f" {'here already' if local else f'{2 * size / 1e9:.1f} GB'}"
            ),
            (
                "  passages and questions:"
                f" {args.data or profile.corpus or 'yours, in --data'}"
            ),
        ]
    )
