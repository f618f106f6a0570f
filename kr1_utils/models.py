"""Owns models: load, put LoRA on, save, merge and export."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.utils import enable_progress_bars
from peft import LoraConfig, PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from kr1_utils.files import REPO, replace_folder
from kr1_utils.hub import SMOLLM2, locate_smollm2
from kr1_utils.profiles import Profile


def locate(model: str) -> str:
    """The folder or hub id to load `model` from; `hub` finds SmolLM2 where no hub
    answers, too."""
    if (REPO / model).is_dir():
        return str(REPO / model)
    return locate_smollm2() if model == SMOLLM2 else model


def load(model: str, adapter: str | os.PathLike | None = None, four_bit: bool = False):
    """A causal language model and its tokenizer, with a trained adapter on top where
    one is given.

    Args:
        model: a folder (relative ones start at the repository), or a hub id.
        adapter: a folder written by `save_adapter`.
        four_bit: pack the weights as NF4 (QLoRA; Dettmers et al., 2023,
            https://arxiv.org/abs/2305.14314).

    Returns:
        (model in evaluation mode on the first GPU or the CPU, tokenizer).

    Raises:
        FileNotFoundError: if it is neither a folder nor a hub id, or the hub can not be
            reached.
        ValueError: for 4 bits without CUDA.
    """
    if four_bit and not torch.cuda.is_available():
        raise ValueError(
            "4-bit weights need CUDA: take a profile without four_bit on this machine."
        )
    name = locate(model)
    # of downloads: who turns those of transformers off turned them off, too
    enable_progress_bars()
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    packing = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
        if four_bit
        else None
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        network = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            quantization_config=packing,
            trust_remote_code=False,
            weights_only=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        raise FileNotFoundError(
            f"Model {model!r} is neither a folder with a model nor to be had from the"
            f" hub ({str(error).splitlines()[0]})"
        ) from None
    if (
        Path(name).is_dir()
    ):  # PEFT looks there for the vocabulary's size, and notes it beside the adapter
        network.name_or_path = os.path.relpath(name)
    tokenizer.clean_up_tokenization_spaces = (
        False  # decoding gives back what was written, blanks included
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if adapter is not None:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"No trained adapter in {adapter}: run 03_train_grpo first."
            )
        network = PeftModel.from_pretrained(network, str(adapter))
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def lora_config(profile: Profile) -> LoraConfig | None:
    """LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685) on every linear layer
    but the head."""
    if not profile.use_lora:
        return None
    return LoraConfig(
        r=profile.lora_r,
        lora_alpha=profile.lora_alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def merged_weights(model: PeftModel):
    """Yield (name, weight) of the base model with its LoRA adapter added, names as
    without PEFT.

    The base weights are read only. `merge_adapter` and `unmerge_adapter` would add to
    them and subtract again, and in bfloat16 what is subtracted is not what was added
    (huggingface/trl #6688)."""
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
        whole = (
            weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        )  # FSDP 2 spreads it
        yield plain.replace("modules_to_save.default.", ""), whole


def save_adapter(
    model, tokenizer, folder: str | os.PathLike, weights: dict | None = None
) -> Path:
    """Write adapter (or all weights, if there is none) and tokenizer, whole or not at
    all; `weights` is the model's state, where its own is spread over several processes.
    A ValueError if a weight is not finite."""
    for name, weight in (weights or model.state_dict()).items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(
                f"{name} holds numbers that are not finite, so nothing is saved."
            )
    folder, part = Path(folder), Path(f"{Path(folder)}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part, state_dict=weights)
    tokenizer.save_pretrained(part)
    replace_folder(folder, part)
    return folder


def export_merged(model, tokenizer, folder: str | os.PathLike) -> Path:
    """Fold the adapter of a `PeftModel`, which is used up, into its weights: a model
    that needs no PEFT."""
    return save_adapter(model.merge_and_unload(), tokenizer, folder)


@contextmanager
def whole_weights(model):
    """Every process holds all of a model that FSDP 2 has spread: passes then wait for
    no other process."""
    parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()
