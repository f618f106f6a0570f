"""Owns the shipped world's files: its passages and question sets."""

import random
from pathlib import Path

from kr1_utils.files import write_jsonl
from kr1_utils.miniwiki.questions import make_questions
from kr1_utils.miniwiki.world import SHIPPED_SEED, World, make_world

# Question set -> how many questions of each type.
SIZES = {
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

# Split -> its share of the entities. "test" and "test_single" ask about the same ones.
SHARES = {"train": 0.6, "dev": 0.12, "test": 0.28}


def split_entities(world: World, shares: dict[str, float]) -> dict[str, set[str]]:
    """Deal every entity to one split, so that no two splits ask about the same one.

    Args:
        world: whose entities.
        shares: split -> its share of each kind; together at most 1.

    Returns:
        split -> titles.
    """
    rng = random.Random(f"split-{world.seed}")
    splits: dict[str, set[str]] = {name: set() for name in shares}
    for kind in sorted(set(world.kind.values())):
        titles = sorted(world.of(kind))
        rng.shuffle(titles)
        start = 0.0
        for name, share in shares.items():
            first = round(start * len(titles))
            end = round((start + share) * len(titles))
            splits[name].update(titles[first:end])
            start += share
    return splits


def write_world(out: Path) -> str:
    """Write passages and question sets into the folder `out`.

    Returns:
        What was written, in a sentence.

    Raises:
        OSError: if the folder cannot be made or a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    world = make_world(SHIPPED_SEED)
    write_jsonl(out / "passages.jsonl", world.passages)
    splits = split_entities(world, SHARES)
    for seed, (name, counts) in enumerate(SIZES.items()):
        subjects = splits["test" if name == "test_single" else name]
        questions = make_questions(world, counts, subjects, seed, prefix=name)
        write_jsonl(out / f"{name}.jsonl", questions)
    total = sum(sum(counts.values()) for counts in SIZES.values())
    return f"{len(world.passages)} passages and {total} questions in {out}"
