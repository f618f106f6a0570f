"""Owns training: TRL's GRPOTrainer with the agent loop as its rollout.

Loss, clipping, advantages, LoRA and checkpoints are TRL's
(https://github.com/huggingface/trl). Its public hook `rollout_func` hands over the
trajectories; `env_mask` is the loss mask.
"""

import math
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from kr1_utils import profiles, protocol, rewards
from kr1_utils.agent import Trajectory, check_limits, rollout
from kr1_utils.checks import check_batch, check_mask
from kr1_utils.engines.transformers import TransformersEngine
from kr1_utils.engines.vllm import configure_vllm_cpu, vllm_engine
from kr1_utils.files import append_log, append_rows, drop_from_step, fsync, write_text
from kr1_utils.memory.forecast import peak_gib
from kr1_utils.models import merged_weights, whole_weights
from kr1_utils.profiles import Limits, Profile
from kr1_utils.trainer.resume import OUT_OF_MEMORY
from kr1_utils.trainer.token_budget import micro_batches, rows_of

LOG_COLUMNS = {  # column of train_log.csv: TRL's name for it
    "step": "step",
    "reward": "reward",
    "accuracy_reward": "rewards/accuracy_reward/mean",
    "format_reward": "rewards/format_reward/mean",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "retrieved_length": "retrieved_length",
    "searches": "searches",
    "truncated": "truncated",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "step_time": "step_time",
    "peak_memory_gib": "peak_memory_gib",
}

FIELDS = (
    "answer",
    "turns",
    "passages",
    "searches",
    "stop",
)  # what reward functions are given

# What a part's loss is of its batch's: TRL averages over rows or tokens, or divides by
# the whole's tokens.
LOSS_WEIGHTING = {"grpo": "rows", "dr_grpo": "rows", "bnpo": "tokens", "dapo": "whole"}


def grpo_config(
    profile: Profile, seed: int, folder: str | os.PathLike, **changes
) -> GRPOConfig:
    """The profile's GRPO arguments as TRL's, with what every scale shares, and
    `changes` on top."""
    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "seed": seed,
            "logging_steps": 1,
            "save_total_limit": 2,
            "max_completion_length": profile.limits.max_response_tokens,
            "reward_weights": rewards.reward_functions(profile)[1],
            "disable_tqdm": True,
            "use_cpu": not torch.accelerator.is_available(),
            "ddp_find_unused_parameters": False,
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            **profile.grpo,
            **changes,
        }
    )


