"""Owns micro-batches: a batch cut into parts whose gradients add up to the batch's.

TRL takes a batch in one pass, as wide as its longest row. In parts, memory stays the
same while responses grow. What TRL logs is what it would log of the whole batch.
"""

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from kr1_utils.extras import missing
from kr1_utils.models import head_at_labels_only

try:
    import torch
    from accelerate.utils import DistributedType
except ImportError:
    torch = DistributedType = missing("train")

# Over what TRL averages a loss: rows, the batch's own tokens, or the tokens of the
# whole generation, which it is told beside the batch.
LOSS_WEIGHTING = {"grpo": "rows", "dr_grpo": "rows", "bnpo": "tokens", "dapo": "whole"}


def micro_batches(lengths: list[tuple[int, int]], budget: int) -> list[list[int]]:
    """Rows in parts of at most `budget` padded tokens; a longer row goes alone.

    Args:
        lengths: (prompt, completion) of each row, in tokens. Prompts are padded on the
            left and completions on the right, so a part of n rows has
            n · (longest prompt + longest completion) tokens.

    Returns:
        row numbers of each part, the longest rows first.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: -sum(lengths[row]))
    parts: list[list[int]] = []
    for row in longest_first:
        if parts and padded_tokens([lengths[r] for r in [*parts[-1], row]]) <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def padded_tokens(lengths: list[tuple[int, int]]) -> int:
    """Tokens of rows of these (prompt, completion) lengths, padding counted."""
    longest_prompt = max(prompt for prompt, _ in lengths)
    longest_completion = max(completion for _, completion in lengths)
    return len(lengths) * (longest_prompt + longest_completion)


def rows_of(batch: dict, rows: list[int]) -> dict:
    """These rows of TRL's batch, without the padding that only the others need."""
    prompt = batch["prompt_mask"][rows].sum(1).max()
    completion = batch["completion_mask"][rows].sum(1).max().clamp(min=1)
    part = dict(batch)
    for name, value in batch.items():
        if not _has_a_row_each(value, len(batch["prompt_mask"])):
            continue
        part[name] = value[rows]
        if value.dim() == 2 and name.startswith("prompt"):
            part[name] = part[name][:, -prompt:]
        elif value.dim() == 2:
            part[name] = part[name][:, :completion]
    return part


def _has_a_row_each(value, rows: int) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and len(value) == rows


@dataclass(frozen=True)
class Part:
    """Some rows of a batch, computed in one pass."""

    rows: list[int]
    tokens: int  # trained on: mask 1
    share: float  # of its mean loss in the batch's loss
    counts: bool  # False: a spare pass, for another process has more parts than this


