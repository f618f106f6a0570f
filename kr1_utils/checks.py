"""Owns the checks of a batch: its shape, and a mask against the ids."""

from kr1_utils import protocol
from kr1_utils.agent import Trajectory
from kr1_utils.profiles import Limits
from kr1_utils.protocol import ChatFormat


def check_batch(
    prompts: list[str], trajectories: list[Trajectory], limits: Limits
) -> None:
    """Check what a rollout gives to TRL, which drops lists that are too short.

    Args:
        prompts: the questions that were asked.
        trajectories: one per prompt, in order.

    Raises:
        ValueError: if one is missing or answers another question, if its ids, mask and
            log-probabilities differ in length or are empty, or if it is longer than
            `limits.max_response_tokens`.
    """
    if len(prompts) != len(trajectories):
        raise ValueError(
            f"{len(trajectories)} trajectories came back for {len(prompts)} prompts."
        )
    for number, (prompt, trajectory) in enumerate(zip(prompts, trajectories)):
        if trajectory.question["question"] != prompt:
            raise ValueError(
                f"Trajectory {number} answers another question than prompt {number}."
            )
        lengths = {len(trajectory.completion_ids), len(trajectory.loss_mask)}
        if trajectory.logprobs is not None:
            lengths.add(len(trajectory.logprobs))
        if len(lengths) != 1 or not trajectory.completion_ids:
            raise ValueError(
                f"Trajectory {number} has ids, mask and log-probabilities of lengths"
                f" {lengths}."
            )
        tokens = len(trajectory.completion_ids)
        if tokens > limits.max_response_tokens:
            raise ValueError(
                f"Trajectory {number} has {tokens} tokens, more than "
                f"max_response_tokens={limits.max_response_tokens}."
            )


def check_mask(ids: list[int], mask: list[int], tokenizer, chat: ChatFormat) -> None:
    """Refuse a mask that is inverted, or that trains on what the model did not write.

    The mask is compared with the text of the conversation, not with how it was built:
    after each end-of-turn token, a user message and the next assistant header must be
    masked out, and everything else must not be. The end-of-turn token itself may be the
    model's or ours.

    Args:
        ids: (T,) a completion, from the first token of the first assistant turn.
        mask: (T,) 1 for what the model sampled, 0 for what was appended.

    Raises:
        ValueError: naming the first token that is wrong.
    """
    # The last token of what comes before a user message may join the message's first.
    user_header = protocol.ids_after_turn(tokenizer, chat, chat.before_user)[:-1]
    assistant_header = protocol.encode(tokenizer, chat.after_user)
    position = 0
    while position < len(ids):
        turn_end = _find([chat.end_of_turn], ids, position)
        _refuse_unless_sampled(ids, mask, position, turn_end, tokenizer)
        message = turn_end + 1
        if message >= len(ids):
            return
        if ids[message : message + len(user_header)] != user_header:
            raise ValueError(
                f"No user message follows the turn that ends at token {turn_end}."
            )
        header = _find(assistant_header, ids, message)
        position = min(header + len(assistant_header), len(ids))
        _refuse_unless_masked(ids, mask, message, position, tokenizer)


def _find(wanted: list[int], ids: list[int], start: int) -> int:
    """Where `wanted` begins in `ids` at or after `start`; the length of `ids` if it
    does not."""
    for position in range(start, len(ids)):
        if ids[position : position + len(wanted)] == wanted:
            return position
    return len(ids)


def _refuse_unless_sampled(
    ids: list[int], mask: list[int], start: int, end: int, tokenizer
) -> None:
    for position in range(start, end):
        if mask[position] != 1:
            raise ValueError(
                f"The loss mask leaves out token {position}"
                f" ({tokenizer.decode(ids[position])!r}), which the model sampled: is"
                " it inverted?"
            )


def _refuse_unless_masked(
    ids: list[int], mask: list[int], start: int, end: int, tokenizer
) -> None:
    for position in range(start, end):
        if mask[position] != 0:
            raise ValueError(
                f"The loss mask trains on token {position}"
                f" ({tokenizer.decode(ids[position])!r}), which is part of an"
                " observation or a header."
            )
