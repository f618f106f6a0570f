"""Owns models: load, put LoRA on, save, merge and export."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import REPO, replace_folder, shipped
from kr1_utils.hub import SMOLLM2, locate_smollm2
from kr1_utils.profiles import Profile

try:
    import torch
    from huggingface_hub.utils import enable_progress_bars
    from peft import LoraConfig, PeftModel
    from torch.distributed.fsdp import FSDPModule
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
except ImportError:
    torch = enable_progress_bars = LoraConfig = PeftModel = missing("train")
    FSDPModule = AutoModelForCausalLM = AutoTokenizer = BitsAndBytesConfig = torch

TINY_LM = "data/tiny-lm"  # in the repository


def locate(model: str) -> str:
    """The folder or hub id to load `model` from.

    Relative folders start at the repository. SmolLM2 is also found where no hub answers
    (see `hub`).

    Raises:
        FileNotFoundError: for the shipped model, where the repository is not here.
    """
    if (REPO / model).is_dir():
        return str(REPO / model)
    if model == TINY_LM:
        return str(shipped(TINY_LM))
    return locate_smollm2() if model == SMOLLM2 else model


def load(model: str, adapter: str | os.PathLike | None = None, four_bit: bool = False):
    """A causal language model and its tokenizer, with a trained adapter if named.

    Args:
        model: a folder (relative ones start at the repository), or a hub id.
        adapter: a folder written by `save_adapter`.
        four_bit: pack the weights as NF4 (QLoRA; Dettmers et al., 2023,
            https://arxiv.org/abs/2305.14314).

    Returns:
        (model in evaluation mode on the first GPU or the CPU, tokenizer).

    Raises:
        FileNotFoundError: if it is neither a folder nor a hub id, or the hub cannot be
            reached.
        ValueError: for 4 bits without CUDA.
    """
    if four_bit and not torch.cuda.is_available():
        raise ValueError(
            "4-bit weights need CUDA: take a profile without four_bit on this machine."
        )
    if adapter and not (Path(adapter) / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"No trained adapter in {adapter}: run 03_train_grpo first."
        )
    name = locate(model)
    # Downloads show progress, also where transformers' bars were turned off.
    enable_progress_bars()
    try:
        tokenizer = load_tokenizer(name)
        network = _load_network(name, four_bit)
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        raise FileNotFoundError(
            f"Model {model!r} is neither a folder with a model nor to be had from the"
            f" hub ({str(error).splitlines()[0]})"
        ) from None
    if adapter:
        network = PeftModel.from_pretrained(network, str(adapter))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(device).eval(), tokenizer


def load_tokenizer(name: str):
    """A tokenizer that gives back what was written, and can pad."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    tokenizer.clean_up_tokenization_spaces = False  # blanks stay as they are
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_network(name: str, four_bit: bool):
    """The model's weights: bfloat16 on a GPU, else float32."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    packing = None
    if four_bit:
        packing = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    network = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        quantization_config=packing,
        trust_remote_code=False,
        weights_only=True,
    )
    if Path(name).is_dir():
        # PEFT looks there for the vocabulary's size, and notes it in the adapter. An
        # absolute path lets PEFT load the adapter from any folder.
        network.name_or_path = str(Path(name).resolve())
    return network


def lora_config(profile: Profile) -> LoraConfig | None:
    """LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685) on every linear layer
    but the head; None for a profile that trains all weights."""
    if not profile.use_lora:
        return None
    return LoraConfig(
        r=profile.lora_r,
        lora_alpha=profile.lora_alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def merged_weights(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, weight) of the base model with its LoRA adapter added.

    Names are those of the model without PEFT. The base weights are only read:
    `merge_adapter` and `unmerge_adapter` would add to them and subtract again, and in
    bfloat16 what is subtracted is not what was added (huggingface/trl #6688).
    """
    layers = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue  # the adapter's own, or what `modules_to_save` replaced
        weight = parameter.data
        owner, _, kind = name.rpartition(".base_layer.")
        if kind == "weight":
            for adapter in model.active_adapters:
                delta = layers[owner].get_delta_weight(adapter)
                weight = (weight.float() + delta.float()).to(weight.dtype)
        if hasattr(weight, "full_tensor"):  # FSDP 2 has spread it over processes
            weight = weight.full_tensor()
        yield _name_without_peft(name), weight


def _name_without_peft(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer", "").replace("modules_to_save.default.", "")


def save_adapter(
    model, tokenizer, folder: str | os.PathLike, weights: dict | None = None
) -> Path:
    """Write adapter (or all weights, if there is none) and tokenizer, whole or not at
    all.

    Args:
        weights: the model's state, where its own is spread over several processes.

    Raises:
        ValueError: if a weight is not finite.
    """
    for name, weight in (weights or model.state_dict()).items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(
                f"{name} holds numbers that are not finite, so nothing is saved."
            )
    folder = Path(folder)
    part = Path(f"{folder}.part")
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
    """Within it, every process holds all of a model that FSDP 2 has spread: a pass then
    waits for no other process."""
    spread = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in spread:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    yield
    for module in spread:
        module.set_reshard_after_forward(True, recurse=False)
        module.reshard()
