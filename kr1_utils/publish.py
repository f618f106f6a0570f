"""Owns publishing: a trained agent on the Hugging Face hub, with its model card.

What is uploaded is first made in OUT/hub, where it can be looked at. An adapter goes
there alone if others can load its base model from the hub; else it is merged into it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from kr1_utils.extras import missing
from kr1_utils.files import display_path, in_repository, replace_folder, write_text
from kr1_utils.model_card import Base, goes_alone, model_card
from kr1_utils.runs import Run, locate_run, read_run

try:
    from httpx import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id
except ImportError:
    HfApi = get_token = validate_repo_id = missing("train")
    # `except` takes a tuple of exceptions too, and an empty one catches nothing.
    HTTPError = HFValidationError = ()

# The shipped model, and its licence: the repository's.
SHIPPED_MODEL = "data/tiny-lm"
SHIPPED_LICENCE = "mit"

# What else of a run is uploaded, if it is there.
BESIDE_THE_WEIGHTS = ("summary.json", "train_log.csv")

# Seconds for the hub to tell a licence.
PATIENCE = 10


@dataclass(frozen=True)
class Request:
    """What to publish, and as what.

    Attributes:
        out: the folder of a run.
        to: the model's name on the hub, USER/NAME.
        base: id of the base model on the hub, if it was loaded from a folder; "" is
            what the adapter says.
        licence: its id, such as "apache-2.0"; "" is the base model's.
        private: whether a model that is new there is for its owner alone.
    """

    out: str
    to: str
    base: str = ""
    licence: str = ""
    private: bool = False


def push(request: Request, dry_run: bool = False) -> str:
    """Make OUT/hub, and upload it.

    Args:
        dry_run: do not upload it.

    Returns:
        the files with their sizes, and where they are now.

    Raises:
        FileNotFoundError: if OUT, its evaluation or the base model is not there.
        ValueError: for a bad name, an unknown licence, or scores that contradict each
            other.
        OSError: without a token of the hub, or if the hub refuses or does not answer.
        ImportError: without the extra [train].
    """
    _check_name(request.to)
    folder = locate_run(request.out)
    summary = _read_summary(folder)
    run = read_run(folder)
    if not dry_run:
        _require_token()
    base = _base_of(run, request.base)
    licence = request.licence or _licence_of(base)
    card = model_card(run, summary, request.to, base, licence)
    made = _make_folder(run, base, card)
    if dry_run:
        where = (
            f"Nothing was uploaded. Look at {display_path(made)}; without --dry-run"
            f" it becomes {request.to}."
        )
    else:
        where = f"Uploaded: {_upload(made, request)}"
    return f"{_listing(made)}\n{where}"


# --- before any work ---


def _check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--to {name}: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise ValueError(f"--to {name} must be USER/NAME, such as ada/my-agent.")


def _read_summary(folder: Path) -> dict:
    file = folder / "summary.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{display_path(file)} is not there: run 04_evaluate first, for a model"
            " card tells the scores."
        )
    return json.loads(file.read_text("utf-8"))


def _require_token() -> None:
    if not get_token():
        raise OSError(
            "The hub asks who uploads, and there is no token here: `hf auth login`"
            " keeps one, or set HF_TOKEN."
        )


def _base_of(run: Run, named: str) -> Base:
    """The model that was trained: as it is named, else as the adapter tells it."""
    if named:
        return Base(named)
    told = run.profile.model
    if run.has_adapter:
        told = _adapter_config(run.checkpoint).get("base_model_name_or_path") or told
    place = in_repository(told)
    if place.exists():
        return Base("", str(place))
    is_path = Path(told).is_absolute() or told.lower().endswith(".gguf")
    if is_path and run.has_adapter:
        raise FileNotFoundError(
            f"The base model {told} is not here: name its id on the hub with --base."
        )
    return Base("", told) if is_path else Base(told)


def _adapter_config(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text("utf-8"))


def _licence_of(base: Base) -> str:
    """That of the base model, as the hub tells it."""
    if base.folder == str(in_repository(SHIPPED_MODEL)):
        return SHIPPED_LICENCE
    told = None
    if base.hub_id:
        try:
            told = HfApi().model_info(base.hub_id, timeout=PATIENCE).card_data
        except (HTTPError, OSError):
            # No network, or no such model.
            told = None
    if not told or not told.license:
        raise ValueError(
            f"The licence of {base.name} is not known here: name it with --license, for"
            " example apache-2.0."
        )
    return told.license


# --- what is uploaded ---


def _make_folder(run: Run, base: Base, card: str) -> Path:
    """OUT/hub, whole or not at all."""
    folder = run.folder / "hub"
    part = run.folder / "hub.part"
    shutil.rmtree(part, ignore_errors=True)
    if run.has_adapter and not goes_alone(run, base):
        _merge(run, base, part)
    else:
        # PEFT writes a card of its own, in which everything is still to be filled in.
        shutil.copytree(
            run.checkpoint, part, ignore=shutil.ignore_patterns("README.md")
        )
    if goes_alone(run, base):
        # It may name a folder of this machine.
        config = _adapter_config(part) | {"base_model_name_or_path": base.hub_id}
        write_text(part / "adapter_config.json", json.dumps(config, indent=2))
    for name in BESIDE_THE_WEIGHTS:
        if (run.folder / name).is_file():
            shutil.copy(run.folder / name, part)
    write_text(part / "README.md", card)
    replace_folder(folder, part)
    return folder


def _merge(run: Run, base: Base, folder: Path) -> None:
    """Write the model with its adapter folded in."""
    # torch takes seconds to load, and an adapter that goes alone needs none.
    from kr1_utils import models

    network, tokenizer = models.load(
        base.folder, run.checkpoint.absolute(), dtype=run.profile.dtype
    )
    models.export_merged(network, tokenizer, folder)


def _listing(folder: Path) -> str:
    """Files and their sizes, one per line, and the sum."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    sizes["in all"] = sum(sizes.values())
    width = max(map(len, sizes))
    return "\n".join(
        f"{name:{width}}  {_readable(size):>10}" for name, size in sizes.items()
    )


def _readable(size: float) -> str:
    """Bytes in the unit in which they are at least 1."""
    for unit, digits in (("B", 0), ("kB", 1), ("MB", 1)):
        if size < 1000:
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _upload(folder: Path, request: Request) -> str:
    """Make the model on the hub if it is new, and commit all files at once.

    Returns:
        its address.
    """
    hub = HfApi()
    try:
        # Whether a model that is there already is private, its owner has decided.
        private = request.private or None
        address = hub.create_repo(request.to, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=request.to,
            folder_path=folder,
            commit_message="Upload a trained agent and its model card",
        )
    except (HTTPError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{request.to} cannot be uploaded: {reason}") from None
    return str(address)
