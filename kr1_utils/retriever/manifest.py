"""Owns what an index says of itself: its settings, its files."""

import json
from pathlib import Path

STEMMER, STOP_WORDS = "english", "en"
BM25 = {"k1": 0.9, "b": 0.4}  # Anserini's defaults
MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict:
    """What the index in `folder` says of itself; a ValueError if it is not one of
    ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} is not a complete index of kr1_utils (no readable {MANIFEST}): "
            "remove it, or choose another folder, and run 01_build_index."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("made_by") != "kr1_utils":
        raise ValueError(
            f"{folder} holds another program's index: choose another folder."
        )
    return manifest
