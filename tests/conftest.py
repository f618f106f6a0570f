"""What the tests share: the shipped model, the shipped world, and how Hypothesis works
here."""

import os

# Set before a library that reads them is imported. No test may need the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# Most tests compute little, and threads would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hub_server import running_hub
from hypothesis import HealthCheck, settings
from transformers import AutoTokenizer

from kr1_utils import corpus, miniwiki, models
from kr1_utils.files import REPO
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever import Retriever

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

# With `pytest -n 2` each file is run by one process. The longest come first, for a long
# one that begins last would keep one core waiting.
LONGEST = (
    "test_notebooks.py",
    "test_kill.py",
    "test_accelerate.py",
    "test_several_processes.py",
    "test_busy.py",
    "test_training.py",
    "test_serving.py",
    "test_forecast.py",
    "test_faults.py",
    "test_downloads.py",
    "test_simulate.py",
    "test_browser.py",
    "test_going_on.py",
    "test_run.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files, so that what a module's tests share is made once, in our order."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _threads():
    """Libraries change the number of PyTorch's threads, and leave it changed."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tiny():
    """(model, tokenizer) as shipped."""
    return models.load("data/tiny-lm")


@pytest.fixture(scope="session")
def tokenizer(tiny):
    """The shipped model's tokenizer."""
    return tiny[1]


@pytest.fixture(scope="session")
def chat(tokenizer):
    """The shipped model's chat format."""
    return ChatFormat.from_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """SmolLM2's tokenizer, whose special tokens look like HTML."""
    folder = REPO / "tests" / "data" / "smollm2-tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


@pytest.fixture
def hub():
    """A hub on loopback, in which nothing is yet."""
    with running_hub() as running:
        yield running


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
        for name in ("train", "dev", "test", "test_single", "test_known")
    }
