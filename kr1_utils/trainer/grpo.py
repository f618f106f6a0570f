"""Owns training: TRL's GRPOTrainer with the agent loop as its rollout.

Loss, clipping, advantages, LoRA and checkpoints are TRL's
(https://github.com/huggingface/trl). Its public hook `rollout_func` hands over the
trajectories; `env_mask` is the loss mask. What else is added lies in files of its own:
`token_budget`, `sampled_tokens`, `out_of_memory`, `resume`, `again`, `lock`,
`callbacks`.
"""

import math
import os
from contextlib import contextmanager
from pathlib import Path

from kr1_utils import protocol, rewards
from kr1_utils.agent import Trajectory, check_limits, rollout
from kr1_utils.checks import check_batch, check_mask
from kr1_utils.engines.transformers import TransformersEngine
from kr1_utils.engines.vllm import configure_vllm_cpu, vllm_engine
from kr1_utils.extras import missing
from kr1_utils.models import (
    merged_weights,
    require_trainable,
    train_in_float32,
    trained_weights,
    whole_weights,
)
from kr1_utils.profiles import Limits, Profile
from kr1_utils.trainer.again import TrainsAgain
from kr1_utils.trainer.callbacks import StepLog, TrajectoryLog
from kr1_utils.trainer.lock import LocksItsFolder
from kr1_utils.trainer.logprobs import ShowsLogprobs
from kr1_utils.trainer.out_of_memory import SavesWhenOutOfMemory
from kr1_utils.trainer.reports import TensorBoardText, with_table
from kr1_utils.trainer.resume import DurableCheckpoints, EpochOrder, StopsAtTheLastStep
from kr1_utils.trainer.sampled_tokens import ScoresSampledTokens
from kr1_utils.trainer.token_budget import TokenBudget

try:
    import torch
    from peft import PeftModel
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.models import unwrap_model_for_generation
except ImportError:
    torch = PeftModel = PrinterCallback = missing("train")
    GRPOConfig = GRPOTrainer = unwrap_model_for_generation = torch

# What reward functions are given of each trajectory, beside the trajectory itself.
FIELDS = ("answer", "turns", "passages", "searches", "stop")


def grpo_config(
    profile: Profile, seed: int, folder: str | os.PathLike, **changes
) -> GRPOConfig:
    """The profile's GRPO arguments as TRL's, with what every scale shares.

    Args:
        folder: where checkpoints go.
        changes: any of TRL's arguments, over all others.
    """
    shared = {
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
    }
    return GRPOConfig(**with_table({**shared, **profile.grpo, **changes}))


