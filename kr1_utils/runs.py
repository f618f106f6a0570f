"""Owns what a run's folder tells: its profile, its data and its trained weights."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from kr1_utils.files import (
    data_folder,
    display_path,
    expand_home,
    in_repository,
    shipped,
)
from kr1_utils.profiles import PROFILES, Profile, resolve

# The run that comes with the repository.
SHIPPED_RUN = "data/reference/tiny/seed42"
SHIPPED_PROFILE = "tiny"


@dataclass(frozen=True)
class Run:
    """A training that has ended.

    Attributes:
        folder: its outputs.
        profile: its settings.
        data: the folder of its passages and questions; "" is the profile's own.
        checkpoint: the folder of the trained adapter, or of the model where all weights
            were trained.
    """

    folder: Path
    profile: Profile
    data: str
    checkpoint: Path

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter was trained, not all weights."""
        return (self.checkpoint / "adapter_config.json").is_file()


def locate_run(folder: str | os.PathLike) -> Path:
    """The folder of a run in which something was trained.

    Args:
        folder: relative to the current folder or the repository.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing was trained in it.
    """
    named = expand_home(folder, "The folder of a run")
    place = Path(named) if Path(named).is_dir() else in_repository(named)
    if not place.is_dir():
        raise FileNotFoundError(f"No folder {named}: name the folder of a run.")
    weights = ("adapter_config.json", "config.json")
    if not any((place / "checkpoint" / name).is_file() for name in weights):
        raise FileNotFoundError(
            f"{display_path(place)} holds no trained agent (no checkpoint/): run"
            " 03_train_grpo with this folder as OUT first."
        )
    return place


def read_run(folder: str | os.PathLike, profile: str = "") -> Run:
    """The run in `folder`.

    Args:
        folder: see `locate_run`.
        profile: name of its profile, for a folder that does not say; "" takes what it
            says.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing was trained in it.
        ValueError: if it does not say its profile, or says one that is unknown.
    """
    folder = locate_run(folder)
    told = _parameters(folder)
    name = profile or told.get("PROFILE") or _profile_of_summary(folder)
    if not name:
        raise ValueError(
            f"{display_path(folder)} does not say the profile it was trained with: name"
            f" it with --profile, one of {', '.join(PROFILES)}."
        )
    # What was set is of the profile that the run had.
    overrides = told.get("OVERRIDES") if name == told.get("PROFILE") else None
    resolved = resolve(name, overrides)
    return Run(folder, resolved, told.get("DATA") or "", folder / "checkpoint")


def find_run(profile: str = "") -> Run:
    """The run of a profile in data/runs; of `tiny`, until there is one, the shipped
    one.

    Args:
        profile: its name; "" is `tiny`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for an unknown profile.
    """
    name = resolve(profile or SHIPPED_PROFILE).name
    folder = data_folder() / "runs" / name
    if (folder / "checkpoint").is_dir():
        return read_run(folder, profile)
    if name == SHIPPED_PROFILE:
        return read_run(shipped(SHIPPED_RUN), name)
    raise FileNotFoundError(
        f"{display_path(folder)} holds no trained agent: kr1 run --profile {name} makes"
        " one; or name the folder of a run, a model or an adapter."
    )


def _parameters(folder: Path) -> dict:
    """What the training notebook was run with; {} where it was run by hand."""
    try:
        executed = json.loads((folder / "03.ipynb").read_text("utf-8"))
        return dict(executed["metadata"]["papermill"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _profile_of_summary(folder: Path) -> str:
    """The profile that the evaluation noted; "" if there was none."""
    try:
        return json.loads((folder / "summary.json").read_text("utf-8"))["profile"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
