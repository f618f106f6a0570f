"""Owns training: TRL's GRPOTrainer with the agent loop as its rollout, and nothing else changed.

Loss, clipping, advantages, LoRA and checkpoints are TRL's (https://github.com/huggingface/trl). Its
public hook `rollout_func` hands over the trajectories; `env_mask` is the loss mask.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import resource
import shutil
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from kr1_utils import protocol, rewards
from kr1_utils.agent import Trajectory, check_limits, rollout
from kr1_utils.data import write_text
from kr1_utils.engines import TransformersEngine
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
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` is marked experimental
        reward_funcs = reward_funcs or [rewards.accuracy_reward, rewards.format_reward]
        super().__init__(model, reward_funcs, rollout_func=type(self).run_agent, **kwargs)
        self.retriever, self.limits, self.system_prompt = retriever, limits, system_prompt
        self.folder, self.on_step = Path(folder), on_step
        self.remove_callback(PrinterCallback)  # `on_step` reports, and train_log.csv holds the rest
        self.chat = ChatFormat.of(self.processing_class)
        check_limits(limits, self.processing_class, self.chat)
        self.mask_checked = False

    @staticmethod
    def run_agent(prompts: list[str], trainer: KnowledgeGRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`: one trajectory a prompt, in order.

        Args:
            prompts: questions; in training each stands `num_generations` times in a row.
        """
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            engine = TransformersEngine(model, trainer.processing_class, trainer.chat.end_of_turn,
                                        temperature=trainer.temperature)
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
            with _from_step(self.folder / "trajectories.jsonl", rows[0]["step"]).open("a") as out:
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


def append_log(file: Path, row: dict) -> None:
    """Put `row` behind the rows of earlier steps; rows of its own step or later ones are from a run
    that was cut off after its last checkpoint, and go."""
    rows = []
    if file.exists():
        with file.open(newline="") as lines:
            rows = [r for r in csv.DictReader(lines) if int(r["step"]) < row["step"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_text(file, text.getvalue())


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


def _from_step(file: Path, step: int) -> Path:
    """The trajectory file without what a cut-off run wrote from `step` on."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
        if len(kept) < len(lines):
            write_text(file, "".join(kept))
    return file


def check_batch(prompts: list[str], trajectories: list[Trajectory], limits: Limits) -> None:
    """TRL does not check what a rollout returns, and drops lists that are too short: check it here.

    Raises:
        ValueError: unless there is one trajectory a prompt, in order, with ids, mask and
            log-probabilities of one length within the limits.
    """
    if len(prompts) != len(trajectories):
        raise ValueError(f"{len(trajectories)} trajectories came back for {len(prompts)} prompts.")
    for i, (prompt, t) in enumerate(zip(prompts, trajectories)):
        lengths = {len(t.completion_ids), len(t.loss_mask)} | (
            {len(t.logprobs)} if t.logprobs is not None else set())
        if t.question["question"] != prompt:
            raise ValueError(f"Trajectory {i} answers another question than prompt {i}.")
        if len(lengths) != 1 or not t.completion_ids:
            raise ValueError(f"Trajectory {i} has ids, mask and log-probabilities of lengths {lengths}.")
        if len(t.completion_ids) > limits.max_response_tokens:
            raise ValueError(f"Trajectory {i} has {len(t.completion_ids)} tokens, more than "
                             f"max_response_tokens={limits.max_response_tokens}.")


def check_mask(ids: list[int], mask: list[int], tokenizer, chat: ChatFormat) -> None:
    """Refuse a mask that is inverted, or that trains on what the model did not write.

    It is checked against the text of the conversation alone, not against how it was built: after an
    end-of-turn token a user message and the next assistant header must be masked out.

    Raises:
        ValueError: naming the first token that is wrong.
    """
    header = tokenizer(chat.before_user, add_special_tokens=False)["input_ids"][:-1]
    opening = tokenizer(chat.after_user, add_special_tokens=False)["input_ids"]
    at = 0
    while at < len(ids):
        end = ids.index(chat.end_of_turn, at) if chat.end_of_turn in ids[at:] else len(ids)
        for i in range(at, end):
            if mask[i] != 1:
                raise ValueError(f"The loss mask leaves out token {i} ({tokenizer.decode(ids[i])!r}), "
                                 "which the model sampled: is it inverted?")
        message = end + 1
        if ids[message:message + len(header)] != header:
            if message < len(ids):
                raise ValueError(f"After the turn that ends at token {end} comes no user message.")
            return
        at = message
        while at < len(ids) and ids[at:at + len(opening)] != opening:
            at += 1
        at = min(at + len(opening), len(ids))
        for i in range(message, at):
            if mask[i] != 0:
                raise ValueError(f"The loss mask trains on token {i} ({tokenizer.decode(ids[i])!r}), "
                                 "which is part of an observation or a header.")
