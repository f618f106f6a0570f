"""Owns training: TRL's GRPOTrainer with the agent loop as its rollout, and nothing else changed.

Loss, clipping, advantages, LoRA and checkpoints are TRL's (https://github.com/huggingface/trl). Its
public hook `rollout_func` hands over the trajectories; `env_mask` is the loss mask.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from kr1_utils import protocol, rewards
from kr1_utils.agent import Trajectory, check_batch, check_limits, check_mask, rollout
from kr1_utils.data import append_log, from_step, write_text
from kr1_utils.engines import TransformersEngine, VLLMEngine, settle_vllm_on_cpu
from kr1_utils.models import merged_weights
from kr1_utils.profiles import Limits, Profile
from kr1_utils.protocol import ChatFormat

FIELDS = ("answer", "turns", "passages", "searches", "stop")  # what reward functions are given
LOG_COLUMNS = {  # column of train_log.csv: TRL's name for it
    "step": "step", "reward": "reward", "accuracy_reward": "rewards/accuracy_reward/mean",
    "format_reward": "rewards/format_reward/mean", "loss": "loss", "learning_rate": "learning_rate",
    "grad_norm": "grad_norm", "entropy": "entropy", "completion_length": "completions/mean_length",
    "retrieved_length": "retrieved_length", "searches": "searches", "truncated": "truncated",
    "frac_reward_zero_std": "frac_reward_zero_std", "step_time": "step_time",
    "peak_memory_gib": "peak_memory_gib",
}


def grpo_config(profile: Profile, seed: int, folder: str | os.PathLike, **changes) -> GRPOConfig:
    """The profile's GRPO arguments as TRL's, with what every scale shares, and `changes` on top."""
    return GRPOConfig(**{
        "output_dir": str(folder), "seed": seed, "logging_steps": 1, "save_total_limit": 2,
        "max_completion_length": profile.limits.max_response_tokens, "report_to": "none",
        "reward_weights": [profile.accuracy_weight, profile.format_weight],
        "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(), **profile.grpo, **changes})


def training_set(questions: list[dict]) -> Dataset:
    """Questions as TRL's data set: `prompt` is the question, `golden_answers` goes to the rewards."""
    return Dataset.from_list([{"prompt": q["question"], "golden_answers": q["golden_answers"],
                               "question_id": str(q["id"])} for q in questions])