class KnowledgeGRPOTrainer(
    LocksItsFolder,
    TrainsAgain,
    ShowsLogprobs,
    TokenBudget,
    ScoresSampledTokens,
    SavesWhenOutOfMemory,
    StopsAtTheLastStep,
    DurableCheckpoints,
    GRPOTrainer,
):
    """GRPO on multi-turn search trajectories.

    Takes what `GRPOTrainer` takes, and what follows.

    Args:
        retriever: anything with `search(queries, k)`.
        limits: of a trajectory; `args.max_completion_length` must be their
            `max_response_tokens`.
        folder: where `train_log.csv` and `trajectories.jsonl` grow.
        system_prompt: opens every conversation.
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
        folder: str | os.PathLike,
        system_prompt: str = protocol.SYSTEM_PROMPT,
        reward_funcs=None,
        on_step=None,
        tokens_per_micro_batch: int = 0,
        on_out_of_memory=None,
        **kwargs,
    ):
        args = kwargs["args"]
        if args.max_completion_length != limits.max_response_tokens:
            raise ValueError(
                f"max_completion_length={args.max_completion_length} must equal"
                f" max_response_tokens={limits.max_response_tokens}."
            )
        if args.use_vllm and not torch.cuda.is_available():
            configure_vllm_cpu(reload=True)
        # TRL says of `rollout_func` that it is experimental, at every start.
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        if not reward_funcs:
            reward_funcs = [rewards.accuracy_reward, rewards.format_reward]
        if isinstance(model, PeftModel):
            kwargs.pop("peft_config", None)  # it goes on with the adapter it has
        exact = trained_weights(model)
        super().__init__(
            model, reward_funcs, rollout_func=type(self).run_agent, **kwargs
        )
        self._train_in_float32(exact)
        self.retriever = retriever
        self.folder = Path(folder)
        self.limits = limits
        self.system_prompt = system_prompt
        self.on_step = on_step
        self.on_out_of_memory = on_out_of_memory
        self.budget = tokens_per_micro_batch
        self.chat = protocol.ChatFormat.from_tokenizer(self.processing_class)
        self.trajectories: list[Trajectory] = []  # of the latest rollout
        self.longest = 0  # tokens of the longest of them
        self.mask_checked = False
        if self.chat.end_of_turn not in self.eos_token_ids:
            # If a completion ends in none of these, TRL takes it for cut off.
            self.eos_token_ids = [*self.eos_token_ids, self.chat.end_of_turn]
        check_limits(limits, self.processing_class, self.chat)
        self._check_questions()
        self.check_budget()
        self._add_callbacks()
        self._push_merged_weights()

    def _train_in_float32(self, exact: dict) -> None:
        """Undo TRL's rounding of an adapter over packed weights: in bfloat16 most
        updates would be rounded away. With ZeRO-3 the adapter keeps the dtype of the
        weights it is gathered with."""
        require_trainable(self.model)
        if not self._dist.is_zero3:
            train_in_float32(self.model, exact)

    def _check_questions(self) -> None:
        """Name the questions after which the model's window has no room."""
        room = self.room_for_prompts()
        around = self.prompt_length("")
        too_long = []
        for question in self.train_dataset["prompt"]:
            # A token is a byte or more, and escaping makes at most five bytes of one.
            most = around + 5 * len(question.encode("utf-8", "replace"))
            if most > room and self.prompt_length(question) > room:
                too_long.append(question)
        if too_long and self.accelerator.is_main_process:
            print(
                f"{len(too_long)} of the training questions are too long for the"
                f" model's window, such as {too_long[0][:60]!r}"
                f" ({self.prompt_length(too_long[0])} tokens, {room} fit): they are"
                " not asked, and count as truncated.",
                flush=True,
            )

    def prompt_length(self, question: str) -> int:
        """Tokens of the prompt that asks a question."""
        messages = protocol.messages(question, self.system_prompt)
        return len(protocol.prompt_ids(self.processing_class, messages))

    def room_for_prompts(self) -> float:
        """Tokens of the longest prompt after which a whole trajectory fits."""
        config = self.model.config.get_text_config()
        window = getattr(config, "max_position_embeddings", None)
        return window - self.limits.max_response_tokens if window else math.inf

    def _add_callbacks(self) -> None:
        self.remove_callback(PrinterCallback)  # `on_step` reports instead
        self.trajectory_log = TrajectoryLog(self, self.folder)
        self.add_callback(EpochOrder())
        # First, so that TensorBoard and the like see what they add.
        self.callback_handler.callbacks[:0] = [
            StepLog(self, self.folder),
            self.trajectory_log,
            TensorBoardText(self, self.folder),
        ]

    def _push_merged_weights(self) -> None:
        """Have TRL push our sums of weights and adapter to vLLM, instead of merging in
        place (see `merged_weights`), wherever these sums can be made."""
        if not self.use_vllm or not isinstance(self.model, PeftModel):
            return
        packed = any(not p.is_floating_point() for p in self.model.parameters())
        spread = self._dist.is_zero3 or self._dist.fsdp_version == 1
        if not packed and not spread:
            self.vllm_generation._iter_named_params = lambda: merged_weights(self.model)

    @staticmethod
    def run_agent(
        prompts: list[str], trainer: "KnowledgeGRPOTrainer"
    ) -> dict[str, list]:
        """TRL's `rollout_func`: one trajectory per prompt, in order.

        Args:
            prompts: questions, each as often as a group has trajectories.

        Returns:
            `prompt_ids`, `completion_ids`, `env_mask` (1: sampled, trained on) and
            `logprobs` (None without vLLM) for TRL; `FIELDS` and `trajectory` for the
            reward functions. One entry per prompt each.
        """
        trainer.longest = trainer.limits.max_response_tokens  # until it is known
        questions = [{"question": prompt} for prompt in prompts]
        with trainer.engine() as engine:
            trajectories = rollout(
                engine,
                trainer.processing_class,
                trainer.retriever,
                questions,
                trainer.limits,
                trainer.system_prompt,
            )
        trainer.longest = max(len(t.completion_ids) for t in trajectories)
        trainer.check(prompts, trajectories)
        trainer.record(trajectories)
        return fields_for_trl(trajectories) | fields_for_rewards(trajectories)

    @contextmanager
    def engine(self):
        """The engine of one rollout, with this step's weights for all its turns."""
        end_of_turn, temperature = self.chat.end_of_turn, self.temperature
        if self.use_vllm:
            with vllm_engine(
                self.vllm_generation, self.processing_class, end_of_turn, temperature
            ) as engine:
                engine.shaping = self._shaping()
                yield engine
            return
        with (
            # As in the loss: with `bf16` the adapter computes in bfloat16.
            self.accelerator.autocast(),
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
            whole_weights(model),
        ):
            # In the one try on a GPU, training ran out of memory after a recorded
            # rollout, for a reason that was not found.
            engine = TransformersEngine(
                model, self.processing_class, end_of_turn, temperature, record=False
            )
            engine.shaping = self._shaping()
            yield engine

    def _shaping(self) -> dict:
        """TRL's sampling arguments, but for those that change nothing."""
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
        values = {name: getattr(self.args, name) for name in neutral}
        return {name: v for name, v in values.items() if v != neutral[name]}

    def check(self, prompts: list[str], trajectories: list[Trajectory]) -> None:
        """TRL does not check what a rollout returns; the mask is checked once."""
        check_batch(prompts, trajectories, self.limits)
        if self.mask_checked:
            return
        for t in trajectories:
            check_mask(t.completion_ids, t.loss_mask, self.processing_class, self.chat)
        self.mask_checked = True

    def record(self, trajectories: list[Trajectory]) -> None:
        """Log what TRL does not measure, and keep one group of trajectories."""
        self.trajectories = trajectories
        count = len(trajectories)
        retrieved = sum(t.retrieved_length for t in trajectories)
        truncated = sum(t.was_cut_off for t in trajectories)
        self._log_metric("retrieved_length", retrieved / count)
        self._log_metric("searches", sum(t.searches for t in trajectories) / count)
        self._log_metric("truncated", truncated / count)
        if self.model.training and self.accelerator.is_main_process:
            group = trajectories[: self.num_generations]
            rows = [_row_for_trl(t) for t in group]
            ids = [row["prompt_ids"] + row["completion_ids"] for row in rows]
            self.trajectory_log.hold(self.state.global_step + 1, group, ids)


