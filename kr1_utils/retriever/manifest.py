"""Owns what an index says of itself: its settings and its files."""

import json
from pathlib import Path

from kr1_utils.files import atomic_write

# The names that Snowball and bm25s have for English.
STEMMER = "english"
STOP_WORDS = "en"

# Anserini's defaults.
BM25 = {"k1": 0.9, "b": 0.4}

MANIFEST = "manifest.json"
MADE_BY = "kr1_utils"
FORMAT = 2


def read_manifest(folder: Path) -> dict:
    """Read what the index in `folder` says of itself.

    Raises:
        ValueError: if there is no manifest that can be read, or it is not one of ours.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} is not a complete index of kr1_utils (no readable {MANIFEST}): "
            "remove it, or choose another folder, and run 01_build_index."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("made_by") != MADE_BY:
        raise ValueError(
            f"{folder} holds another program's index: choose another folder."
        )
    return manifest


def check_index(
    folder: Path, stemmer: str, stop_words: str, corpus: str | None = None
) -> dict:
    """Read the manifest of an index that is whole and was built with these settings.

    Args:
        corpus: the `fingerprint` of the passages it must be over; None for any.

    Raises:
        ValueError: if it is not ours, was built with other settings or over other
            passages, or lacks a file or a part of one.
    """
    manifest = read_manifest(folder)
    wanted = {
        "format": FORMAT,
        "stemmer": stemmer,
        "stop_words": stop_words,
        "bm25": BM25,
    }
    if corpus is not None:
        wanted["corpus"] = corpus
    for setting, value in wanted.items():
        if manifest.get(setting) != value:
            raise ValueError(
                f"The index in {folder} was built with {setting}"
                f" {manifest.get(setting)!r}, not {value!r}: build it again."
            )
    for name, size in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(
                f"The index in {folder} is incomplete ({name}): "
                "remove it and run 01_build_index."
            )
    return manifest


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write the manifest into `folder`: the last file of an index, which makes it one.

    Args:
        manifest: what `check_index` and `Retriever` read: `made_by`, `format`,
            `passages` (how many), `stemmer`, `stop_words`, `bm25`, `corpus` (a
            fingerprint), `shards` (one dictionary per shard), and `files` (bytes by
            name).
    """
    text = json.dumps(manifest, indent=1)
    atomic_write(folder / MANIFEST, lambda out: out.write(text.encode()))
