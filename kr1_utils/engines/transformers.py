"""Owns generation with transformers, on a left-padded batch."""

import torch
from transformers.generation import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kr1_utils.engines.base import Generation, closes, closing_tokens
from kr1_utils.engines.cpu import register_grouped_attention, starting_cache

# tokens of each row in one pass, where nothing is kept: more would take more memory
PREFILL = 128


class TurnEnd(StoppingCriteria):
    """Stops a row at its end-of-turn token, right after a closing tag, or at its own
    limit.

    transformers' `stop_strings` has one limit for all rows; here the tokens that can
    close a tag are found once, and only then text is decoded. Row `i` sampled
    `length[i]` tokens: what follows is padding."""

    # tokens decoded to look for a closing tag; every tag is shorter than that in bytes
    tail = 16

    def __init__(
        self, tokenizer, end_of_turn: int, limits: list[int], prompt_length: int
    ):
        self.tokenizer, self.end_of_turn, self.start = (
            tokenizer,
            end_of_turn,
            prompt_length,
        )
        self.limits = torch.tensor(limits)
        self.length = [0] * len(limits)
        self.may_close = closing_tokens(tokenizer)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        last = input_ids[:, -1].cpu()
        done = (last == self.end_of_turn) | (step >= self.limits)
        may_close = self.may_close[last.clamp(max=len(self.may_close) - 1)]
        for i in torch.nonzero(may_close & ~done).flatten().tolist():
            if not self.length[i]:
                ids = input_ids[
                    i, max(self.start, input_ids.shape[1] - self.tail) :
                ].tolist()
                done[i] = closes(self.tokenizer, ids)
        for i in torch.nonzero(done).flatten().tolist():
            self.length[i] = self.length[i] or step
        return torch.tensor([n > 0 for n in self.length], device=input_ids.device)


class TransformersEngine:
    """Generates with `model.generate` on a left-padded batch.

    Keys and values of each conversation are kept until the next call, so that a turn
    computes only what was appended since the last one. Make a new engine when the
    weights have changed.

    Args:
        end_of_turn: the token id that ends an assistant message.
        temperature: 0 for greedy.
        batch_size: rows generated together.
        keep_cache: from turn to turn; None does so on a CPU only, for on a GPU memory
            is scarcer than time.
    """

    def __init__(
        self,
        model,
        tokenizer,
        end_of_turn: int,
        temperature: float = 1.0,
        batch_size: int = 64,
        keep_cache: bool | None = None,
    ):
        self.model, self.tokenizer, self.end_of_turn = model, tokenizer, end_of_turn
        self.temperature, self.batch_size = temperature, batch_size
        self.keep_cache = (
            model.device.type == "cpu" if keep_cache is None else keep_cache
        )
        self.at_once = None if self.keep_cache else PREFILL  # tokens
        self.window = getattr(model.config, "max_position_embeddings", None)  # tokens
        self.kept: dict[
            tuple[int, ...], list
        ] = {}  # ids -> [(keys, values) (heads, T, width) a layer]
        # tokens computed so far: of prompts, sampled, padding, and rows already
        # finished
        self.computed = 0

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """One turn for each prompt: at most `max_new_tokens[i]` ids, ending where the
        turn ends."""
        out: list[Generation] = []
        known, self.kept = self.kept, {}
        for start in range(0, len(prompt_ids), self.batch_size):
            rows = slice(start, start + self.batch_size)
            out += self._batch(prompt_ids[rows], max_new_tokens[rows], known)
        return out

    @torch.no_grad()
    def _batch(
        self, prompts: list[list[int]], limits: list[int], known: dict
    ) -> list[Generation]:
        device, pad = self.model.device, self.tokenizer.pad_token_id
        lengths = sorted({len(ids) for ids in known}, reverse=True)
        done = [
            next((n for n in lengths if n < len(p) and tuple(p[:n]) in known), 0)
            for p in prompts
        ]
        past, new = max(done), max(len(p) - n for p, n in zip(prompts, done))
        # Each row: padding, what is known already, padding, what is new.
        ids = torch.tensor(
            [
                [pad] * (past - n) + p[:n] + [pad] * (new - len(p) + n) + p[n:]
                for p, n in zip(prompts, done)
            ],
            device=device,
        )  # (B, past + new)
        attention = torch.tensor(
            [
                [0] * (past - n)
                + [1] * n
                + [0] * (new - len(p) + n)
                + [1] * (len(p) - n)
                for p, n in zip(prompts, done)
            ],
            device=device,
        )
        turn_end = TurnEnd(self.tokenizer, self.end_of_turn, limits, past + new)
        # what is not given here, a model's own generation_config.json fills in
        config = GenerationConfig(
            max_new_tokens=max(limits),
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            top_k=0 if self.temperature else 50,
            top_p=1.0,
            repetition_penalty=1.0,
            pad_token_id=pad,
            eos_token_id=self.end_of_turn,
            return_dict_in_generate=True,
            prefill_chunk_size=self.at_once,
        )
        cache = starting_cache(
            self.model.config.num_hidden_layers,
            past + new + max(limits),
            [known.get(tuple(p[:n])) for p, n in zip(prompts, done)],
            past,
        )
        was_training, attention_before = (
            self.model.training,
            self.model.config._attn_implementation,
        )
        self.model.eval()
        if device.type == "cpu" and attention_before == "sdpa":
            self.model.set_attn_implementation(register_grouped_attention())
        try:
            made = self.model.generate(
                ids,
                attention_mask=attention,
                generation_config=config,
                past_key_values=cache,
                synced_gpus=False,  # no process waits here
                stopping_criteria=StoppingCriteriaList([turn_end]),
            )
        finally:
            self.model.train(was_training)
            self.model.set_attn_implementation(attention_before)
        self.computed += made.sequences[
            :, past:-1
        ].numel()  # the last one is not looked at
        sampled = [
            row[:n]
            for row, n in zip(made.sequences[:, past + new :].tolist(), turn_end.length)
        ]
        if self.keep_cache:
            self._keep(prompts, sampled, attention.bool(), made.past_key_values)
        return [Generation(s) for s in sampled]

    def _keep(self, prompts, sampled, attention: torch.Tensor, cache) -> None:
        """Remember each row's keys and values without its padding."""
        steps = (
            cache.get_seq_length() - attention.shape[1]
        )  # the last token was sampled, not computed
        for i, (prompt, said) in enumerate(zip(prompts, sampled)):
            said = said[:steps]
            rest = torch.arange(steps, device=attention.device) < len(said)
            real = torch.cat([attention[i], rest])
            self.kept[tuple(prompt + said)] = [
                (layer.keys[i][:, real], layer.values[i][:, real])
                for layer in cache.layers
            ]
