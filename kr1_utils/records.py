"""Owns what is written down of a conversation: what was said, read, and how surely."""

import math

from kr1_utils.agent import Trajectory
from kr1_utils.protocol import ChatFormat
from kr1_utils.views import writers


def conversation(
    trajectory: Trajectory, tokenizer, logprobs: list[float] | None = None
) -> dict:
    """A conversation as trajectories.jsonl and predictions.jsonl keep it.

    Args:
        tokenizer: the one that made the ids.
        logprobs: (T,) of the completion's tokens; the trajectory's own if not given.

    Returns:
        `question`; `turns`, the text of each; `observations`, what came back after each
        turn but the last, as the model read it. Where log-probabilities are known, also
        `token_lengths` and `logprobs`: for each turn a list over its sampled tokens,
        the end-of-turn token included. A length counts characters of the turn's text;
        what the template opened of a turn comes before them.
    """
    sampled, messages = _places(trajectory, tokenizer)
    record = {
        "question": trajectory.question["question"],
        "turns": trajectory.texts,
        "observations": [tokenizer.decode(ids) for ids in messages],
    }
    logprobs = trajectory.logprobs if logprobs is None else logprobs
    if logprobs:
        end_of_turn = ChatFormat.from_tokenizer(tokenizer).end_of_turn
        record["token_lengths"] = []
        record["logprobs"] = []
        for places in sampled:
            ids = [trajectory.completion_ids[place] for place in places]
            record["token_lengths"].append(
                _lengths_of_turn(tokenizer, ids, end_of_turn)
            )
            record["logprobs"].append([rounded(logprobs[place]) for place in places])
    return record


def rounded(number: float, digits: int = 3) -> float | None:
    """A number as it is written down; None for NaN, which JSON does not have."""
    # Adding 0 makes 0.0 of -0.0.
    return None if math.isnan(number) else round(number, digits) + 0.0


def _places(
    trajectory: Trajectory, tokenizer
) -> tuple[list[list[int]], list[list[int]]]:
    """Where the sampled tokens of each turn lie, and the ids of each message after
    one."""
    chat = ChatFormat.from_tokenizer(tokenizer)
    names = writers(trajectory, chat, tokenizer)[len(trajectory.prompt_ids) :]
    sampled: list[list[int]] = [[] for _ in trajectory.texts]
    messages: list[list[int]] = []
    previous = ""
    for place, name in enumerate(names):
        if name == "observation":
            if previous != name:
                messages.append([])
            messages[-1].append(trajectory.completion_ids[place])
        elif trajectory.loss_mask[place]:
            turn = min(len(messages), len(sampled) - 1)
            sampled[turn].append(place)
        previous = name
    return sampled, messages


def _lengths_of_turn(tokenizer, ids: list[int], end_of_turn: int) -> list[int]:
    """Characters of each token; the token that ends the turn is none of its text."""
    if ids and ids[-1] == end_of_turn:
        return [*token_lengths(tokenizer, ids[:-1]), 0]
    return token_lengths(tokenizer, ids)


def token_lengths(tokenizer, ids: list[int]) -> list[int]:
    """How many characters each token adds to the text of them all.

    A character that several tokens share counts for one of them.
    """
    text = tokenizer.decode(ids)
    alone = [tokenizer.decode([token]) for token in ids]
    if "".join(alone) == text:
        return [len(piece) for piece in alone]
    # Some tokenizers drop a blank at the beginning, and of a character's bytes a token
    # may hold only some.
    lengths = []
    end = 0
    for count in range(1, len(ids) + 1):
        longer = len(text)
        if count < len(ids):
            longer = min(len(tokenizer.decode(ids[:count])), len(text))
        lengths.append(max(longer - end, 0))
        end = max(longer, end)
    return lengths
