"""Owns what an engine is: token ids in, token ids out, cut where the turn ends."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from kr1_utils.protocol import CLOSING


@dataclass
class Generation:
    """One sampled turn: its token ids, and their log-probabilities if there are any."""

    # (T,), where T is the number of sampled tokens.
    ids: list[int]
    # (T,) natural logarithms, or None if the engine has none.
    logprobs: list[float] | None = None


class Engine(Protocol):
    """What the agent loop asks of an engine. Anything with this method is one.

    An engine may also have a `window`: how many tokens a prompt and its whole response
    may have together. Questions that may not fit it are then not asked.
    """

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """Write one turn for each prompt.

        Args:
            prompt_ids: one list of token ids per prompt; lengths differ.
            max_new_tokens: one limit per prompt, in tokens.

        Returns:
            one generation per prompt, in order: no more tokens than its limit, and none
            after the end-of-turn token or the token that completes a closing tag.
        """
        ...


def closes(tokenizer, ids: list[int]) -> bool:
    """Whether the last token of `ids` (T,) completes one of the closing tags.

    That token may hold more than the end of the tag, for instance ">" and a newline.
    """
    text_before = tokenizer.decode(ids[:-1])
    text = tokenizer.decode(ids)
    return any(text.count(tag) > text_before.count(tag) for tag in CLOSING)


# Decoding a whole vocabulary takes a while, and an engine is made for every rollout.
@lru_cache(8)
def closing_tokens(tokenizer) -> tuple[bool, ...]:
    """(V + 1,): whether a token id holds a ">", and so may complete a closing tag.

    A model may have more ids than its tokenizer's V. They are unused, and the last
    entry, False, is for all of them.
    """
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    holds_the_end_of_a_tag = [">" in text for text in texts]
    return (*holds_the_end_of_a_tag, False)
