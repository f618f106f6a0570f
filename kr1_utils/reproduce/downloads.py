"""Owns what a run fetches from the hub: listed, checked for room, brought."""

from dataclasses import dataclass
from pathlib import Path

from kr1_utils import hub_files
from kr1_utils.corpus import named_files
from kr1_utils.hub_files import HubFile, is_gguf, is_model_of_hub
from kr1_utils.profiles import Profile
from kr1_utils.retriever.build import disk_needed
from kr1_utils.retriever.manifest import MANIFEST


@dataclass(frozen=True)
class Need:
    """Something of the hub that a run is made of.

    Attributes:
        what: "model", "passages", "train", "test" or "test_single".
        name: as the profile names it.
    """

    what: str
    name: str

    def is_here(self) -> bool:
        """Whether it is in the hub's cache."""
        if self.what != "model":
            return hub_files.cached(self.name) is not None
        if is_gguf(self.name):
            return hub_files.cached(self.name, "model") is not None
        return hub_files.model_is_cached(self.name)

    def files(self) -> list[HubFile]:
        """What the hub has of it.

        Raises:
            OSError: if the hub does not answer, or has no such thing.
        """
        if self.what != "model":
            return [hub_files.find(self.name)]
        if is_gguf(self.name):
            return [hub_files.model_file(self.name)]
        return hub_files.model_files(self.name)


def needs(profile: Profile, data: str = "") -> list[Need]:
    """All that a run takes from the hub, whether it is here or not.

    SmolLM2 is not among it: it has a way of its own, see `hub`.

    Args:
        data: the user's folder of passages and questions; "" is the profile's own.
    """
    found = []
    if is_model_of_hub(profile.model):
        found.append(Need("model", profile.model))
    for what, file in named_files(profile, data).items():
        if isinstance(file, str):
            found.append(Need(what, file))
    return found


def fetch(profile: Profile, data: str, index: Path) -> None:
    """Bring all that a run needs and is not here, with progress.

    Sizes, licences and free disk come first. What is interrupted goes on with the next
    call.

    Args:
        data: see `needs`.
        index: the folder where the passages will be indexed.

    Raises:
        OSError: in one sentence, if the hub or the disk does not give what it takes.
    """
    missing = [need for need in needs(profile, data) if not need.is_here()]
    if not missing:
        return
    files = {need: need.files() for need in missing}
    _require_room(files, index)
    for need, of_need in files.items():
        print(line(need, of_need), flush=True)
        for file in of_need:
            hub_files.fetch(file)


def _require_room(files: dict[Need, list[HubFile]], index: Path) -> None:
    """Refuse a run whose downloads and index do not fit."""
    to_come = sum(
        hub_files.bytes_to_come(file) for of_need in files.values() for file in of_need
    )
    places = [(hub_files.cache_folder(), float(to_come))]
    if not (index / MANIFEST).is_file():
        places.append((index, _index_size(files)))
    hub_files.require_room(places)


def _index_size(files: dict[Need, list[HubFile]]) -> float:
    """Bytes on disk while the passages are indexed, if they are among the files."""
    return sum(
        disk_needed(file.name, file.size)
        for need, of_need in files.items()
        if need.what == "passages"
        for file in of_need
    )


def line(need: Need, files: list[HubFile]) -> str:
    """One download for a reader: what, how large, under which licence."""
    size = hub_files.shown_size(sum(file.size for file in files))
    licence = files[0].licence if files else ""
    shown = f"licence {licence}" if licence else "no licence declared on the hub"
    return f"{need.name} ({need.what}): {size}, {shown}"


def listing(profile: Profile, data: str, model_bytes: float) -> list[str]:
    """A line per download, for a dry run; nothing is fetched.

    Args:
        data: see `needs`.
        model_bytes: of the model's weights, for where no hub answers.
    """
    lines = []
    sizes: dict[Need, list[HubFile]] = {}
    for need in needs(profile, data):
        if need.is_here():
            lines.append(f"{need.name} ({need.what}): here already")
            continue
        try:
            sizes[need] = need.files()
        except OSError as error:
            known = ""
            if need.what == "model":
                known = f"{hub_files.shown_size(model_bytes)} by its weights; "
            lines.append(f"{need.name} ({need.what}): {known}{error}")
        else:
            lines.append(line(need, sizes[need]))
    if index_size := _index_size(sizes):
        lines.append(
            f"and up to {hub_files.shown_size(index_size)} of disk while the passages"
            " are indexed"
        )
    return lines
