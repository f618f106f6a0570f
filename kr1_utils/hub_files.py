"""Owns files of the hub: their sizes and licences, and fetching them, with resume.

They lie in the hub's own cache, where other programs find them too; HF_HOME moves it.
`hf_hub_download` removes what a broken-off download has brought
(huggingface/huggingface_hub #4228). Here it stays, and the next call goes on from
there.
"""

import errno
import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from kr1_utils.extras import missing
from kr1_utils.files import fsync, in_repository
from kr1_utils.rows import SUFFIXES, is_hub_file

try:
    import httpx
    from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # What a request ends with that does not end well.
    FAILED = (httpx.HTTPError, OSError)
except ImportError:
    HfApi = hf_hub_download = hf_hub_url = missing("train")
    http_get = build_hf_headers = missing("train")
    HfHubHTTPError = OfflineModeIsEnabled = RepositoryNotFoundError = FAILED = OSError
    constants = None

# A model that is also found where no hub answers, see hub.py.
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Seconds that the hub has to answer.
PATIENCE = 20

# What a disk says that takes no more: it is full, or its quota or a file's limit is.
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What transformers and vLLM read of a model: files at the top of its repository.
_OF_A_MODEL = (".json", ".txt", ".jinja", ".model")

# Endings of weights; the first that a model has is read.
_WEIGHTS = (".safetensors", ".bin")

_WHAT = {"dataset": "data set", "model": "model"}


@dataclass(frozen=True)
class HubFile:
    """A file as the hub has it now.

    Attributes:
        repository: `owner/name`.
        kind: of the repository: "dataset" or "model".
        name: of the file, with its folder.
        commit: of the repository.
        size: in bytes.
        digest: SHA-256 of a large file, git's hash of a small one. The cache calls the
            file so.
        licence: of the repository, as its card has it; "" if that says nothing.
    """

    repository: str
    kind: str
    name: str
    commit: str
    size: int
    digest: str
    licence: str


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file, here or on the hub."""
    return name.lower().endswith(".gguf")


def is_model_of_hub(model: str) -> bool:
    """Whether a profile's model is one of the hub, and not a folder or file here.

    SmolLM2 does not count: it has a way of its own.
    """
    here = any(place.exists() for place in (in_repository(model), Path(model)))
    if here or model == SMOLLM2:
        return False
    if is_gguf(model):
        return is_hub_file(model)
    return _MODEL_ID.fullmatch(model) is not None


# --- what is here already ---


def cached(name: str, kind: str = "dataset") -> Path | None:
    """A file in the cache; None if it is not there. The hub is not asked.

    Args:
        name: `owner/name:FILE`, see `find`.
        kind: of the repository, "dataset" or "model".
    """
    repository, _, wanted = name.partition(":")
    snapshot = _snapshot(repository, kind)
    if snapshot is None:
        return None
    files = (file for file in snapshot.rglob("*") if file.is_file())
    names = _matching((str(file.relative_to(snapshot)) for file in files), wanted)
    return snapshot / names[0] if len(names) == 1 else None


def model_is_cached(repository: str) -> bool:
    """Whether a model's config and all its weights are in the cache."""
    snapshot = _snapshot(repository, "model")
    if snapshot is None or not (snapshot / "config.json").is_file():
        return False
    names = {file.name for file in snapshot.iterdir() if file.is_file()}
    return any(_all_parts(names, ending) for ending in _WEIGHTS)


def _all_parts(names: set[str], ending: str) -> bool:
    """Whether the weights are among these files: in one, or in parts such as
    model-00001-of-00004.safetensors."""
    weights = {name for name in names if name.endswith(ending)}
    parts = sorted(name for name in weights if "-of-" in name)
    if not parts:
        return bool(weights)
    count = parts[0].rpartition("-of-")[2].removesuffix(ending)
    return len(parts) == int(count)


def cache_folder() -> Path:
    """Where fetched files lie.

    Raises:
        ImportError: without the extra [train].
    """
    if constants is None:
        missing("train")()
    return Path(constants.HF_HUB_CACHE)


def _repository_folder(repository: str, kind: str) -> Path:
    """Where the cache keeps a repository."""
    return cache_folder() / f"{kind}s--{repository.replace('/', '--')}"


def _snapshot(repository: str, kind: str) -> Path | None:
    """The folder of the commit that was fetched last; None if there is none."""
    folder = _repository_folder(repository, kind)
    reference = folder / "refs" / constants.DEFAULT_REVISION
    if not reference.is_file():
        return None
    return folder / "snapshots" / reference.read_text().strip()


# --- what the hub has ---