class KnowledgeGRPOTrainer(GRPOTrainer):
    """GRPO on multi-turn search trajectories. Takes what `GRPOTrainer` takes, and what
    follows.

    Args:
        retriever: anything with `search(queries, k)`.
        limits: of a trajectory; `args.max_completion_length` must be their
            `max_response_tokens`.
        system_prompt: opens every conversation.
        folder: where `train_log.csv` and `trajectories.jsonl` grow.
        reward_funcs: the default is exact match and format.
        on_step: called with each row of the log, for progress.
        tokens_per_micro_batch: padded, in one pass; parts of a batch add up to its
            gradient. 0 does not cut.
        on_out_of_memory: called with the tokens of the longest response if memory runs
            out; returns advice.

    Raises:
        ValueError: if the limits leave no room, or do not agree with `args` or the
            budget.
    """

    def __init__(
        self,
        model,
        *,
        retriever,
        limits: Limits,
        system_prompt: str = profiles.SYSTEM_PROMPT,
        folder: str | os.PathLike,
        reward_funcs=None,
        on_step=None,
        tokens_per_micro_batch: int = 0,
        on_out_of_memory=None,
        **kwargs,
    ):
        if kwargs["args"].max_completion_length != limits.max_response_tokens:
            raise ValueError(
                f"max_completion_length={kwargs['args'].max_completion_length} must"
                f" equal max_response_tokens={limits.max_response_tokens}."
            )
        os.environ.setdefault(
            "TRL_EXPERIMENTAL_SILENCE", "1"
        )  # `rollout_func` is marked experimental
        reward_funcs = reward_funcs or [rewards.accuracy_reward, rewards.format_reward]
        if kwargs["args"].use_vllm and not torch.cuda.is_available():
            configure_vllm_cpu(reload=True)
        super().__init__(
            model, reward_funcs, rollout_func=type(self).run_agent, **kwargs
        )
        self.retriever, self.limits, self.system_prompt = (
            retriever,
            limits,
            system_prompt,
        )
        self.folder, self.on_step, self.on_out_of_memory = (
            Path(folder),
            on_step,
            on_out_of_memory,
        )
        self.remove_callback(
            PrinterCallback
        )  # `on_step` reports, and train_log.csv holds the rest
        self.chat = protocol.ChatFormat.from_tokenizer(self.processing_class)
        check_limits(limits, self.processing_class, self.chat)
        self.mask_checked = self.recorded = False
        self.longest, self.budget, self.order = (
            0,
            tokens_per_micro_batch,
            torch.Generator(),
        )
        if self.budget:
            self._check_budget()
        plain = all(
            p.is_floating_point() for p in self.model.parameters()
        )  # neither packed in 4 bits …
        if (
            self.use_vllm
            and isinstance(self.model, PeftModel)
            and plain
            and not (self._dist.is_zero3 or self._dist.fsdp_version == 1)
        ):  # … nor out of reach
            self.vllm_generation._iter_named_params = lambda: merged_weights(self.model)

    def _check_budget(self) -> None:
        if (
            self.loss_type not in LOSS_WEIGHTING
            or self._entropy_bonus_enabled
            or self.top_entropy_quantile < 1
            or self.aux_loss_enabled
        ):
            raise ValueError(
                "tokens_per_micro_batch goes with loss_type"
                f" {', '.join(LOSS_WEIGHTING)}, without an entropy bonus, an entropy"
                " quantile or an auxiliary loss."
            )
        prompts = (
            protocol.messages(q, self.system_prompt)
            for q in self.train_dataset["prompt"]
        )
        longest = max(
            len(protocol.prompt_ids(self.processing_class, p)) for p in prompts
        )
        if self.budget < longest + self.limits.max_response_tokens:
            raise ValueError(
                f"tokens_per_micro_batch={self.budget} is less than one row, which may"
                f" have {longest} tokens of prompt and"
                f" {self.limits.max_response_tokens} of response."
            )

    def _parts(
        self, prompt_mask: torch.Tensor, completion_mask: torch.Tensor
    ) -> tuple[list[list[int]], int]:
        """Rows of each part, and how many of them count. Every process runs as many
        parts, for passes make collective calls; the spare ones weigh nothing."""
        lengths = list(
            zip(prompt_mask.sum(1).tolist(), completion_mask.sum(1).tolist())
        )
        parts = micro_batches(lengths, self.budget)
        most = (
            self.accelerator.gather(
                torch.tensor([len(parts)], device=prompt_mask.device)
            )
            .max()
            .item()
        )
        return parts + [parts[-1][-1:]] * (most - len(parts)), len(parts)

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        """TRL's loss; with a budget in parts, of which all but the last have run
        backward already."""
        if not self.budget or not self.model.training:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        parts, real = self._parts(inputs["prompt_mask"], inputs["completion_mask"])
        accelerator, metrics, total = self.accelerator, self._metrics["train"], 0.0
        fsync, logged = (
            accelerator.sync_gradients,
            {name: len(v) for name, v in metrics.items()},
        )
        weights = [
            (n < real) * (mask[rows].sum() / mask.sum().clamp(min=1)).item()
            for n, rows in enumerate(parts)
        ]
        accelerator.gather = lambda tensor: (
            tensor
        )  # TRL gathers values a row, and rows differ in number
        try:
            for n, (rows, tokens) in enumerate(zip(parts, weights)):
                share = {"rows": len(rows) / len(mask), "tokens": tokens, "whole": 1}[
                    LOSS_WEIGHTING[self.loss_type]
                ]
                last = n == len(parts) - 1
                accelerator.gradient_state._set_sync_gradients(
                    fsync and last
                )  # where DeepSpeed steps
                with nullcontext() if last else accelerator.no_sync(model):
                    loss = super().compute_loss(model, rows_of(inputs, rows)) * (
                        share if n < real else 0.0
                    )
                    if not last:
                        accelerator.backward(loss)
                total += loss.detach()
        finally:
            del accelerator.gather
        for (
            name,
            values,
        ) in metrics.items():  # one value for the whole batch, as TRL logs it
            new = values[logged.get(name, 0) :]
            if len(new) == len(parts):
                mean = torch.tensor(
                    [sum(v * w for v, w in zip(new, weights) if w)], device=mask.device
                )
                values[-len(new) :] = [accelerator.gather(mean).nanmean().item()]
        return loss + (total - loss.detach())

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        **kwargs,
    ):
        """TRL's; where no gradient is asked for, the passes keep the budget too."""
        if not self.budget or torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
            )
        prompt, out = input_ids.shape[1] - logits_to_keep, [None, None, None]
        whole = {
            "prompt_mask": attention_mask[:, :prompt],
            "completion_mask": attention_mask[:, prompt:],
            "prompt_ids": input_ids[:, :prompt],
            "completion_ids": input_ids[:, prompt:],
        }
        for rows in self._parts(whole["prompt_mask"], whole["completion_mask"])[0]:
            before, after, start, ids = rows_of(whole, rows).values()
            made = super()._get_per_token_logps_and_entropies(
                model,
                torch.cat([start, ids], 1),
                torch.cat([before, after], 1),
                ids.shape[1],
                **kwargs,
            )
            for i, part in enumerate(made[:2]):
                if part is not None:
                    out[i] = (
                        part.new_zeros(len(input_ids), logits_to_keep)
                        if out[i] is None
                        else out[i]
                    )
                    out[i][rows, : ids.shape[1]] = part
        return tuple(out)

    def _run_epoch(self, *args, epoch: int, **kwargs):
        """transformers'; but a checkpoint of the last step is the end, where it would
        train one step more."""
        self.control.should_training_stop |= (
            self.state.global_step >= self.state.max_steps
        )
        self.order.manual_seed(self.args.seed + epoch)
        return (
            None
            if self.control.should_training_stop
            else super()._run_epoch(*args, epoch=epoch, **kwargs)
        )

    def training_step(self, *inputs, **kwargs):
        """TRL's; where memory runs out, a single process saves all steps so far before
        it stops."""
        try:
            return super().training_step(*inputs, **kwargs)
        except torch.OutOfMemoryError as error:
            cause = str(error).splitlines()[0]
        torch.cuda.empty_cache()  # only here are the tensors of the failed step free
        step, args, folder = (
            self.state.global_step,
            self.args,
            Path(self.args.output_dir),
        )
        between = (
            step
            * args.gradient_accumulation_steps
            % (args.steps_per_generation * args.num_iterations)
        )
        saved = (folder / f"checkpoint-{step}" / "trainer_state.json").exists()
        if self.accelerator.num_processes == 1 and not (
            saved or between
        ):  # others may wait in another call
            self.optimizer.zero_grad()
            self._save_checkpoint(self.model, None)
        write_text(folder / OUT_OF_MEMORY, cause)
        tokens = max(
            self.longest, self.limits.max_turn_tokens
        )  # a forecast is of one turn at least
        advice = self.on_out_of_memory(tokens) if self.on_out_of_memory else ""
        raise RuntimeError(
            f"Out of memory in step {step + 1}, at responses of {self.longest} tokens:"
            f" {cause} Lower max_response_tokens or tokens_per_micro_batch, and the run"
            f" goes on from its last checkpoint.\n{advice}"
        )

    def _get_train_sampler(self, dataset=None):
        """TRL's; a run that goes on in a later epoch finds that epoch's order."""
        sampler, self.recorded = super()._get_train_sampler(dataset), False
        self.order = getattr(
            sampler, "generator", self.order
        )  # set_epoch reaches no resumed shard
        return sampler

    def _save_rng_state(self, output_dir):
        """transformers', for all processes before the first one notes that the
        checkpoint is complete."""
        super()._save_rng_state(output_dir)
        fsync(*Path(output_dir).rglob("*"), output_dir)
        self.accelerator.wait_for_everyone()

    @staticmethod
    def run_agent(
        prompts: list[str], trainer: "KnowledgeGRPOTrainer"
    ) -> dict[str, list]:
        """TRL's `rollout_func`: one trajectory a prompt, which is a question, in
        order."""
        trainer.longest = trainer.limits.max_response_tokens  # until it is known
        with trainer._engine() as engine:
            trajectories = rollout(
                engine,
                trainer.processing_class,
                trainer.retriever,
                [{"question": p} for p in prompts],
                trainer.limits,
                trainer.system_prompt,
            )
        trainer.longest = max(len(t.completion_ids) for t in trajectories)
        check_batch(prompts, trajectories, trainer.limits)
        if not trainer.mask_checked:
            for t in trajectories:
                check_mask(
                    t.completion_ids,
                    t.loss_mask,
                    trainer.processing_class,
                    trainer.chat,
                )
            trainer.mask_checked = True
        trainer._record(trajectories)
        output = {name: [getattr(t, name) for t in trajectories] for name in FIELDS}
        return output | {
            "prompt_ids": [t.prompt_ids for t in trajectories],
            "completion_ids": [t.completion_ids for t in trajectories],
            "env_mask": [t.loss_mask for t in trajectories],
            "logprobs": (
                None
                if any(t.logprobs is None for t in trajectories)
                else [t.logprobs for t in trajectories]
            ),
            "trajectory": trajectories,
        }

    @contextmanager
    def _engine(self):
        """The engine of one rollout, with this step's weights for all its turns."""
        more = (self.processing_class, self.chat.end_of_turn, self.temperature)
        if self.use_vllm:
            with vllm_engine(self.vllm_generation, *more) as engine:
                yield engine
            return
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
            whole_weights(model),
        ):
            yield TransformersEngine(
                model, *more
            )  # model: all of it, also where it is spread over processes

    def _record(self, trajectories: list[Trajectory]) -> None:
        """Add what TRL does not measure to this step's log, and keep one group of
        trajectories."""
        mode, self.trajectories = (
            "train" if self.model.training else "eval",
            trajectories,
        )
        for name, values in {
            "retrieved_length": [t.retrieved_length for t in trajectories],
            "searches": [t.searches for t in trajectories],
            "truncated": [t.stop == "truncated" for t in trajectories],
        }.items():
            local = torch.tensor(
                values, dtype=torch.float32, device=self.accelerator.device
            )
            self._metrics[mode][name].append(
                self.accelerator.gather(local).mean().item()
            )
        if mode == "train" and self.accelerator.is_main_process:
            file, step = self.folder / "trajectories.jsonl", self.state.global_step + 1
            if not self.recorded:
                drop_from_step(file, step)
            append_rows(
                file,
                [
                    {"step": step, **t.to_record()}
                    for t in trajectories[: self.num_generations]
                ],
            )
            self.recorded = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, and one row of train_log.csv a training step."""
        step = "loss" in logs and self.model.training
        if step:
            self._metrics["train"]["peak_memory_gib"].append(peak_gib())
        super().log(logs, start_time)
        if step and self.accelerator.is_main_process:
            values = {**logs, "step": self.state.global_step}
            row = {
                column: values.get(name, math.nan)
                for column, name in LOG_COLUMNS.items()
            }
            append_log(self.folder / "train_log.csv", row)
            (Path(self.args.output_dir) / OUT_OF_MEMORY).unlink(missing_ok=True)
            if self.on_step:
                self.on_step(row)
