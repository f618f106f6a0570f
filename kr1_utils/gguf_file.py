"""Owns GGUF, llama.cpp's files: a model and its tokenizer out of one, unpacked.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md says what such a file holds.
"""

import re
import struct
from pathlib import Path

from kr1_utils.extras import missing

try:
    import torch
    from huggingface_hub import hf_hub_download
    from tokenizers import AddedToken, decoders, pre_tokenizers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
    )
    from transformers.integrations.gguf import read_gguf_metadata
except ImportError:
    torch = hf_hub_download = AddedToken = decoders = missing("train")
    AutoConfig = AutoModelForCausalLM = AutoTokenizer = GgufConfig = torch
    pre_tokenizers = read_gguf_metadata = torch


# What readers of a GGUF file raise where it is broken, or of a kind they do not know.
BROKEN_FILE = (
    ValueError,
    LookupError,
    TypeError,
    NotImplementedError,
    OverflowError,
    struct.error,
)

# Of a token, in tokenizer.ggml.token_type: one that steers, such as the end of a turn,
# and one that is never cut.
CONTROL, USER_DEFINED = 3, 4

# Of a tokenizer, and where the file has their ids.
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
}

# The frequencies of rotary positions, as Llama 3.1 and later stretch them.
STRETCHED_POSITIONS = "rope_freqs.weight"

# Of these architectures each tensor of a file is one of the model.
DENSE = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")

# Ways to cut a text before its bytes are merged (tokenizer.ggml.pre) that GPT-2 had.
# transformers cuts so whatever the file says, unless its architecture has its own way.
LIKE_GPT2 = ("default", "gpt-2")
CUT_LIKE_GPT2_BY_TRANSFORMERS = ("llama", "deci", "decilm", "falcon", "stablelm")


def from_hub(name: str) -> str:
    """The path of a file that is named as `hub-id:FILE`, downloaded once.

    Raises:
        FileNotFoundError: if it is not named so, or the hub has no such file.
    """
    repository, colon, file = name.partition(":")
    if not colon:
        raise FileNotFoundError(
            f"No file {name}, neither in the repository nor in the current folder; one"
            " of the hub is named as hub-id:FILE."
        )
    try:
        return hf_hub_download(repository, file)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"Could not get {name!r} from the hub ({str(error).splitlines()[0]})"
        ) from None


def read_config(file: str):
    """The config of the model in a GGUF file.

    Raises:
        ValueError: if the file cannot be read, or transformers would read it wrongly.
    """
    _check(file)
    return _read(file, AutoConfig)


def load_network(file: str, dtype):
    """The model of a GGUF file, unpacked: nothing of it is quantized any more.

    Args:
        dtype: torch's, of the weights.

    Returns:
        The model. Embedding and head are one tensor, or two, as they are in the file.

    Raises:
        ValueError: if the file cannot be read, lacks weights, or transformers would
            read it wrongly.
    """
    network, loaded = _read(
        file,
        AutoModelForCausalLM,
        config=read_config(file),
        dtype=dtype,
        # Else its weights stay packed where there is a kernel for them.
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    check_complete(file, loaded)
    _check_all_was_read(file, network)
    return network


def load_tokenizer(file: str):
    """The tokenizer of a GGUF file, completed by the file's own words.

    Raises:
        ValueError: if the file cannot be read.
    """
    tokenizer = _read(file, AutoTokenizer)
    # For sentences about it.
    tokenizer.name_or_path = str(file)
    _complete(tokenizer, _metadata(file)[0])
    return tokenizer


def check_complete(name: str, loaded: dict) -> None:
    """Refuse a model that lacks weights, which would be random.

    Args:
        loaded: what transformers says of the loading.

    Raises:
        ValueError: with the first names.
    """
    lacking = sorted(loaded["missing_keys"])
    if lacking:
        names = ", ".join(lacking[:3])
        raise ValueError(f"{name} lacks {len(lacking)} weights of the model: {names} …")


def _read(file: str, kind, **arguments):
    """What `kind` of transformers makes of the file."""
    path = Path(file)
    try:
        return kind.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False, **arguments
        )
    except BROKEN_FILE as error:
        raise _cannot_read(file, error) from None


def _metadata(file: str) -> tuple[dict, tuple[str, ...]]:
    """What a file says of itself, and the names of its tensors."""
    try:
        return read_gguf_metadata(file, ("tokenizer.ggml.tokens",))
    except BROKEN_FILE as error:
        raise _cannot_read(file, error) from None


def _cannot_read(file: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{file} cannot be read as a GGUF model ({reason})")


def _check(file: str) -> None:
    """Refuse what transformers would read wrongly without a word."""
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.lower()):
        raise ValueError(
            f"{file} is one of several parts of a model: join them first, with"
            " llama.cpp's llama-gguf-split --merge."
        )
    tensors = _metadata(file)[1]
    if STRETCHED_POSITIONS in tensors:
        raise ValueError(
            f"{file} holds {STRETCHED_POSITIONS}, the stretched positions of Llama 3.1"
            " and later, which transformers does not read from a GGUF file: take the"
            " model's own folder or hub id."
        )


def _check_all_was_read(file: str, network) -> None:
    """Refuse a file that holds more than transformers reads, such as biases that its
    class of model does not have."""
    metadata, tensors = _metadata(file)
    if metadata["general.architecture"] not in DENSE:
        return
    # Each once, even if it is embedding and head.
    read = len(list(network.parameters()))
    if len(tensors) > read:
        raise ValueError(
            f"{file} holds {len(tensors)} tensors, but transformers reads {read} of"
            " them, and the model would say something else: take the model's own"
            " folder or hub id."
        )


def _complete(tokenizer, metadata: dict) -> None:
    """Add what transformers leaves out of a GGUF file's tokenizer.

    These are the tokens that are never cut, which of them begins and ends a text, and
    how a text is cut into words.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    never_cut = [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(never_cut)
    for role, key in ROLES.items():
        index = metadata.get(f"tokenizer.ggml.{key}")
        if index is not None and index < len(tokens):
            setattr(tokenizer, role, tokens[index])
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _cut_into_words(tokenizer, metadata)


def _cut_into_words(tokenizer, metadata: dict) -> None:
    way = metadata.get("tokenizer.ggml.pre", "default")
    if metadata["general.architecture"] not in CUT_LIKE_GPT2_BY_TRANSFORMERS:
        return
    # That of Llama 2 is there, which drops a blank at the beginning.
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    if way == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif way not in LIKE_GPT2:
        print(
            f"{tokenizer.name_or_path} cuts words as {way!r} does, which is not known"
            " here: they are cut as GPT-2 did, and the model may know them less well.",
            flush=True,
        )
