"""What the tests share: the shipped model, the shipped world, and how Hypothesis works
here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the hub
os.environ["MPLBACKEND"] = "Agg"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from kr1_utils import corpus, miniwiki, models
from kr1_utils.files import REPO
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever import Retriever  # noqa: E402

# The same examples on every run; no deadline, for a slow machine is no bug.
settings.register_profile(
    "kr1",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("kr1")


@pytest.fixture(scope="session")
def tiny():
    """(model, tokenizer) as shipped."""
    return models.load("data/tiny-lm")


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return tiny[1]


@pytest.fixture(scope="session")
def chat(tokenizer):
    return ChatFormat.from_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def world():
    """The shipped world, made again."""
    return miniwiki.make_world(miniwiki.SHIPPED_SEED)


@pytest.fixture(scope="session")
def retriever(world):
    """An index over the shipped world, in memory."""
    return Retriever.build(world.passages)


@pytest.fixture(scope="session")
def questions():
    """The shipped question sets by name."""
    return {
        name: corpus.load_questions(REPO / "data" / "miniwiki" / f"{name}.jsonl")
        for name in ("train", "dev", "test", "test_single")
    }
