"""Owns the shipped world's files: its passages and question sets."""

import random
from pathlib import Path

from kr1_utils.files import write_jsonl
from kr1_utils.miniwiki.questions import make_questions
from kr1_utils.miniwiki.world import SHIPPED_SEED, World, make_world

SIZES = {  # questions of each type
    "train": {
        "single": 1000,
        "compositional": 1300,
        "comparison": 700,
        "inference": 400,
        "bridge_comparison": 600,
    },
    "dev": {
        "single": 60,
        "compositional": 90,
        "comparison": 60,
        "inference": 30,
        "bridge_comparison": 60,
    },
    "test": {
        "compositional": 200,
        "comparison": 125,
        "inference": 75,
        "bridge_comparison": 100,
    },
    "test_single": {"single": 200},
}


def split_entities(world: World, shares: dict[str, float]) -> dict[str, set[str]]:
    """Deal every entity to one split, kind by kind, so that no two splits ask about the
    same one."""
    rng = random.Random(f"split-{world.seed}")
    splits: dict[str, set[str]] = {name: set() for name in shares}
    for kind in sorted(set(world.kind.values())):
        titles = sorted(world.of(kind))
        rng.shuffle(titles)
        start = 0.0
        for name, share in shares.items():
            splits[name] |= set(
                titles[
                    round(start * len(titles)) : round((start + share) * len(titles))
                ]
            )
            start += share
    return splits


def write_world(out: Path) -> str:
    """Write passages and question sets into `out`; what was written, in a sentence."""
    out.mkdir(parents=True, exist_ok=True)
    world = make_world(SHIPPED_SEED)
    splits = split_entities(world, {"train": 0.6, "dev": 0.12, "test": 0.28})
    write_jsonl(out / "passages.jsonl", world.passages)
    for i, (name, counts) in enumerate(SIZES.items()):
        questions = make_questions(world, counts, splits[name.split("_")[0]], i, name)
        write_jsonl(out / f"{name}.jsonl", questions)
    count = sum(sum(counts.values()) for counts in SIZES.values())
    return f"{len(world.passages)} passages and {count} questions in {out}"
