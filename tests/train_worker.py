"""Launched by Accelerate, or alone, in test_several_processes.py: three training steps
on the same 16 rows per step.

Usage: train_worker.py FOLDER MODE. "record" samples, and keeps the rollouts in
FOLDER/rollouts.pkl; "replay" takes them from there; "ragged" has one process's
conversations end after one turn, the other's after six; "uneven" samples them from the
model, and lets the first process's have one turn; "server" does so on the vLLM server
at $SERVER, which gets no new weights: that takes GPUs, so the learning rate is 0.
$HOW names the file of settings it was launched with; without one it is alone."""

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

from kr1_utils import corpus, models
from kr1_utils.agent import ScriptedEngine
from kr1_utils.alarms import CollapseAlarms
from kr1_utils.files import REPO
from kr1_utils.profiles import Profile, resolve
from kr1_utils.retriever import Retriever
from kr1_utils.trainer import KnowledgeGRPOTrainer, grpo_config

ROWS = 16
STEPS = 3
HOW = os.environ.get("HOW", "alone")


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

    def update_named_params(self, names, weights):
        pushed.append(len(list(weights)))

    VLLMClient.init_communicator = lambda *_, **__: None
    VLLMClient.update_named_params = update_named_params
    return pushed


def sampled_length(trajectory, **_):
    """A reward that differs within nearly every group, so that there is a gradient."""
    return [one.sampled_length / 10 for one in trajectory]


class Recorder(KnowledgeGRPOTrainer):
    """Keeps all rollouts by step and question."""

    kept: dict = defaultdict(lambda: defaultdict(list))

    @staticmethod
    def run_agent(prompts, trainer):
        made = KnowledgeGRPOTrainer.run_agent(prompts, trainer)
        step = trainer.state.global_step
        for prompt, trajectory in zip(prompts, made["trajectory"], strict=True):
            trainer.kept[step][prompt].append(copy.deepcopy(trajectory))
        return made

    def save(self, file: Path) -> None:
        kept = {step: dict(by_question) for step, by_question in self.kept.items()}
        file.write_bytes(pickle.dumps(kept))


class Player(KnowledgeGRPOTrainer):
    """Plays recorded rollouts; each process the ones of its own questions."""

    kept: dict = {}

    @staticmethod
    def run_agent(prompts, trainer):
        kept = trainer.kept[trainer.state.global_step]
        left = {question: list(made) for question, made in kept.items()}
        trajectories = [left[prompt].pop(0) for prompt in prompts]
        trainer.record(trajectories)
        return {
            "prompt_ids": [t.prompt_ids for t in trajectories],
            "logprobs": None,
            "completion_ids": [t.completion_ids for t in trajectories],
            "env_mask": [t.loss_mask for t in trajectories],
            "trajectory": trajectories,
        }


class Ragged(KnowledgeGRPOTrainer):
    """The first process answers at once, the other one searches as long as it may."""

    @contextmanager
    def engine(self):
        script = [ANSWER]
        if not self.accelerator.is_main_process:
            script = [*[SEARCH] * self.limits.max_turns, ANSWER]
        scripts = dict.fromkeys(self.train_dataset["prompt"], script)
        yield ScriptedEngine(self.processing_class, scripts)


KINDS = {"record": Recorder, "replay": Player, "ragged": Ragged}


def tiny_profile() -> Profile:
    """The tiny profile, so short that three steps take seconds."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    changes = {
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS // processes,
        "num_generations": 4,
        "warmup_steps": 0,
        "save_steps": 99,
        # Adam would turn the last digit of a gradient near 0 into a whole step.
        "optim": "sgd",
        "learning_rate": 0.5,
    }
    return resolve("tiny", changes)


def make_trainer(mode: str, out: Path) -> KnowledgeGRPOTrainer:
    """The trainer of this mode, with the first questions of the shipped world."""
    profile = tiny_profile()
    set_seed(1)
    model, tokenizer = models.load(profile.model)
    world = REPO / "data" / "miniwiki"
    passages = corpus.load_passages(world / "passages.jsonl")
    questions = corpus.load_questions(world / "train.jsonl")[:40]
    spread = HOW not in ("alone", "ddp")
    if spread:
        spread_on_cpu()
    served = {}
    if mode == "server":
        served = {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": os.environ["SERVER"],
            "learning_rate": 0.0,
        }
    trainer = KINDS.get(mode, KnowledgeGRPOTrainer)(
        model,
        args=grpo_config(
            profile,
            42,
            out / "state",
            reward_weights=[1.0],
            use_cpu=not spread,
            **served,
        ),
        processing_class=tokenizer,
        train_dataset=corpus.training_set(questions),
        retriever=Retriever.build(passages),
        limits=profile.limits,
        folder=out,
        system_prompt=profile.system_prompt,
        peft_config=models.lora_config(profile),
        reward_funcs=[sampled_length],
    )
    if mode in ("uneven", "server") and trainer.accelerator.is_main_process:
        trainer.limits = replace(trainer.limits, max_turns=0)
    # They make collective calls, too.
    trainer.add_callback(CollapseAlarms(trainer, out))
    return trainer


def check_server(trainer: KnowledgeGRPOTrainer, pushed: list[int]) -> None:
    """The first process pushed all weights at every step, and the server's
    log-probabilities are the model's."""
    if trainer.accelerator.is_main_process:
        assert len(pushed) == STEPS
        assert len(set(pushed)) == 1
    else:
        assert pushed == []
    gaps = [
        row["sampling/sampling_logp_difference/mean"]
        for row in trainer.state.log_history[:STEPS]
    ]
    assert max(gaps) < 0.01, gaps


def main(folder: Path, mode: str) -> None:
    out = folder / f"{mode}_{HOW}"
    pushed = without_weights() if mode == "server" else []
    trainer = make_trainer(mode, out)
    if mode == "replay":
        trainer.kept = pickle.loads((folder / "rollouts.pkl").read_bytes())
    trainer.train()
    spread = any(isinstance(module, FSDPModule) for module in trainer.model.modules())
    assert spread == (HOW == "fsdp")
    if mode == "record":
        trainer.save(folder / "rollouts.pkl")
    if mode == "server":
        check_server(trainer, pushed)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    trainer.accelerator.end_training()
    if trainer.accelerator.is_main_process:
        lora = {name: weight for name, weight in weights.items() if "lora" in name}
        torch.save(lora, out / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
