"""Owns models: load model and tokenizer, put LoRA on, save, merge and export the adapter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from kr1_utils.profiles import REPO, Profile


def load(model: str, adapter: str | os.PathLike | None = None):
    """A causal language model and its tokenizer, with a trained adapter on top where one is given.

    Args:
        model: a folder (relative ones start at the repository), or a hub id.
        adapter: a folder written by `save_adapter`.

    Returns:
        (model in evaluation mode on the first GPU or the CPU, tokenizer).

    Raises:
        FileNotFoundError: if it is neither a folder nor a hub id, or the hub can not be reached.
    """
    name = str(REPO / model) if (REPO / model).is_dir() else model
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        network = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        raise FileNotFoundError(
            f"Model {model!r} is neither a folder with a model nor to be had from the hub "
            f"({str(error).splitlines()[0]})") from None
    network.name_or_path = model  # PEFT notes it beside the adapter: no path of one machine
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if adapter is not None:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise FileNotFoundError(f"No trained adapter in {adapter}: run 03_train_grpo first.")
        network = PeftModel.from_pretrained(network, str(adapter))
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def lora_config(profile: Profile) -> LoraConfig | None:
    """LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685) on every linear layer but the head."""
    if not profile.use_lora:
        return None
    return LoraConfig(r=profile.lora_r, lora_alpha=profile.lora_alpha, target_modules="all-linear",
                      lora_dropout=0.0, task_type="CAUSAL_LM")


def save_adapter(model, tokenizer, folder: str | os.PathLike) -> Path:
    """Write adapter (or all weights, if there is none) and tokenizer, whole or not at all."""
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def export_merged(model, tokenizer, folder: str | os.PathLike) -> Path:
    """Fold the adapter into a copy of the base weights and write a model that needs no PEFT.

    Args:
        model: a `PeftModel`; it is used up, for merging replaces its layers.
    """
    return save_adapter(model.merge_and_unload(), tokenizer, folder)