class TokenBudget:
    """Mixed into a GRPOTrainer: its passes have at most `budget` padded tokens each.

    A budget of 0 leaves batches whole. A loss can be cut only if it averages over rows
    or tokens of a batch (see `check_budget`). The trainer has `limits`, `prompt_length`
    of a question, and `room_for_prompts`, the last two in tokens.
    """

    budget = 0

    def check_budget(self) -> None:
        """Refuse a budget that cannot be kept.

        Raises:
            ValueError: if the loss cannot be cut, or one row may exceed the budget.
        """
        if not self.budget:
            return
        if self.aux_loss_enabled:
            raise ValueError(
                "This model is a mixture of experts, and tokens_per_micro_batch cannot"
                " divide its auxiliary loss: set router_aux_loss_coef=0, or"
                " tokens_per_micro_batch=0."
            )
        if self.loss_type not in LOSS_WEIGHTING:
            raise ValueError(
                "tokens_per_micro_batch goes with loss_type"
                f" {', '.join(LOSS_WEIGHTING)}, not {self.loss_type}: set one of them,"
                " or tokens_per_micro_batch=0."
            )
        if self._entropy_bonus_enabled or self.top_entropy_quantile < 1:
            raise ValueError(
                "tokens_per_micro_batch goes without entropy_coef, use_adaptive_entropy"
                " and top_entropy_quantile: they look at the whole batch. Leave them"
                " out, or set tokens_per_micro_batch=0."
            )
        room = self.room_for_prompts()
        lengths = [self.prompt_length(q) for q in self.train_dataset["prompt"]]
        # A question that is too long for the model's window is not asked.
        longest = max((length for length in lengths if length <= room), default=0)
        if self.budget < longest + self.limits.max_response_tokens:
            raise ValueError(
                f"tokens_per_micro_batch={self.budget} is less than one row, which may"
                f" have {longest} tokens of prompt and"
                f" {self.limits.max_response_tokens} of response."
            )

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        """TRL's loss; with a budget in parts, where all but the last have already run
        backward."""
        if not self.budget or not self.model.training:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
        parts = self._plan(inputs)
        metrics = self._metrics["train"]
        logged_before = {name: len(values) for name, values in metrics.items()}
        with local_collectives(self.accelerator):
            loss = self._loss_in_parts(model, inputs, parts)
        for name, values in metrics.items():
            start = logged_before.get(name, 0)
            if len(values) - start == len(parts):
                values[start:] = [self._merge(name, values[start:], parts)]
        return loss

    def _plan(self, inputs: dict) -> list[Part]:
        """The parts of a batch, as many in every process."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        row_lists, real = self._equally_many_parts(
            inputs["prompt_mask"], inputs["completion_mask"]
        )
        total = mask.sum().clamp(min=1)
        parts = []
        for number, rows in enumerate(row_lists):
            counts = number < real
            tokens = mask[rows].sum()
            shares = {
                "rows": len(rows) / len(mask),
                "tokens": (tokens / total).item(),
                "whole": 1.0,
            }
            share = shares[LOSS_WEIGHTING[self.loss_type]] if counts else 0.0
            parts.append(Part(rows, int(tokens), share, counts))
        return parts

    def _equally_many_parts(
        self, prompt_mask: torch.Tensor, completion_mask: torch.Tensor
    ) -> tuple[list[list[int]], int]:
        """Rows of each part, and how many parts are real.

        A pass makes collective calls, so every process runs as many as the one with
        most parts; the spare ones repeat a row and weigh nothing.
        """
        prompts = prompt_mask.sum(1).tolist()
        completions = completion_mask.sum(1).tolist()
        parts = micro_batches(list(zip(prompts, completions)), self.budget)
        number = torch.tensor([len(parts)], device=prompt_mask.device)
        most = self.accelerator.gather(number).max().item()
        spare = [parts[-1][-1:]] * (most - len(parts))
        return parts + spare, len(parts)

    def _loss_in_parts(self, model, inputs: dict, parts: list[Part]) -> torch.Tensor:
        """The batch's loss. Its value is the sum over parts; backward runs through the
        last part alone, for the others have run."""
        exchange = self.accelerator.sync_gradients
        total = 0.0
        for part in parts:
            last = part is parts[-1]
            # Gradients are exchanged (and DeepSpeed steps) after the last part only.
            self.accelerator.gradient_state._set_sync_gradients(exchange and last)
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss = super().compute_loss(model, rows_of(inputs, part.rows))
                loss = loss * part.share
                if not last:
                    self._backward(loss)
            total += loss.detach()
        return loss + (total - loss.detach())

    def _backward(self, loss: torch.Tensor) -> None:
        """As transformers runs it: DeepSpeed must not divide by the accumulation."""
        kwargs = {}
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            kwargs["scale_wrt_gas"] = False
        self.accelerator.backward(loss, **kwargs)

    def _merge(self, name: str, values: list[float], parts: list[Part]) -> float:
        """One value of a metric for the batch of all processes, from a value per part.

        TRL logs extremes (`…_min`, `…_max`) and means over tokens, or over rows where
        importance sampling is per sequence.
        """
        by_rows = name.startswith("clip_ratio") and (
            self.importance_sampling_level == "sequence"
        )
        counted = [
            (value, len(part.rows) if by_rows else part.tokens)
            for value, part in zip(values, parts)
            if part.counts and not math.isnan(value)
        ]
        numbers = [value for value, _ in counted]
        if name.endswith("_min"):
            return self._over_processes([min(numbers, default=math.inf)]).min().item()
        if name.endswith("_max"):
            return self._over_processes([max(numbers, default=-math.inf)]).max().item()
        weighted = sum(value * weight for value, weight in counted)
        weights = sum(weight for _, weight in counted)
        sums = self._over_processes([weighted, weights]).view(-1, 2).sum(0)
        return (sums[0] / sums[1].clamp(min=1)).item()

    def _over_processes(self, values: list[float]) -> torch.Tensor:
        """These numbers of all processes, one after another."""
        numbers = torch.tensor(values, dtype=torch.float32)
        return self.accelerator.gather(numbers.to(self.accelerator.device))

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        **kwargs,
    ):
        """TRL's; where no gradient is asked for, its passes keep the budget too."""
        if not self.budget:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
            )
        with head_at_labels_only():
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(
                    model,
                    input_ids,
                    attention_mask,
                    logits_to_keep,
                    batch_size,
                    **kwargs,
                )
            return self._logps_in_parts(
                model, input_ids, attention_mask, logits_to_keep, **kwargs
            )

    def _logps_in_parts(
        self, model, input_ids, attention_mask, logits_to_keep, **kwargs
    ) -> tuple:
        """Log-probabilities and entropies (B, T) without gradient, part by part."""
        prompt = input_ids.shape[1] - logits_to_keep
        batch = {
            "prompt_mask": attention_mask[:, :prompt],
            "completion_mask": attention_mask[:, prompt:],
            "prompt_ids": input_ids[:, :prompt],
            "completion_ids": input_ids[:, prompt:],
        }
        row_lists, _ = self._equally_many_parts(
            batch["prompt_mask"], batch["completion_mask"]
        )
        whole = [None, None, None]  # log-probabilities, entropies, auxiliary loss
        for rows in row_lists:
            part = rows_of(batch, rows)
            made = super()._get_per_token_logps_and_entropies(
                model,
                torch.cat([part["prompt_ids"], part["completion_ids"]], 1),
                torch.cat([part["prompt_mask"], part["completion_mask"]], 1),
                part["completion_ids"].shape[1],
                **kwargs,
            )
            for number, values in enumerate(made[:2]):
                if values is None:
                    continue
                if whole[number] is None:
                    shape = (len(input_ids), logits_to_keep)
                    whole[number] = values.new_zeros(shape)
                whole[number][rows, : values.shape[1]] = values
        return tuple(whole)


@contextmanager
def local_collectives(accelerator):
    """Within it, `gather` and `reduce` return this process's own values.

    TRL makes these calls for its metrics in every pass. Parts of several processes are
    unlike: they have other numbers of rows, which `gather` would wait for forever.
    """
    accelerator.gather = lambda tensor: tensor
    accelerator.reduce = lambda tensor, reduction="sum", **_: tensor
    try:
        yield
    finally:
        del accelerator.gather
        del accelerator.reduce
