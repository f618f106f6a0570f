"""Owns the shipped world's files: its passages and question sets."""

import random
from pathlib import Path

from kr1_utils.files import write_jsonl
from kr1_utils.miniwiki.known import split_known
from kr1_utils.miniwiki.questions import make_questions
from kr1_utils.miniwiki.world import SHIPPED_SEED, World, make_world

# Question set -> how many questions of each type.
SIZES = {
    "train": {
        "single": 300,
        "known": 230,
        "look_alike": 190,
        "compositional": 550,
        "comparison": 450,
        "inference": 250,
        "bridge_comparison": 330,
    },
    "dev": {
        "single": 60,
        "known": 20,
        "look_alike": 20,
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
    "test_known": {"known": 160, "look_alike": 80},
}

# Split -> its share of the entities. All test sets ask about the same ones.
SHARES = {"train": 0.6, "dev": 0.12, "test": 0.28}

# Split -> its share of common knowledge.
KNOWN_SHARES = {"train": 0.45, "dev": 0.1, "test": 0.45}


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
    known = split_known(KNOWN_SHARES)
    asked: set[str] = set()
    for seed, (name, counts) in enumerate(SIZES.items()):
        split = name.split("_")[0]
        subjects = splits[split] | known[split]
        questions = make_questions(world, counts, subjects, seed, name, asked)
        asked.update(question["question"] for question in questions)
        write_jsonl(out / f"{name}.jsonl", questions)
    total = sum(sum(counts.values()) for counts in SIZES.values())
    return f"{len(world.passages)} passages and {total} questions in {out}"
