"""Owns the measurement of the agent loop, run in four ways."""

import importlib.util
import tempfile
import time
from pathlib import Path

from kr1_utils import models
from kr1_utils.agent import Trajectory, rollout
from kr1_utils.bench.trl_tools import trl_tools
from kr1_utils.corpus import load_passages, load_split, locate_files
from kr1_utils.engines.transformers import TransformersEngine
from kr1_utils.engines.vllm import VLLMEngine
from kr1_utils.profiles import Profile, resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever.search import Retriever

WAYS = ("one_by_one", "batched", "trl_tools", "vllm")


def agent(
    profile: Profile,
    questions: list[dict],
    passages: list[dict],
    adapter: str | None = None,
) -> dict:
    """Questions a second and tokens computed a question, for each way of running the
    loop.

    Tokens computed count everything that goes through the model: padding, and rows that
    are finished while others still write. The floor computes every token of prompt and
    trajectory once. One by one is the way of the original: every turn computes the
    whole conversation again, and searches alone.

    Returns:
        {way: {"questions_per_second", "tokens_computed_per_question", "floor_ratio",
        "searches_per_question"}}
    """
    model, tokenizer = models.load(profile.model, adapter)
    if adapter is not None:
        model = model.merge_and_unload()
    retriever = Retriever.build(passages)
    retriever.search([questions[0]["question"]], 1)  # numba compiles once
    chat = ChatFormat.from_tokenizer(tokenizer)

    def run(engine, batches) -> list[Trajectory]:
        return [
            t
            for batch in batches
            for t in rollout(
                engine,
                tokenizer,
                retriever,
                batch,
                profile.limits,
                profile.system_prompt,
            )
        ]

    def transformers(batches, keep_cache):
        engine = TransformersEngine(
            model, tokenizer, chat.end_of_turn, 0.0, keep_cache=keep_cache
        )
        return run(engine, batches), engine.computed

    ways = {
        "one_by_one": lambda: transformers([[q] for q in questions], False),
        "batched": lambda: transformers([questions], True),
        "trl_tools": trl_tools(model, tokenizer, retriever, questions, profile),
    }
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("vllm"):
            models.save_adapter(model, tokenizer, Path(folder) / "model")
            vllm = VLLMEngine.open(
                str(Path(folder) / "model"),
                tokenizer,
                chat.end_of_turn,
                0.0,
                dtype=model.dtype,
                seed=0,
                max_model_len=min(4096, model.config.max_position_embeddings),
                max_num_seqs=256,
            )

            def with_vllm():
                before = vllm.computed
                return run(vllm, [questions]), vllm.computed - before

            run(vllm, [[{"question": "Who?"}]])  # the first call compiles
            ways["vllm"] = with_vllm
        return {way: _measure(ways[way], len(questions)) for way in WAYS if way in ways}


def main(args) -> tuple[dict, dict]:
    """What was run, and what came out, for the command line of kr1_utils.bench."""
    profile = resolve(args.profile, {"model": args.model} if args.model else {})
    where = locate_files(profile, args.data)
    questions = load_split(where, "test", args.questions)
    engines = agent(profile, questions, load_passages(where["passages"]), args.adapter)
    return {"profile": profile.name, "questions": len(questions)}, engines


def _measure(way, count: int) -> dict:
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