class KnowledgeGRPOTrainer(GRPOTrainer):
    """GRPO on multi-turn search trajectories.

    Takes what `GRPOTrainer` takes, and:

    Args:
        retriever: anything with `search(queries, k)`.
        limits: bounds on a trajectory; `args.max_completion_length` must be their
            `max_response_tokens`.
        system_prompt: opens every conversation.
        folder: where `train_log.csv` and `trajectories.jsonl` grow.
        reward_funcs: the default is exact match and format.
        on_step: called with each row of the log, for progress.

    Raises:
        ValueError: if the limits leave no room, or do not agree with `args`.
    """

    def __init__(self, model, *, retriever, limits: Limits, system_prompt: str = protocol.SYSTEM_PROMPT,
                 folder: str | os.PathLike, reward_funcs=None, on_step=None, **kwargs):
        if kwargs["args"].max_completion_length != limits.max_response_tokens:
            raise ValueError(f"max_completion_length={kwargs['args'].max_completion_length} must equal "
                             f"max_response_tokens={limits.max_response_tokens}.")
        if kwargs["args"].use_vllm and kwargs["args"].vllm_mode != "colocate":
            raise ValueError('The agent loop needs vllm_mode="colocate": each turn has limits of its own.')
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` is marked experimental
        reward_funcs = reward_funcs or [rewards.accuracy_reward, rewards.format_reward]
        if kwargs["args"].use_vllm and not torch.cuda.is_available():
            settle_vllm_on_cpu(reload=True)
        super().__init__(model, reward_funcs, rollout_func=type(self).run_agent, **kwargs)
        self.retriever, self.limits, self.system_prompt = retriever, limits, system_prompt
        self.folder, self.on_step = Path(folder), on_step
        self.remove_callback(PrinterCallback)  # `on_step` reports, and train_log.csv holds the rest
        self.chat = ChatFormat.of(self.processing_class)
        check_limits(limits, self.processing_class, self.chat)
        self.mask_checked = False
        plain = all(p.is_floating_point() for p in self.model.parameters())  # neither packed in 4 bits …
        if self.use_vllm and isinstance(self.model, PeftModel) and plain and not (
                self.is_deepspeed_enabled or self.is_fsdp_enabled):  # … nor spread over processes
            self.vllm_generation._iter_named_params = lambda: merged_weights(self.model)

    @staticmethod
    def run_agent(prompts: list[str], trainer: KnowledgeGRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`: one trajectory a prompt, in order.

        Args:
            prompts: questions; in training each stands `num_generations` times in a row.
        """
        with trainer._engine() as engine:
            trajectories = rollout(engine, trainer.processing_class, trainer.retriever,
                                   [{"question": p} for p in prompts], trainer.limits,
                                   trainer.system_prompt)
        check_batch(prompts, trajectories, trainer.limits)
        if not trainer.mask_checked:
            for t in trajectories:
                check_mask(t.completion_ids, t.loss_mask, trainer.processing_class, trainer.chat)
            trainer.mask_checked = True
        trainer._record(trajectories)
        output = {name: [getattr(t, name) for t in trajectories] for name in FIELDS}
        return output | {
            "prompt_ids": [t.prompt_ids for t in trajectories],
            "completion_ids": [t.completion_ids for t in trajectories],
            "env_mask": [t.loss_mask for t in trajectories],
            "logprobs": (None if any(t.logprobs is None for t in trajectories)
                         else [t.logprobs for t in trajectories]),
            "trajectory": trajectories,
        }

    @contextmanager
    def _engine(self):
        """The engine of one rollout, with this step's weights for all its turns."""
        more = (self.processing_class, self.chat.end_of_turn, self.temperature)
        if not self.use_vllm:
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                yield TransformersEngine(model, *more)
            return
        vllm = self.vllm_generation  # TRL has pushed the weights, once a step
        if vllm.enable_sleep_mode:
            if vllm._llm_weights_sleeping:  # a second rollout in this step
                vllm.sync_weights()
            vllm.llm.wake_up(tags=["kv_cache"])
        try:
            yield VLLMEngine(vllm.llm, *more)
        finally:
            if vllm.enable_sleep_mode:
                vllm.llm.sleep(level=2)  # drops the weights, which the next push brings back
                vllm._llm_weights_sleeping = True

    def _record(self, trajectories: list[Trajectory]) -> None:
        """Add what TRL does not measure to this step's log, and keep one group of trajectories."""
        mode = "train" if self.model.training else "eval"
        for name, values in (
            ("retrieved_length", [t.retrieved_length for t in trajectories]),
            ("searches", [t.searches for t in trajectories]),
            ("truncated", [t.stop == "truncated" for t in trajectories]),
        ):
            local = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
            self._metrics[mode][name].append(self.accelerator.gather(local).mean().item())
        if mode == "train" and self.accelerator.is_main_process:
            group = trajectories[: self.num_generations]
            rows = [{"step": self.state.global_step + 1, "question": t.question["question"],
                     "turns": t.texts, "answer": t.answer, "stop": t.stop,
                     "sampled": t.sampled_length, "retrieved": t.retrieved_length} for t in group]
            with from_step(self.folder / "trajectories.jsonl", rows[0]["step"]).open("a") as out:
                out.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, and one row of train_log.csv a training step."""
        step = "loss" in logs and self.model.training
        if step:
            cuda = torch.cuda.is_available()
            peak = (torch.cuda.max_memory_allocated() if cuda
                    else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            self._metrics["train"]["peak_memory_gib"].append(peak / 2**30)
        super().log(logs, start_time)
        if step and self.accelerator.is_main_process:
            values = {**logs, "step": self.state.global_step}
            row = {column: values.get(name, math.nan) for column, name in LOG_COLUMNS.items()}
            append_log(self.folder / "train_log.csv", row)
            if self.on_step:
                self.on_step(row)


def resume_point(folder: Path, settings: dict) -> str | None:
    """The last complete checkpoint in `folder` of a run with these settings; else clear the folder.

    transformers writes trainer_state.json last, so a checkpoint without a readable one was cut off.
    """
    note, text = folder / "settings.json", json.dumps(settings, sort_keys=True, default=str)
    if not note.exists() or note.read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_text(note, text)
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda c: -int(c.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None
