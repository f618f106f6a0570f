"""Owns the checks of a batch: its shape, and a mask against the ids."""

from kr1_utils.agent import Trajectory
from kr1_utils.profiles import Limits
from kr1_utils.protocol import ChatFormat


def check_batch(
    prompts: list[str], trajectories: list[Trajectory], limits: Limits
) -> None:
    """TRL does not check what a rollout returns, and drops lists that are too short:
    check it here.

    Raises:
        ValueError: unless there is one trajectory a prompt, in order, with ids, mask
            and log-probabilities of one length within the limits.
    """
    if len(prompts) != len(trajectories):
        raise ValueError(
            f"{len(trajectories)} trajectories came back for {len(prompts)} prompts."
        )
    for i, (prompt, t) in enumerate(zip(prompts, trajectories)):
        lengths = {len(t.completion_ids), len(t.loss_mask)} | (
            {len(t.logprobs)} if t.logprobs is not None else set()
        )
        if t.question["question"] != prompt:
            raise ValueError(
                f"Trajectory {i} answers another question than prompt {i}."
            )
        if len(lengths) != 1 or not t.completion_ids:
            raise ValueError(
                f"Trajectory {i} has ids, mask and log-probabilities of lengths"
                f" {lengths}."
            )
        if len(t.completion_ids) > limits.max_response_tokens:
            raise ValueError(
                f"Trajectory {i} has {len(t.completion_ids)} tokens, more than "
                f"max_response_tokens={limits.max_response_tokens}."
            )


def check_mask(ids: list[int], mask: list[int], tokenizer, chat: ChatFormat) -> None:
    """Refuse a mask that is inverted, or that trains on what the model did not write.

    It is checked against the text of the conversation alone, not against how it was
    built: after an end-of-turn token a user message and the next assistant header must
    be masked out.

    Raises:
        ValueError: naming the first token that is wrong.
    """
    header = tokenizer(chat.before_user, add_special_tokens=False)["input_ids"][:-1]
    opening = tokenizer(chat.after_user, add_special_tokens=False)["input_ids"]
    at = 0
    while at < len(ids):
        end = (
            ids.index(chat.end_of_turn, at)
            if chat.end_of_turn in ids[at:]
            else len(ids)
        )
        for i in range(at, end):
            if mask[i] != 1:
                raise ValueError(
                    f"The loss mask leaves out token {i}"
                    f" ({tokenizer.decode(ids[i])!r}), which the model sampled: is it"
                    " inverted?"
                )
        message = end + 1
        if ids[message : message + len(header)] != header:
            if message < len(ids):
                raise ValueError(
                    f"After the turn that ends at token {end} comes no user message."
                )
            return
        at = message
        while at < len(ids) and ids[at : at + len(opening)] != opening:
            at += 1
        at = min(at + len(opening), len(ids))
        for i in range(message, at):
            if mask[i] != 0:
                raise ValueError(
                    f"The loss mask trains on token {i} ({tokenizer.decode(ids[i])!r}),"
                    " which is part of an observation or a header."
                )
