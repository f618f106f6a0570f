"""Launched by torchrun: one backward pass in each of two processes, on made-up rows.

Usage: two_processes.py FOLDER BUDGET. Writes FOLDER/BUDGET.pt: the parts that each
process ran, the gradients, averaged over both, and what is logged.
"""

import os
import sys
from pathlib import Path

import torch

from kr1_utils import corpus, models, rewards
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve
from kr1_utils.retriever import Retriever
from kr1_utils.trainer import KnowledgeGRPOTrainer, grpo_config

ROWS = 8
SETTINGS = {
    "max_turns": 1,
    "top_k": 1,
    "max_turn_tokens": 32,
    "max_observation_tokens": 64,
    "max_response_tokens": 220,
    "per_device_train_batch_size": ROWS,
}


def batch(rank: int) -> dict[str, torch.Tensor]:
    """What TRL makes of eight rollouts: short ones for the first process, long ones for
    the second."""
    random = torch.Generator().manual_seed(rank)
    prompt = 20
    completion = 30 + 130 * rank
    lengths = torch.randint(
        completion // 2, completion + 1, (ROWS, 1), generator=random
    )
    mask = (torch.arange(completion) < lengths).long()
    prompt_ids = torch.randint(5, 400, (ROWS, prompt), generator=random)
    completion_ids = torch.randint(5, 400, (ROWS, completion), generator=random)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones(ROWS, prompt, dtype=torch.long),
        "completion_ids": completion_ids * mask,
        "completion_mask": mask,
        "advantages": torch.randn(ROWS, generator=random),
        # As if the samples came from another policy, so that ratios are clipped.
        "old_per_token_logps": -6 + torch.randn(ROWS, completion, generator=random),
        "num_items_in_batch": torch.tensor(900),
    }


def make_trainer(folder: Path, budget: int) -> KnowledgeGRPOTrainer:
    profile = resolve("tiny", SETTINGS)
    model, tokenizer = models.load(profile.model)
    world = REPO / "data" / "miniwiki"
    questions = corpus.load_questions(world / "train.jsonl")[:16]
    passages = corpus.load_passages(world / "passages.jsonl")
    torch.manual_seed(0)
    return KnowledgeGRPOTrainer(
        model,
        args=grpo_config(profile, 42, folder / "state", use_cpu=True),
        processing_class=tokenizer,
        train_dataset=corpus.training_set(questions),
        retriever=Retriever.build(passages),
        limits=profile.limits,
        reward_funcs=rewards.reward_functions(profile)[0],
        system_prompt=profile.system_prompt,
        folder=folder,
        peft_config=models.lora_config(profile),
        tokens_per_micro_batch=budget,
    )


def main(folder: Path, budget: int) -> None:
    trainer = make_trainer(folder, budget)
    passes = []
    trainer.model.register_forward_pre_hook(lambda *_: passes.append(1))
    network = trainer.accelerator.prepare(trainer.model)
    trainer.model_wrapped = network
    trainer.current_gradient_accumulation_steps = 1
    network.train()
    rank = trainer.accelerator.process_index
    trainer.accelerator.backward(trainer.compute_loss(network, batch(rank)))
    parts = trainer.accelerator.gather(torch.tensor([len(passes)])).tolist()
    if rank == 0:
        gradients = {
            name: parameter.grad
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        }
        metrics = {name: sum(v) for name, v in trainer._metrics["train"].items()}
        made = {"parts": parts, "gradients": gradients, "metrics": metrics}
        torch.save(made, folder / f"{budget}.pt")
    trainer.accelerator.wait_for_everyone()
    # All is written; taking gloo's threads down in order has been seen to hang.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