def fields_for_trl(trajectories: list[Trajectory]) -> dict[str, list]:
    """The ids that were sampled, as TRL trains on them."""
    rows = [_row_for_trl(trajectory) for trajectory in trajectories]
    logprobs = [row["logprobs"] for row in rows]
    return {
        "prompt_ids": [row["prompt_ids"] for row in rows],
        "completion_ids": [row["completion_ids"] for row in rows],
        "env_mask": [row["env_mask"] for row in rows],
        "logprobs": None if None in logprobs else logprobs,
    }


def _row_for_trl(trajectory: Trajectory) -> dict[str, list | None]:
    """One trajectory, as TRL wants it.

    TRL takes a completion for cut off if its last id does not end a turn. If a limit
    cut this one off, the end-of-turn token that we appended (mask 0) is left out.
    """
    prompt_ids = trajectory.prompt_ids
    completion_ids = trajectory.completion_ids
    env_mask = trajectory.loss_mask
    logprobs = trajectory.logprobs
    if trajectory.stop == "prompt_too_long":
        # Nothing was sampled. A completion must not be empty, so it gets an id of the
        # prompt; the rest of the prompt would only fill the batch.
        completion_ids = prompt_ids[-1:]
        prompt_ids = prompt_ids[:1]
    elif trajectory.was_cut_off and env_mask[-1] == 0 and len(completion_ids) > 1:
        completion_ids = completion_ids[:-1]
        env_mask = env_mask[:-1]
        logprobs = logprobs[:-1] if logprobs is not None else None
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "env_mask": env_mask,
        "logprobs": logprobs,
    }


def fields_for_rewards(trajectories: list[Trajectory]) -> dict[str, list]:
    """What TRL hands on to the reward functions."""
    fields = {name: [getattr(t, name) for t in trajectories] for name in FIELDS}
    return fields | {"trajectory": trajectories}
