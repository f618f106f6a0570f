"""Launched by torchrun in test_trainer.py: one backward pass in each of two processes,
on replayed rows.

Usage: two_processes.py FOLDER BUDGET. Writes FOLDER/BUDGET.pt: the parts that each
process ran, and the gradients, averaged over both."""

import os
import sys
from pathlib import Path

import torch

from kr1_utils import corpus, models, trainer
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve
from kr1_utils.retriever import Retriever


def batch(rank: int) -> dict[str, torch.Tensor]:
    """What TRL makes of eight rollouts: short ones for the first process, long ones for
    the second."""
    random = torch.Generator().manual_seed(rank)
    prompt, completion = 20, 30 + 130 * rank
    lengths = torch.randint(completion // 2, completion + 1, (8, 1), generator=random)
    mask = (torch.arange(completion) < lengths).long()
    return {
        "prompt_ids": torch.randint(5, 400, (8, prompt), generator=random),
        "prompt_mask": torch.ones(8, prompt, dtype=torch.long),
        "completion_ids": torch.randint(5, 400, (8, completion), generator=random)
        * mask,
        "completion_mask": mask,
        "advantages": torch.randn(8, generator=random),
        "num_items_in_batch": torch.tensor(900),
    }


def main(folder: Path, budget: int) -> None:
    profile = resolve(
        "tiny",
        dict(
            max_turns=1,
            top_k=1,
            max_turn_tokens=32,
            max_observation_tokens=64,
            max_response_tokens=220,
            per_device_train_batch_size=8,
        ),
    )
    model, tokenizer = models.load(profile.model)
    questions = corpus.load_questions(REPO / "data" / "miniwiki" / "train.jsonl")[:16]
    passages = corpus.load_passages(REPO / "data" / "miniwiki" / "passages.jsonl")
    torch.manual_seed(0)
    config = trainer.grpo_config(profile, 42, folder / "state", use_cpu=True)
    run = trainer.KnowledgeGRPOTrainer(
        model,
        args=config,
        processing_class=tokenizer,
        train_dataset=corpus.training_set(questions),
        retriever=Retriever.build(passages),
        limits=profile.limits,
        system_prompt=profile.system_prompt,
        folder=folder,
        peft_config=models.lora_config(profile),
        tokens_per_micro_batch=budget,
    )
    passes = []
    run.model.register_forward_pre_hook(lambda *_: passes.append(1))
    network = run.accelerator.prepare(run.model)
    run.model_wrapped, run.current_gradient_accumulation_steps = network, 1
    network.train()
    rank = run.accelerator.process_index
    run.accelerator.backward(run.compute_loss(network, batch(rank)))
    parts = run.accelerator.gather(torch.tensor([len(passes)])).tolist()
    if rank == 0:
        gradients = {
            n: p.grad for n, p in run.model.named_parameters() if p.grad is not None
        }
        torch.save({"parts": parts, "gradients": gradients}, folder / f"{budget}.pt")
    run.accelerator.wait_for_everyone()
    os._exit(
        0
    )  # all is written; taking gloo's threads down in order has been seen to hang


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
