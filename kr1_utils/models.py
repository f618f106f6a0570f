"""Owns models: load, put LoRA on, save, merge and export."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kr1_utils import gguf_file
from kr1_utils.extras import missing
from kr1_utils.files import REPO, display_path, expand_home, replace_folder, shipped
from kr1_utils.hub import locate_smollm2
from kr1_utils.hub_files import SMOLLM2, is_gguf
from kr1_utils.profiles import Profile

try:
    import torch
    from huggingface_hub.utils import enable_progress_bars
    from peft import LoraConfig, PeftConfig, PeftModel
    from torch.distributed.fsdp import FSDPModule
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
    )
except ImportError:
    torch = enable_progress_bars = LoraConfig = PeftModel = missing("train")
    PeftConfig = FSDPModule = AutoConfig = AutoModelForCausalLM = torch
    AutoTokenizer = BitsAndBytesConfig = torch

TINY_LM = "data/tiny-lm"  # in the repository

# What weights may be stored as; "" chooses.
DTYPES = ("", "bfloat16", "float32")


def locate(model: str) -> str:
    """The folder, GGUF file or hub id to load `model` from.

    Relative paths start at the repository, or at the current folder. SmolLM2 is also
    found where no hub answers (see `hub`).

    Raises:
        FileNotFoundError: for the shipped model, where the repository is not here, and
            for a GGUF file that is neither here nor on the hub.
        ValueError: if it is not text.
    """
    name = expand_home(model, "model")
    for place in (REPO / name, Path(name)):
        if place.is_dir() or (is_gguf(name) and place.is_file()):
            return str(place.absolute())
    if is_gguf(name):
        return gguf_file.from_hub(name)
    if name == TINY_LM:
        return str(shipped(TINY_LM))
    return locate_smollm2() if name == SMOLLM2 else name


def locate_adapter(adapter: str | os.PathLike) -> str:
    """The folder of an adapter, as an absolute path.

    Relative paths start at the repository, or at the current folder.

    Raises:
        FileNotFoundError: if no adapter lies there.
    """
    name = expand_home(adapter, "adapter")
    for place in (REPO / name, Path(name)):
        if (place / "adapter_config.json").is_file():
            return str(place.absolute())
    raise FileNotFoundError(
        f"No trained adapter in {adapter}: run 03_train_grpo first."
    )


def load(
    model: str,
    adapter: str | os.PathLike | None = None,
    four_bit: bool = False,
    *,
    trainable: bool = False,
    dtype: str = "",
):
    """A causal language model and its tokenizer, with a trained adapter if named.

    Args:
        model: a folder or a GGUF file (relative ones start at the repository), a hub
            id, or `hub-id:FILE.gguf`.
        adapter: a folder written by `save_adapter`.
        four_bit: pack the weights as NF4 (QLoRA; Dettmers et al., 2023,
            https://arxiv.org/abs/2305.14314).
        trainable: go on training the adapter; else its weights are fixed.
        dtype: of the weights, "bfloat16" or "float32"; if empty, bfloat16 on a GPU and
            float32 on a CPU. An adapter is float32 in any case.

    Returns:
        (model in evaluation mode on the first GPU or the CPU, tokenizer).

    Raises:
        FileNotFoundError: if it is neither a folder, a file nor a hub id, or the hub
            cannot be reached.
        ValueError: for 4 bits without CUDA or of a GGUF file, for a folder that holds
            an adapter and no model, for an adapter of another model, and for a broken
            GGUF file.
    """
    kind = _weights_dtype(dtype)
    if four_bit and not torch.cuda.is_available():
        raise ValueError(
            "4-bit weights need CUDA: take a profile without four_bit on this machine."
        )
    folder = locate_adapter(adapter) if adapter else None
    name = locate(model)
    _refuse_what_is_no_model(name, four_bit)
    # Downloads show progress, also where transformers' bars were turned off.
    enable_progress_bars()
    try:
        tokenizer = load_tokenizer(name)
        network = _load_network(name, four_bit, kind)
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        if is_gguf(name):
            raise
        raise FileNotFoundError(
            f"Model {model!r} is neither a folder with a model nor found on the hub"
            f" ({str(error).splitlines()[0]})"
        ) from None
    if folder:
        network = _put_adapter_on(network, folder, trainable)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(device).eval(), tokenizer


def load_profile(
    profile: Profile,
    adapter: str | os.PathLike | None = None,
    *,
    trainable: bool = False,
):
    """`load` what a profile names.

    Args:
        adapter: a folder, instead of the profile's own.
        trainable: to train it; where a profile trains all weights, they are float32.

    Raises:
        ValueError: as `load` does, and for all weights to be trained where they are
            packed in 4 bits or have an adapter.
    """
    dtype = profile.dtype
    adapter = adapter or profile.adapter or None
    if trainable and not profile.use_lora:
        dtype = "float32"
        if profile.four_bit:
            raise ValueError(
                "four_bit=True with use_lora=False: packed weights cannot be trained,"
                " only an adapter over them."
            )
        if adapter:
            raise ValueError(
                f"adapter={str(adapter)!r} with use_lora=False: to train all weights,"
                " export adapter and model as one (models.export_merged), and name that"
                " folder as model."
            )
    return load(
        profile.model, adapter, profile.four_bit, trainable=trainable, dtype=dtype
    )


def load_tokenizer(name: str):
    """A tokenizer that gives back what was written, and can pad."""
    if is_gguf(name):
        tokenizer = gguf_file.load_tokenizer(name)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    tokenizer.clean_up_tokenization_spaces = False  # blanks stay as they are
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(name: str):
    """The config of what `locate` gave.

    Raises:
        OSError: if there is none.
        ValueError: if it needs code of its own, or a GGUF file cannot be read.
    """
    if is_gguf(name):
        return gguf_file.read_config(name)
    return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _weights_dtype(dtype: str) -> torch.dtype:
    """torch's of a profile's word for it; says so where it would be slow."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES[1:])}.")
    if torch.cuda.is_available():
        return torch.float32 if dtype == "float32" else torch.bfloat16
    if dtype != "bfloat16":
        return torch.float32
    if not _cpu_multiplies_bfloat16():
        print(
            "This CPU has neither avx512_bf16 nor amx: bfloat16 takes half the memory"
            " here, but is slower than float32.",
            flush=True,
        )
    return torch.bfloat16


