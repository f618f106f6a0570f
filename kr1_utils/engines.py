"""Owns generation: token ids in, token ids out, cut exactly where the turn ends."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from kr1_utils.protocol import CLOSING


@dataclass
class Generation:
    """What was sampled for one prompt: `ids` (T,), and `logprobs` (T,) where the engine has them."""

    ids: list[int]
    logprobs: list[float] | None = None


class TurnEnd(StoppingCriteria):
    """Stops a row at its end-of-turn token, right after a closing tag, or at its own limit.

    transformers' `stop_strings` has one limit for all rows and needs the tokenizer's vocabulary
    tables; here the few tokens that can close a tag are found once, and only then text is decoded.
    `length[i]` holds how many tokens row `i` sampled: what follows in the tensor is padding.
    """

    tail = 16  # tokens decoded to look for a closing tag; every tag is shorter than that in bytes

    def __init__(self, tokenizer, end_of_turn: int, limits: list[int], prompt_length: int):
        self.tokenizer, self.end_of_turn, self.start = tokenizer, end_of_turn, prompt_length
        self.limits = torch.tensor(limits)
        self.length = [0] * len(limits)
        self.may_close = closing_tokens(tokenizer)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        last = input_ids[:, -1].cpu()
        done = (last == self.end_of_turn) | (step >= self.limits)
        for i in torch.nonzero(self.may_close[last] & ~done).flatten().tolist():
            if not self.length[i]:
                ids = input_ids[i, max(self.start, input_ids.shape[1] - self.tail):].tolist()
                # The last token may hold more than the tag's end (">\n"), never less.
                before, text = self.tokenizer.decode(ids[:-1]), self.tokenizer.decode(ids)
                done[i] = any(text.count(tag) > before.count(tag) for tag in CLOSING)
        for i in torch.nonzero(done).flatten().tolist():
            self.length[i] = self.length[i] or step
        return torch.tensor([n > 0 for n in self.length], device=input_ids.device)


_CLOSING_TOKENS: WeakKeyDictionary = WeakKeyDictionary()  # tokenizer -> table


def closing_tokens(tokenizer) -> torch.Tensor:
    """(V,) bool: which tokens hold a '>' and so may complete a closing tag."""
    if tokenizer not in _CLOSING_TOKENS:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        _CLOSING_TOKENS[tokenizer] = torch.tensor([">" in t for t in texts])
    return _CLOSING_TOKENS[tokenizer]


class TransformersEngine:
    """Generates with `model.generate` on a left-padded batch.

    Args:
        end_of_turn: the token id that ends an assistant message.
        temperature: 0 for greedy.
        batch_size: rows generated together.
    """

    def __init__(self, model, tokenizer, end_of_turn: int, temperature: float = 1.0,
                 batch_size: int = 256):
        self.model, self.tokenizer, self.end_of_turn = model, tokenizer, end_of_turn
        self.temperature, self.batch_size = temperature, batch_size

    def generate(self, prompt_ids: list[list[int]], max_new_tokens: list[int]) -> list[Generation]:
        """One turn for each prompt: at most `max_new_tokens[i]` ids, ending where the turn ends."""
        out: list[Generation] = []
        for start in range(0, len(prompt_ids), self.batch_size):
            rows = slice(start, start + self.batch_size)
            out += self._batch(prompt_ids[rows], max_new_tokens[rows])
        return out

    @torch.no_grad()
    def _batch(self, prompt_ids: list[list[int]], limits: list[int]) -> list[Generation]:
        device = self.model.device
        width = max(map(len, prompt_ids))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompt_ids], device=device)  # (B, P)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=device)
        turn_end = TurnEnd(self.tokenizer, self.end_of_turn, limits, width)
        config = GenerationConfig(
            max_new_tokens=max(limits), do_sample=self.temperature > 0,
            temperature=self.temperature or None, top_k=0 if self.temperature else None,
            pad_token_id=pad, eos_token_id=None, bos_token_id=None)
        was_training = self.model.training
        self.model.eval()
        try:
            rows = self.model.generate(ids, attention_mask=attention, generation_config=config,
                                       stopping_criteria=StoppingCriteriaList([turn_end]))
        finally:
            self.model.train(was_training)
        new = rows[:, width:].tolist()
        return [Generation(r[:n]) for r, n in zip(new, turn_end.length)]
