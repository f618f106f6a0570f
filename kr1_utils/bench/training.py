"""Owns the measurement of updates: batches in one pass, and in parts."""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable

import pandas as pd

from kr1_utils import models, rewards
from kr1_utils.bench.machine import machine_name
from kr1_utils.corpus import training_set
from kr1_utils.extras import missing
from kr1_utils.profiles import Profile, resolve
from kr1_utils.trainer.grpo import KnowledgeGRPOTrainer, grpo_config
from kr1_utils.trainer.token_budget import micro_batches

try:
    import torch
except ImportError:
    torch = missing("train")

# Padded tokens of a part.
BUDGET = 4096
REPEATS = 7

PROMPT_TOKENS = 30
MEAN_TOKENS = (40, 80, 120)

# Ids below this one are special tokens.
FIRST_WORD_ID = 5

MIB = 2**20


def measure(arguments) -> pd.DataFrame:
    """The table of `kr1 bench training`, see `measure_updates`."""
    return measure_updates(resolve(arguments.profile), BUDGET, REPEATS)


def measure_updates(profile: Profile, budget: int, repeats: int) -> pd.DataFrame:
    """Time and memory of one update's forward and backward passes, whole and in parts,
    on the same batches.

    Memory is counted in living tensors, without the model's own.

    Args:
        budget: padded tokens of a part.
        repeats: how often each way is timed, in turn with the other.

    Returns:
        one row per batch and way: `lengths` ("equal" or "mixed"), `mean_tokens` (of a
        response), `way` ("trl", in one pass, or "parts"), `passes`, `seconds` (the
        best), `peak_mib`, `machine`.
    """
    trainer = make_trainer(profile, budget)
    count = profile.grpo["per_device_train_batch_size"]
    random = torch.Generator().manual_seed(0)
    rows = []
    for kind, mean in itertools.product(("equal", "mixed"), MEAN_TOKENS):
        lengths = response_lengths(kind, mean, count)
        batch = random_batch(trainer, lengths, random)
        for row in measure_batch(trainer, batch, lengths, budget, repeats):
            rows.append({"lengths": kind, "mean_tokens": mean, **row})
    return pd.DataFrame(rows).assign(machine=machine_name())


def make_trainer(profile: Profile, budget: int) -> KnowledgeGRPOTrainer:
    """The profile's trainer, ready to be given a batch."""
    model, tokenizer = models.load_profile(profile, trainable=True)
    question = {"id": "1", "question": "Who?", "golden_answers": ["A"]}
    with tempfile.TemporaryDirectory() as folder:
        trainer = KnowledgeGRPOTrainer(
            model,
            args=grpo_config(profile, 0, folder),
            processing_class=tokenizer,
            folder=folder,
            train_dataset=training_set([question]),
            retriever=None,
            limits=profile.limits,
            reward_funcs=rewards.reward_functions(profile)[0],
            peft_config=models.lora_config(profile),
            tokens_per_micro_batch=budget,
        )
    # TRL divides by it, and sets it when training begins.
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def response_lengths(kind: str, mean: int, count: int) -> list[int]:
    """Tokens of each response.

    They are all equal; or most have a quarter of the mean, and one in eight is long
    enough to make up for it.
    """
    if kind == "equal":
        return [mean] * count
    lengths = [mean // 4] * count
    for row in range(0, count, 8):
        lengths[row] = mean * 25 // 4
    return lengths


def random_batch(
    trainer: KnowledgeGRPOTrainer, lengths: list[int], random: torch.Generator
) -> dict[str, torch.Tensor]:
    """A batch as TRL gives it to the loss: random tokens, padded on the right.

    Args:
        lengths: of the responses.
    """
    rows = len(lengths)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(
        FIRST_WORD_ID,
        len(trainer.processing_class),
        (rows, PROMPT_TOKENS + longest),
        generator=random,
    )
    batch = {
        "prompt_ids": ids[:, :PROMPT_TOKENS],
        "prompt_mask": torch.ones(rows, PROMPT_TOKENS, dtype=torch.long),
        "completion_ids": ids[:, PROMPT_TOKENS:] * mask,
        "completion_mask": mask,
        "advantages": torch.randn(rows, generator=random),
        "num_items_in_batch": mask.sum(),
    }
    return {name: value.to(trainer.model.device) for name, value in batch.items()}


def measure_batch(
    trainer: KnowledgeGRPOTrainer,
    batch: dict[str, torch.Tensor],
    lengths: list[int],
    budget: int,
    repeats: int,
) -> list[dict]:
    """One row per way of computing the gradient of a batch."""
    updates = {
        "trl": functools.partial(update, trainer, batch, 0),
        "parts": functools.partial(update, trainer, batch, budget),
    }
    parts = micro_batches([(PROMPT_TOKENS, length) for length in lengths], budget)
    passes = {"trl": 1, "parts": len(parts)}
    peaks = {way: peak_mib(run) for way, run in updates.items()}
    seconds: dict[str, list[float]] = {"trl": [], "parts": []}
    for _ in range(repeats):
        for way, run in updates.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
    return [
        {
            "way": way,
            "passes": passes[way],
            "seconds": min(seconds[way]),
            "peak_mib": peaks[way],
        }
        for way in updates
    ]


def update(
    trainer: KnowledgeGRPOTrainer, batch: dict[str, torch.Tensor], budget: int
) -> None:
    """Forward and backward passes of a batch; a budget of 0 takes it in one pass."""
    trainer.budget = budget
    trainer.accelerator.backward(trainer.compute_loss(trainer.model, dict(batch)))


def peak_mib(work: Callable[[], None]) -> float:
    """The most memory that was allocated during `work()`, beyond what was before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        work()
    # The profiler's own events have each change; its tables have only sums.
    changes = [
        event.nbytes()
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    return max(itertools.accumulate(changes)) / MIB
