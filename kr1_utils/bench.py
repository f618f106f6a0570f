"""Owns the side-by-side measurements, each from one run.

`python -m kr1_utils.bench agent` lets the same model answer the same questions, greedily and within the same
limits, in four ways, and counts what each computes beside the least that is possible.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import runpy
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from kr1_utils import models
from kr1_utils.agent import Trajectory, rollout
from kr1_utils.data import load_passages, questions_of, sources, write_text
from kr1_utils.engines import TransformersEngine, VLLMEngine
from kr1_utils.profiles import REPO, Profile, resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever import Retriever

WAYS = ("one_by_one", "batched", "trl_tools", "vllm")


def agent(profile: Profile, questions: list[dict], passages: list[dict], adapter: str | None = None) -> dict:
    """Questions a second and tokens computed a question, for each way of running the loop.

    Tokens computed count everything that goes through the model: padding, and rows that are finished
    while others still write. The floor computes every token of prompt and trajectory once. One by one is
    the way of the original: every turn computes the whole conversation again, and searches alone.

    Returns:
        {way: {"questions_per_second", "tokens_computed_per_question", "floor_ratio",
        "searches_per_question"}}
    """
    trl_tools = runpy.run_path(str(REPO / "tests" / "rivals.py"))["trl_tools"]
    model, tokenizer = models.load(profile.model, adapter)
    if adapter is not None:
        model = model.merge_and_unload()
    retriever = Retriever.build(passages)
    retriever.search([questions[0]["question"]], 1)  # numba compiles once
    chat = ChatFormat.of(tokenizer)

    def run(engine, batches) -> list[Trajectory]:
        return [t for batch in batches
                for t in rollout(engine, tokenizer, retriever, batch, profile.limits, profile.system_prompt)]

    def transformers(batches, keep_cache):
        engine = TransformersEngine(model, tokenizer, chat.end_of_turn, 0.0, keep_cache=keep_cache)
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
                str(Path(folder) / "model"), tokenizer, chat.end_of_turn, 0.0, dtype=model.dtype, seed=0,
                max_model_len=min(4096, model.config.max_position_embeddings), max_num_seqs=256)

            def with_vllm():
                before = vllm.computed
                return run(vllm, [questions]), vllm.computed - before

            run(vllm, [[{"question": "Who?"}]])  # the first call compiles
            ways["vllm"] = with_vllm
        return {way: _measure(ways[way], len(questions)) for way in WAYS if way in ways}


def _measure(way, count: int) -> dict:
    start = time.perf_counter()
    trajectories, computed = way()
    seconds = time.perf_counter() - start
    floor = sum(len(t.prompt_ids) + len(t.completion_ids) for t in trajectories)
    searches = sum(t.searches for t in trajectories)
    return {"questions_per_second": count / seconds, "tokens_computed_per_question": computed / count,
            "floor_ratio": computed / floor, "searches_per_question": searches / count}


def machine() -> str:
    """What these figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kr1_utils.bench", description=__doc__)
    parser.add_argument("what", choices=["agent"])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--data", default="", help="folder with your own passages and questions")
    parser.add_argument("--model", help="a folder or hub id instead of the profile's")
    parser.add_argument("--adapter", help="a trained adapter, merged into the model first")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--csv", type=Path, help="put the table here too, beside other profiles'")
    args = parser.parse_args(argv)
    profile = resolve(args.profile, {"model": args.model} if args.model else {})
    where = sources(profile, args.data)
    questions = questions_of(where, "test", args.questions)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is not the result
        engines = agent(profile, questions, load_passages(where["passages"]), args.adapter)
    table = pd.DataFrame([{"profile": profile.name, "questions": len(questions), "way": way, **row,
                           "machine": machine()} for way, row in engines.items()])
    result = {"profile": profile.name, "questions": len(questions), "machine": machine(), "engines": engines}
    times = table["questions_per_second"] / table["questions_per_second"][0]
    print(json.dumps(result) if args.json else table.assign(times=times).round(2).to_string(index=False))
    if args.csv:
        if args.csv.is_file():  # other profiles stay
            before = pd.read_csv(args.csv)
            table = pd.concat([before[before["profile"] != profile.name], table])
        write_text(args.csv, table.to_csv(index=False))


if __name__ == "__main__":
    main()
