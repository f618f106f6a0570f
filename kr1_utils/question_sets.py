"""Owns public question sets: the test questions of each, fetched by name."""

import filecmp
import shutil
from pathlib import Path

from kr1_utils import hub_files
from kr1_utils.corpus import load_questions
from kr1_utils.files import atomic_write, display_path

# FlashRAG's copies, all in one form. Where the test answers are secret, the questions
# of `dev` are what papers test on.
REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
TEST_SETS = {
    "2wiki": "2wikimultihopqa/dev.jsonl",
    "hotpotqa": "hotpotqa/dev.jsonl",
    "musique": "musique/dev.jsonl",
    "bamboogle": "bamboogle/test.jsonl",
}


def fetch_test_set(name: str, out: Path) -> str:
    """Fetch the test questions of a public data set.

    Args:
        name: one of `TEST_SETS`.
        out: the folder in which test.jsonl is written, as published.

    Returns:
        A sentence on what lies where.

    Raises:
        ValueError: for an unknown name, or a file that does not hold questions.
        FileExistsError: if `out` has other questions already.
        OSError: if it cannot be fetched or written; what has come stays in the hub's
            cache, and the next call goes on from there.
    """
    if name not in TEST_SETS:
        raise ValueError(
            f"Unknown data set {name!r}: choose one of {', '.join(TEST_SETS)}."
        )
    out.mkdir(parents=True, exist_ok=True)
    source = f"{REPOSITORY}:{TEST_SETS[name]}"
    fetched = hub_files.cached(source)
    licence = ""
    if fetched is None:
        file = hub_files.find(source)
        hub_files.require_room(
            [
                (hub_files.cache_folder(), hub_files.bytes_to_come(file)),
                (out, file.size),
            ]
        )
        licence = file.licence
        fetched = hub_files.fetch(file)
    questions = load_questions(fetched)
    test = out / "test.jsonl"
    _copy(fetched, test)
    under = f", licence {licence}" if licence else ""
    return (
        f"{display_path(test)}: {len(questions):,} questions of {REPOSITORY},"
        f" {TEST_SETS[name]}{under}."
    )


def _copy(fetched: Path, test: Path) -> None:
    """Copy whole or not at all, and over nothing else."""
    if test.exists():
        if filecmp.cmp(fetched, test, shallow=False):
            return
        raise FileExistsError(
            f"{display_path(test)} holds other questions already: choose another"
            " folder."
        )
    with fetched.open("rb") as published:
        atomic_write(test, lambda out: shutil.copyfileobj(published, out))
