"""Owns the side-by-side measurements, each from one run.

`python -m kr1_utils.bench training` runs the same batches through TRL's loss whole and in parts of
`tokens_per_micro_batch`. `python -m kr1_utils.bench agent` lets the same model answer the same questions,
greedily and within the same limits, in four ways, and counts what each computes beside the least that is
possible.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
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
from kr1_utils.data import load_passages, questions_of, sources, training_set, write_text
from kr1_utils.engines import TransformersEngine, VLLMEngine
from kr1_utils.memory import micro_batches
from kr1_utils.profiles import REPO, Profile, resolve
from kr1_utils.protocol import ChatFormat
from kr1_utils.retriever import Retriever
from kr1_utils.trainer import KnowledgeGRPOTrainer, grpo_config

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


def training(profile: Profile, budget: int, repeats: int) -> list[dict]:
    """Time and memory of one update's forward and backward passes, whole and in parts, on the same batches.

    Batches are random tokens in rows of equal lengths, or of mixed ones: most of a quarter of the mean, one
    in eight long. Memory is counted in living tensors, the model's own not among them.

    Returns:
        one row a batch and way: `lengths`, `mean_tokens` (of a response), `way` ("trl" or "parts"),
        `passes`, `seconds` (the best of `repeats`, in turn with the other way) and `peak_mib`.
    """
    model, tokenizer = models.load(profile.model)
    rows, prompt, out = profile.grpo["per_device_train_batch_size"], 30, []
    with tempfile.TemporaryDirectory() as folder:
        run = KnowledgeGRPOTrainer(
            model, args=grpo_config(profile, 0, folder), processing_class=tokenizer, folder=folder,
            train_dataset=training_set([{"id": "1", "question": "Who?", "golden_answers": ["A"]}]),
            retriever=None, limits=profile.limits, peft_config=models.lora_config(profile),
            tokens_per_micro_batch=budget)
    run.current_gradient_accumulation_steps = 1
    random = torch.Generator().manual_seed(0)
    for kind, mean in [(k, m) for k in ("equal", "mixed") for m in (40, 80, 120)]:
        lengths = torch.full((rows, 1), mean)
        if kind == "mixed":
            lengths[:], lengths[::8] = mean // 4, mean * 25 // 4
        longest = int(lengths.max())
        mask = (torch.arange(longest) < lengths).long()  # (B, T)
        ids = torch.randint(5, len(tokenizer), (rows, prompt + longest), generator=random)
        batch = {"prompt_ids": ids[:, :prompt], "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
                 "completion_ids": ids[:, prompt:] * mask, "completion_mask": mask,
                 "advantages": torch.randn(rows, generator=random), "num_items_in_batch": mask.sum()}
        batch = {name: value.to(run.model.device) for name, value in batch.items()}
        ways, seconds = {"trl": 0, "parts": budget}, {"trl": [], "parts": []}

        def update(tokens_per_micro_batch: int, batch=batch) -> None:
            run.budget = tokens_per_micro_batch
            run.accelerator.backward(run.compute_loss(run.model, dict(batch)))

        peaks = {way: _peak_mib(functools.partial(update, ways[way])) for way in ways}
        for way in list(ways) * repeats:
            start = time.perf_counter()
            update(ways[way])
            seconds[way].append(time.perf_counter() - start)
        parts = micro_batches([(prompt, n) for n in lengths.flatten().tolist()], budget)
        out += [{"lengths": kind, "mean_tokens": mean, "way": way, "passes": len(parts) if ways[way] else 1,
                 "seconds": min(seconds[way]), "peak_mib": peaks[way]} for way in ways]
    return out


def _peak_mib(work) -> float:
    """The most memory that was allocated during `work()`, beyond what was before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as seen:
        work()
    sizes = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(sizes)) / 2**20


def machine() -> str:
    """What these figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kr1_utils.bench", description=__doc__)
    parser.add_argument("what", choices=["agent", "training"])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--questions", type=int, default=256, help="agent: how many")
    parser.add_argument("--data", default="", help="agent: folder with your own passages and questions")
    parser.add_argument("--model", help="a folder or hub id instead of the profile's")
    parser.add_argument("--adapter", help="agent: a trained adapter, merged into the model first")
    parser.add_argument("--budget", type=int, default=4096, help="training: tokens_per_micro_batch")
    parser.add_argument("--repeats", type=int, default=7, help="training: of each, the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--csv", type=Path, help="put the table here too, beside other profiles'")
    args = parser.parse_args(argv)
    profile = resolve(args.profile, {"model": args.model} if args.model else {})
    result = {"profile": profile.name, "machine": machine()}
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is not the result
        if args.what == "training":
            rows = result["batches"] = training(profile, args.budget, args.repeats)
        else:
            where = sources(profile, args.data)
            questions = questions_of(where, "test", args.questions)
            result |= {"questions": len(questions),
                       "engines": agent(profile, questions, load_passages(where["passages"]), args.adapter)}
            rows = [{"questions": len(questions), "way": way, **row}
                    for way, row in result["engines"].items()]
    print(json.dumps(result) if args.json else show_training(result) if args.what == "training"
          else show_agent(result))
    if args.csv:
        table = pd.DataFrame([{"profile": profile.name, **row, "machine": result["machine"]} for row in rows])
        if args.csv.is_file():  # other profiles stay
            before = pd.read_csv(args.csv)
            table = pd.concat([before[before["profile"] != profile.name], table])
        write_text(args.csv, table.to_csv(index=False))


def show_agent(result: dict) -> str:
    """The ways of running the loop, as text."""
    slowest = result["engines"]["one_by_one"]["questions_per_second"]
    return "\n".join([f"{result['profile']}, {result['questions']} questions, {result['machine']}"] + [
        f"{way:>10}: {row['questions_per_second']:8.2f} questions/s "
        f"({row['questions_per_second'] / slowest:5.1f} ×), "
        f"{row['tokens_computed_per_question']:6.0f} tokens computed a question, "
        f"{row['floor_ratio']:.2f} × the floor, {row['searches_per_question']:.2f} searches"
        for way, row in result["engines"].items()])


def show_training(result: dict) -> str:
    """Parts beside the whole batch, as text."""
    rows = result["batches"]
    return "\n".join([f"{result['profile']}, {result['machine']}; TRL's own loss, and in parts:"] + [
        f"{a['lengths']} lengths, {a['mean_tokens']:4} tokens on average: {a['seconds']:6.3f} and "
        f"{b['seconds']:6.3f} s ({b['seconds'] / a['seconds']:.2f} ×), {a['peak_mib']:6.0f} and "
        f"{b['peak_mib']:6.0f} MiB, {b['passes']} passes" for a, b in zip(rows[::2], rows[1::2])])


if __name__ == "__main__":
    main()