def find(name: str) -> HubFile:
    """A data set's file, as the hub has it.

    Args:
        name: `owner/name:FILE`. FILE may also be a split, such as "train", if one file
            is named after it: `train.jsonl` or `data/train-00000-of-00001.parquet`.

    Raises:
        ConnectionError: if the hub does not answer.
        FileNotFoundError: if the hub has no such data set, or no such file.
    """
    repository, _, wanted = name.partition(":")
    files = {file.name: file for file in _files(repository, "dataset")}
    names = _matching(files, wanted)
    if len(names) == 1:
        return files[names[0]]
    found = f"{len(names)} files" if names else "no file"
    raise FileNotFoundError(
        f"The data set {repository} has {found} for {wanted!r}: name one of"
        f" {', '.join(names or files) or 'none'}, as in {repository}:FILE."
    )


def model_files(repository: str) -> list[HubFile]:
    """The files of a model that transformers and vLLM read.

    Raises:
        ConnectionError: if the hub does not answer.
        FileNotFoundError: if the hub has no such model.
    """
    files = [file for file in _files(repository, "model") if "/" not in file.name]
    weights: list[HubFile] = []
    for ending in _WEIGHTS:
        weights = weights or [file for file in files if file.name.endswith(ending)]
    return [file for file in files if file.name.endswith(_OF_A_MODEL)] + weights


def model_file(name: str) -> HubFile:
    """One file of a model, named as `owner/name:FILE`.

    Raises:
        ConnectionError: if the hub does not answer.
        FileNotFoundError: if the hub has no such model or file.
    """
    repository, _, wanted = name.partition(":")
    for file in _files(repository, "model"):
        if file.name == wanted:
            return file
    raise FileNotFoundError(f"The model {repository} has no file {wanted!r}.")


def _files(repository: str, kind: str) -> list[HubFile]:
    """All files of a repository."""
    info = _ask(repository, kind)
    licence = (info.card_data.get("license") if info.card_data else "") or ""
    if isinstance(licence, list):
        licence = ", ".join(licence)
    if licence == "other":
        licence = info.card_data.get("license_name") or licence
    return [
        HubFile(
            repository=repository,
            kind=kind,
            name=file.rfilename,
            commit=info.sha,
            size=file.size or 0,
            digest=file.lfs.sha256 if file.lfs else file.blob_id,
            licence=licence,
        )
        for file in info.siblings or []
    ]


def _ask(repository: str, kind: str):
    """What the hub says of a repository."""
    try:
        return HfApi().repo_info(
            repository, repo_type=kind, files_metadata=True, timeout=PATIENCE
        )
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"The hub ({constants.ENDPOINT}) has no {_WHAT[kind]} {repository}, or"
            " shows it only to those who have logged in (`hf auth login`)."
        ) from None
    except FAILED as error:
        raise _no_answer(f"{_WHAT[kind]} {repository}", error) from None


def _matching(names: Iterable[str], wanted: str) -> list[str]:
    """The file of this name; if there is none, those named after this split."""
    names = sorted(names)
    if wanted in names:
        return [wanted]
    pattern = re.compile(
        rf"(.*/)?{re.escape(wanted)}(-\d+-of-\d+)?(?P<suffix>\.[a-z.]+)"
    )
    matches = [(name, pattern.fullmatch(name)) for name in names]
    return [name for name, match in matches if match and match["suffix"] in SUFFIXES]


# --- fetching ---


def locate(name: str) -> Path:
    """A data set's file: in the cache, or fetched now.

    Raises:
        OSError: if it cannot be fetched; the next call goes on from there.
    """
    here = cached(name)
    if here is not None:
        return here
    file = find(name)
    require_room([(cache_folder(), bytes_to_come(file))])
    return fetch(file)


def fetch(file: HubFile) -> Path:
    """The path of a file in the cache, where it is brought unless it is there.

    What comes is compared with the digest that the hub has announced.

    Raises:
        ConnectionError: if the hub does not answer, or breaks off.
        OSError: if the disk is full, or the file is not what the hub has announced.
    """
    blob = _blob(file)
    if not blob.is_file():
        _bring(file, blob)
    try:
        # It finds the blob, and gives it its name.
        path = hf_hub_download(file.repository, file.name, repo_type=file.kind)
    except FAILED as error:
        if getattr(error, "errno", None):
            raise _cannot_be_written(error) from None
        raise _no_answer(f"{file.repository}, {file.name}", error) from None
    return Path(path)


def bytes_to_come(file: HubFile) -> int:
    """How much of a file is not here yet."""
    if _blob(file).is_file():
        return 0
    return file.size - _size(_part(file))