def _cpu_multiplies_bfloat16() -> bool:
    abilities = torch.cpu.get_capabilities()
    return any(has for name, has in abilities.items() if "bf16" in name)


def _refuse_what_is_no_model(name: str, four_bit: bool) -> None:
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(_adapter_is_no_model(folder))
    if four_bit and is_gguf(name):
        raise ValueError(
            f"four_bit=True with {name}: a GGUF file is unpacked when it is loaded;"
            " take the model's own folder or hub id, or leave out four_bit."
        )


def _adapter_is_no_model(folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    base = config.get("base_model_name_or_path") or "the model it was trained on"
    return (
        f"{display_path(folder)} holds an adapter, not a model: name {base} as model,"
        " and this folder as adapter."
    )


def _load_network(name: str, four_bit: bool, dtype: torch.dtype):
    """The model, with all its weights.

    PEFT looks in the folder of its name for the vocabulary's size, and notes the name
    in an adapter. An absolute path lets PEFT load the adapter from any folder.
    """
    if is_gguf(name):
        network = gguf_file.load_network(name, dtype)
        network.name_or_path = name
        return network
    packing = None
    if four_bit:
        packing = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    network, loaded = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        quantization_config=packing,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
    )
    gguf_file.check_complete(name, loaded)
    if Path(name).is_dir():
        network.name_or_path = str(Path(name).resolve())
    return network


def _put_adapter_on(network, folder: str, trainable: bool) -> PeftModel:
    try:
        with warnings.catch_warnings():
            # PEFT goes on without them, with an adapter that changes nothing.
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(network, folder, is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, UserWarning) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The adapter in {display_path(folder)} does not fit the model"
            f" {network.name_or_path} ({reason})"
        ) from None


# --- what is trained ---


def trained_weights(model) -> dict[str, torch.Tensor]:
    """Name -> weight of what is trained. These are not copies, but stay what they are
    where another library puts rounded ones into their place."""
    return {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def train_in_float32(model, exact: dict[str, torch.Tensor] | None = None) -> None:
    """Make what is trained float32, in place: bfloat16 has 8 bits of precision, and
    rounds away an update that is smaller than a 256th of its weight.

    Weights that are not trained stay as they are. Call it before there is an optimizer.

    Args:
        exact: weights by name as they were (`trained_weights`) before another library
            rounded them; TRL does so to the adapter of a model in 4 bits.
    """
    exact = exact or {}
    for name, parameter in model.named_parameters():
        is_rounded = parameter.dtype in (torch.bfloat16, torch.float16)
        if parameter.requires_grad and is_rounded:
            parameter.data = exact.get(name, parameter.data).float()


def require_trainable(model) -> None:
    """Refuse to train a model in which nothing is trained.

    Raises:
        ValueError: with what to do.
    """
    if not isinstance(model, PeftModel):
        if not trained_weights(model):
            raise ValueError(
                "No weight of this model is trained: each has requires_grad=False."
            )
        return
    # TRL adds a copy of the adapter for its reference, which is not meant here.
    adapters = [f".{name}." for name in model.active_adapters]
    trained = [
        name for name in trained_weights(model) if any(a in name for a in adapters)
    ]
    if not trained:
        raise ValueError(
            "No weight of this model's adapter is trained: load it with trainable=True"
            " to go on training it."
        )


@contextmanager
def head_at_labels_only():
    """While it is entered, TRL's fused head is applied only to the positions that have
    a label, as on a GPU.

    On a CPU TRL would apply it to prompt and padding too, and throw the results away.
    TRL does so for devices that compile anew for each shape.
    """
    # TRL takes seconds to import, and most of what loads a model trains nothing.
    from trl.trainer import utils as trl_utils

    on_gpus = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = on_gpus


# --- LoRA ---


def lora_config(profile: Profile) -> LoraConfig | None:
    """LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685) on every linear layer
    but the head; that of the adapter if the profile goes on with one; None for a
    profile that trains all weights."""
    if not profile.use_lora:
        return None
    if profile.adapter:
        config = PeftConfig.from_pretrained(locate_adapter(profile.adapter))
        config.inference_mode = False
        return config
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
