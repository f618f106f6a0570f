"""Launched by Accelerate, or alone, in test_processes.py: three training steps on the
same 16 rows a step.

Usage: train_worker.py FOLDER MODE. "record" samples, and keeps the rollouts in
FOLDER/rollouts.pkl; "replay" takes them from there; "ragged" has one process's
conversations end after one turn, the other's after six; "uneven" samples them from the
model, and lets the first process's have one turn; "server" does so on the vLLM server
at $SERVER, which gets no new weights: that takes GPUs, so the learning rate is 0."""

import copy
import os
import pickle
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from helpers import ANSWER, SEARCH
from torch.distributed.fsdp import FSDPModule
from transformers import set_seed

from kr1_utils import alarms, corpus, models, trainer
from kr1_utils.agent import ScriptedEngine
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve
from kr1_utils.retriever import Retriever

ROWS, STEPS = 16, 3


def spread_on_cpu() -> None:
    """Accelerate spreads weights over GPUs only: with gloo for its backend, it does the
    same on a CPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def without_weights() -> list[int]:
    """Let TRL's client push weights to nowhere; returns how many tensors each push
    had."""
    from trl.generation.vllm_client import VLLMClient

    pushed = []
    VLLMClient.init_communicator = lambda *_, **__: None
    VLLMClient.update_named_params = lambda self, names, weights: pushed.append(
        len(list(weights))
    )
    return pushed


def sampled_length(trajectory, **_):
    """A reward that differs within nearly every group, so that there is a gradient."""
    return [t.sampled_length / 10 for t in trajectory]


class Recorder(trainer.KnowledgeGRPOTrainer):
    """Keeps all rollouts by step and question."""

    kept: dict = defaultdict(lambda: defaultdict(list))

    @staticmethod
    def run_agent(prompts, self):
        made = trainer.KnowledgeGRPOTrainer.run_agent(prompts, self)
        for prompt, t in zip(prompts, made["trajectory"], strict=True):
            self.kept[self.state.global_step][prompt].append(copy.deepcopy(t))
        return made


class Player(trainer.KnowledgeGRPOTrainer):
    """Plays recorded rollouts; each process the ones of its own questions."""

    @staticmethod
    def run_agent(prompts, self):
        left = {q: list(ts) for q, ts in self.kept[self.state.global_step].items()}
        trajectories = [left[prompt].pop(0) for prompt in prompts]
        self._record(trajectories)
        return {
            "prompt_ids": [t.prompt_ids for t in trajectories],
            "logprobs": None,
            "completion_ids": [t.completion_ids for t in trajectories],
            "env_mask": [t.loss_mask for t in trajectories],
            "trajectory": trajectories,
        }


class Ragged(trainer.KnowledgeGRPOTrainer):
    """The first process answers at once, the other one searches as long as it may."""

    @contextmanager
    def _engine(self):
        first = self.accelerator.is_main_process
        script = [ANSWER] if first else [*[SEARCH] * self.limits.max_turns, ANSWER]
        yield ScriptedEngine(
            self.processing_class, dict.fromkeys(self.train_dataset["prompt"], script)
        )


def main(folder: Path, mode: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    profile = resolve(
        "tiny",
        dict(
            max_steps=STEPS,
            per_device_train_batch_size=ROWS // processes,
            num_generations=4,
            warmup_steps=0,
            save_steps=99,
            learning_rate=5e-4,
        ),
    )
    how = os.environ.get("HOW", "alone")
    out = folder / f"{mode}_{how}"
    set_seed(1)
    model, tokenizer = models.load(profile.model)
    passages = corpus.load_passages(REPO / "data" / "miniwiki" / "passages.jsonl")
    questions = corpus.load_questions(REPO / "data" / "miniwiki" / "train.jsonl")[:40]
    kind = {"record": Recorder, "replay": Player, "ragged": Ragged}.get(
        mode, trainer.KnowledgeGRPOTrainer
    )
    spread = how not in ("alone", "ddp")
    if spread:
        spread_on_cpu()
    served = (
        dict(
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url=os.environ["SERVER"],
            learning_rate=0.0,
        )
        if mode == "server"
        else {}
    )
    pushed = without_weights() if mode == "server" else []
    config = trainer.grpo_config(
        profile, 42, out / "state", reward_weights=[1.0], use_cpu=not spread, **served
    )
    run = kind(
        model,
        args=config,
        processing_class=tokenizer,
        train_dataset=corpus.training_set(questions),
        retriever=Retriever.build(passages),
        limits=profile.limits,
        folder=out,
        system_prompt=profile.system_prompt,
        peft_config=models.lora_config(profile),
        reward_funcs=[sampled_length],
    )
    if mode == "replay":
        run.kept = pickle.loads((folder / "rollouts.pkl").read_bytes())
    if mode in ("uneven", "server") and run.accelerator.is_main_process:
        run.limits = replace(run.limits, max_turns=0)
    run.add_callback(alarms.CollapseAlarms(run, out))  # it makes collective calls, too
    run.train()
    assert any(isinstance(m, FSDPModule) for m in run.model.modules()) == (
        how == "fsdp"
    )
    if mode == "record":
        kept = {step: dict(by_question) for step, by_question in run.kept.items()}
        (folder / "rollouts.pkl").write_bytes(pickle.dumps(kept))
    if mode == "server":
        first = run.accelerator.is_main_process
        assert (
            len(set(pushed)) == first and len(pushed) == STEPS * first
        )  # all weights, by the first process
        gaps = [
            r["sampling/sampling_logp_difference/mean"]
            for r in run.state.log_history[:STEPS]
        ]
        assert max(gaps) < 0.01, gaps  # the server's log-probabilities are the model's
    weights = run.accelerator.get_state_dict(run.model_wrapped)
    run.accelerator.end_training()
    if run.accelerator.is_main_process:
        torch.save(
            {n: w for n, w in weights.items() if "lora" in n}, out / "weights.pt"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