def shown_size(size: float) -> str:
    """Bytes for a reader: "5.1 GB", "20 kB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def require_room(needs: list[tuple[Path, float]]) -> None:
    """Refuse what the disks cannot hold, before anything is fetched.

    Args:
        needs: folders, which need not exist yet, and the bytes that each takes.

    Raises:
        OSError: naming the first disk that is too small.
    """
    by_disk: dict[int, tuple[Path, float]] = {}
    for folder, size in needs:
        existing = _first_that_exists(folder)
        disk = existing.stat().st_dev
        place, before = by_disk.get(disk, (existing, 0.0))
        by_disk[disk] = (place, before + size)
    for place, size in by_disk.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise OSError(
                f"This takes {shown_size(size)} on the disk of {place}, which has"
                f" {shown_size(free)} free: make room, or move the hub's cache"
                " (HF_HOME) or OUT to another disk."
            )


def _first_that_exists(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _blob(file: HubFile) -> Path:
    """Where the cache keeps the contents of a file."""
    return _repository_folder(file.repository, file.kind) / "blobs" / file.digest


def _part(file: HubFile) -> Path:
    """Where a file grows while it is fetched; a changed file has another digest."""
    label = file.name.replace("/", "--")
    return _blob(file).with_name(f"{label}.{file.digest}.part")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _bring(file: HubFile, blob: Path) -> None:
    """Fetch the contents of a file, from where an earlier call broke off."""
    part = _part(file)
    folder = _repository_folder(file.repository, file.kind)
    locks = cache_folder() / ".locks" / folder.name
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{file.digest}.kr1.lock").acquire()
    except OSError as error:
        raise _cannot_be_written(error) from None
    with lock:
        # Another process may have been faster.
        if not blob.is_file():
            _drop_parts_of_other_contents(file, part)
            _fill(file, part)
            _check(file, part)
            fsync(part)
            part.replace(blob)


def _drop_parts_of_other_contents(file: HubFile, part: Path) -> None:
    """Remove what was fetched of a file that has changed on the hub since then."""
    label = file.name.replace("/", "--")
    digests = re.compile(rf"{re.escape(label)}\.[0-9a-f]+\.part")
    for other in part.parent.glob("*.part"):
        if other != part and digests.fullmatch(other.name):
            print(
                f"{file.repository}, {file.name}: it has changed on the hub since its"
                f" download broke off, so those {shown_size(_size(other))} are of no"
                " use, and it begins anew.",
                flush=True,
            )
            other.unlink()


def _fill(file: HubFile, part: Path) -> None:
    """Append to `part` what it lacks."""
    url = hf_hub_url(
        file.repository, file.name, repo_type=file.kind, revision=file.commit
    )
    try:
        with part.open("ab") as out:
            http_get(
                url,
                out,
                resume_size=_size(part),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
    except FAILED as error:
        have = f"{shown_size(_size(part))} of {shown_size(file.size)}"
        if getattr(error, "errno", None) in _DISK_IS_FULL:
            raise OSError(
                f"{file.repository}, {file.name}: the disk takes no more after {have}"
                f" ({error.strerror}): make room in {cache_folder()}; the same command"
                " goes on from there."
            ) from None
        if _is_missing(error):
            raise FileNotFoundError(
                f"{file.repository}, {file.name}: it is gone from the hub since it was"
                " listed: the same command looks again."
            ) from None
        raise ConnectionError(
            f"{file.repository}, {file.name}: the download broke off after {have}"
            f" ({_reason(error)}): the same command goes on from there."
        ) from None


def _check(file: HubFile, part: Path) -> None:
    """Remove what is not what the hub has announced."""
    found = _digest(part, file.digest)
    if found != file.digest:
        part.unlink()
        raise OSError(
            f"{file.repository}, {file.name}: what came has the hash {found[:12]}…, the"
            f" hub announced {file.digest[:12]}…: it was changed on the way and is"
            " removed; the same command fetches it again."
        )


def _digest(file: Path, like: str) -> str:
    """SHA-256 of a file or, where `like` is as short as git's, git's hash of it."""
    with file.open("rb") as data:
        if len(like) == 64:
            return hashlib.file_digest(data, "sha256").hexdigest()
        content = data.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _cannot_be_written(error: OSError) -> OSError:
    return OSError(
        f"The hub's cache in {cache_folder()} cannot be written ({error.strerror}):"
        " make room, or name another folder in HF_HOME."
    )


def _is_missing(error: Exception) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 404


def _no_answer(what: str, error: Exception) -> OSError:
    """The sentence for a hub that cannot be reached, or does not do its work."""
    if isinstance(error, OfflineModeIsEnabled):
        hint = "HF_HUB_OFFLINE forbids to ask it; unset that, or fetch it elsewhere"
    else:
        hint = "check the connection"
    return ConnectionError(
        f"{what}: the hub ({constants.ENDPOINT}) does not answer ({_reason(error)}):"
        f" {hint}. What is here already stays, and the same command goes on."
    )


def _reason(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
