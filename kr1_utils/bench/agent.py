"""Owns the measurement of the agent loop, run in four ways."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kr1_utils import models
from kr1_utils.agent import Trajectory, rollout
from kr1_utils.bench.machine import machine_name
from kr1_utils.bench.trl_tools import trl_tools
from kr1_utils.corpus import load_passages, load_split, locate_files
from kr1_utils.engines.transformers import TransformersEngine
from kr1_utils.engines.vllm import VLLMEngine
from kr1_utils.profiles import Profile, resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever.search import Retriever

# Tokens of vLLM's window, where the model's own is longer.
VLLM_WINDOW = 4096
VLLM_ROWS = 256

# Leads all conversations; returns them, and how many tokens went through the model.
Way = Callable[[], tuple[list[Trajectory], int]]


@dataclass(frozen=True)
class Task:
    """What every way is given: the same model, questions and passages."""

    profile: Profile
    questions: list[dict]
    model: object
    tokenizer: object
    retriever: Retriever

    @property
    def end_of_turn(self) -> int:
        return ChatFormat.from_tokenizer(self.tokenizer).end_of_turn

    def lead(self, engine, questions: list[dict]) -> list[Trajectory]:
        """Conversations about these questions, led together."""
        return rollout(
            engine,
            self.tokenizer,
            self.retriever,
            questions,
            self.profile.limits,
            self.profile.system_prompt,
        )


def measure(arguments) -> pd.DataFrame:
    """The table of `kr1 bench agent`, see `measure_ways`."""
    if arguments.questions < 1:
        raise ValueError(f"--questions must be at least 1, not {arguments.questions}.")
    overrides = {"model": arguments.model} if arguments.model else {}
    profile = resolve(arguments.profile, overrides)
    files = locate_files(profile, arguments.data)
    questions = load_split(files, "test", arguments.questions)
    passages = load_passages(files["passages"])
    return measure_ways(profile, questions, passages, arguments.adapter)


def measure_ways(
    profile: Profile,
    questions: list[dict],
    passages: list[dict],
    adapter: str | None = None,
) -> pd.DataFrame:
    """Questions per second and tokens computed per question, for each way to run the
    loop, greedy.

    Tokens computed are all that go through the model: padding too, and rows that are
    finished while others still write. The floor computes every token of prompt and
    trajectory once.

    Args:
        adapter: a folder with a trained adapter, merged into the model first.

    Returns:
        one row per way: `profile`, `questions`, `way`, `questions_per_second`,
        `tokens_computed_per_question`, `floor_ratio`, `searches_per_question`,
        `machine`. The way "vllm" is there where vLLM is installed.
    """
    task = prepare(profile, questions, passages, adapter)
    ways = {
        "one_by_one": lambda: one_by_one(task),
        "batched": lambda: batched(task),
        "trl_tools": trl_tools(
            task.model, task.tokenizer, task.retriever, questions, profile
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("vllm"):
            ways["vllm"] = with_vllm(task, Path(folder, "model"))
        rows = [
            {
                "profile": profile.name,
                "questions": len(questions),
                "way": name,
                **measure_way(way, len(questions)),
            }
            for name, way in ways.items()
        ]
    return pd.DataFrame(rows).assign(machine=machine_name())


def prepare(
    profile: Profile,
    questions: list[dict],
    passages: list[dict],
    adapter: str | None = None,
) -> Task:
    """Load the model and build the index."""
    model, tokenizer = models.load(profile.model, adapter)
    if adapter is not None:
        model = model.merge_and_unload()
    retriever = Retriever.build(passages)
    # numba compiles at the first search.
    retriever.search([questions[0]["question"]], 1)
    return Task(profile, questions, model, tokenizer, retriever)


def one_by_one(task: Task) -> tuple[list[Trajectory], int]:
    """The way of the original: every turn computes the whole conversation again, and
    searches alone."""
    engine = TransformersEngine(
        task.model, task.tokenizer, task.end_of_turn, temperature=0.0, keep_cache=False
    )
    trajectories = []
    for question in task.questions:
        trajectories += task.lead(engine, [question])
    return trajectories, engine.computed


def batched(task: Task) -> tuple[list[Trajectory], int]:
    """Our way: all conversations together, each turn computing what is new."""
    engine = TransformersEngine(
        task.model, task.tokenizer, task.end_of_turn, temperature=0.0, keep_cache=True
    )
    return task.lead(engine, task.questions), engine.computed


def with_vllm(task: Task, folder: Path) -> Way:
    """The same with vLLM, ready to be called.

    Args:
        folder: for the model, from which vLLM loads it.
    """
    models.save_adapter(task.model, task.tokenizer, folder)
    engine = VLLMEngine.open(
        str(folder),
        task.tokenizer,
        task.end_of_turn,
        temperature=0.0,
        dtype=task.model.dtype,
        seed=0,
        max_model_len=min(
            VLLM_WINDOW, task.model.config.get_text_config().max_position_embeddings
        ),
        max_num_seqs=VLLM_ROWS,
    )
    # The first call compiles.
    task.lead(engine, [{"question": "Who?"}])
    computed_before = engine.computed

    def way() -> tuple[list[Trajectory], int]:
        trajectories = task.lead(engine, task.questions)
        return trajectories, engine.computed - computed_before

    return way


def measure_way(way: Way, count: int) -> dict:
    """Speed and cost of one way of leading `count` conversations."""
    start = time.perf_counter()
    trajectories, computed = way()
    seconds = time.perf_counter() - start
    floor = sum(len(t.prompt_ids) + len(t.completion_ids) for t in trajectories)
    searches = sum(t.searches for t in trajectories)
    return {
        "questions_per_second": count / seconds,
        "tokens_computed_per_question": computed / count,
        "floor_ratio": computed / floor,
        "searches_per_question": searches / count,
    }
