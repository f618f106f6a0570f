"""Owns the measurement of updates: batches in one pass, and in parts."""

import functools
import itertools
import tempfile
import time

import torch

from kr1_utils import models
from kr1_utils.corpus import training_set
from kr1_utils.profiles import Profile
from kr1_utils.trainer.grpo import KnowledgeGRPOTrainer, grpo_config
from kr1_utils.trainer.token_budget import micro_batches


def training(profile: Profile, budget: int, repeats: int) -> list[dict]:
    """Time and memory of one update's forward and backward passes, whole and in parts,
    on the same batches.

    Batches are random tokens in rows of equal lengths, or of mixed ones: most of a
    quarter of the mean, one in eight long. Memory is counted in living tensors, the
    model's own not among them.

    Returns:
        one row a batch and way: `lengths`, `mean_tokens` (of a response), `way` ("trl"
        or "parts"), `passes`, `seconds` (the best of `repeats`, in turn with the other
        way) and `peak_mib`.
    """
    model, tokenizer = models.load(profile.model)
    rows, prompt, out = profile.grpo["per_device_train_batch_size"], 30, []
    with tempfile.TemporaryDirectory() as folder:
        run = KnowledgeGRPOTrainer(
            model,
            args=grpo_config(profile, 0, folder),
            processing_class=tokenizer,
            folder=folder,
            train_dataset=training_set(
                [{"id": "1", "question": "Who?", "golden_answers": ["A"]}]
            ),
            retriever=None,
            limits=profile.limits,
            peft_config=models.lora_config(profile),
            tokens_per_micro_batch=budget,
        )
    run.current_gradient_accumulation_steps = 1
    random = torch.Generator().manual_seed(0)
    for kind, mean in [(k, m) for k in ("equal", "mixed") for m in (40, 80, 120)]:
        lengths = torch.full((rows, 1), mean)
        if kind == "mixed":
            lengths[:], lengths[::8] = mean // 4, mean * 25 // 4
        longest = int(lengths.max())
        mask = (torch.arange(longest) < lengths).long()  # (B, T)
        ids = torch.randint(
            5, len(tokenizer), (rows, prompt + longest), generator=random
        )
        batch = {
            "prompt_ids": ids[:, :prompt],
            "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
            "completion_ids": ids[:, prompt:] * mask,
            "completion_mask": mask,
            "advantages": torch.randn(rows, generator=random),
            "num_items_in_batch": mask.sum(),
        }
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
        out += [
            {
                "lengths": kind,
                "mean_tokens": mean,
                "way": way,
                "passes": len(parts) if ways[way] else 1,
                "seconds": min(seconds[way]),
                "peak_mib": peaks[way],
            }
            for way in ways
        ]
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
    sizes = [
        e.nbytes()
        for e in seen.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    return max(itertools.accumulate(sizes)) / 2**20
