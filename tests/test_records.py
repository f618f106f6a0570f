"""What is written down of a conversation is what was said and read, token by token."""

import math

import pytest
from helpers import ANSWER, SEARCH, THINK, Babbler, Shelf, any_limits
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import protocol
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.profiles import Limits
from kr1_utils.records import conversation, rounded, token_lengths

LIMITS = Limits(3, 2, 60, 120, 700)


def converse(tokenizer, turns, logprobs=False):
    """The trajectory of a conversation in which the model says `turns`."""
    if logprobs:
        ids = [tokenizer(turn, add_special_tokens=False)["input_ids"] for turn in turns]
        engine = Babbler(tokenizer, {"Q?": ids}, "S", logprobs=True)
    else:
        engine = ScriptedEngine(tokenizer, {"Q?": turns})
    asked = [{"question": "Q?"}]
    return rollout(engine, tokenizer, Shelf(), asked, LIMITS, "S")[0]


def test_conversation_holds_what_was_said_and_what_came_back(tokenizer):
    record = conversation(converse(tokenizer, [SEARCH, "", ANSWER]), tokenizer)
    assert record["question"] == "Q?"
    assert record["turns"] == [SEARCH, "", ANSWER]
    found, correction = record["observations"]
    assert found.split() == (
        f"<context>\n{protocol.render_context(Shelf().passages[:2])}\n</context>".split()
    )
    assert correction.strip() == protocol.CORRECTION
    assert set(record) == {"question", "turns", "observations"}


def test_nothing_comes_back_after_the_last_turn(tokenizer):
    record = conversation(converse(tokenizer, [SEARCH] * 4), tokenizer)
    assert len(record["turns"]) == 4
    assert len(record["observations"]) == 3


def test_every_sampled_token_has_its_log_probability_and_its_piece_of_the_text(
    tokenizer,
):
    said = [SEARCH, "", f"{THINK} Dara"]
    trajectory = converse(tokenizer, said, logprobs=True)
    record = conversation(trajectory, tokenizer)
    # Babbler's are −1, −2, … over the sampled tokens.
    numbers = [number for turn in record["logprobs"] for number in turn]
    assert numbers == [-float(n + 1) for n in range(trajectory.sampled_length)]
    for text, lengths, logprobs in zip(
        record["turns"], record["token_lengths"], record["logprobs"], strict=True
    ):
        assert len(lengths) == len(logprobs)
        assert sum(lengths) == len(text)


def test_token_that_ends_a_turn_is_none_of_its_text(tokenizer, chat):
    end = tokenizer.decode([chat.end_of_turn])
    trajectory = converse(tokenizer, [f"{THINK}{end}"], logprobs=True)
    record = conversation(trajectory, tokenizer)
    assert record["turns"][0] == THINK
    assert record["token_lengths"][0][-1] == 0
    assert sum(record["token_lengths"][0]) == len(THINK)


def test_log_probabilities_of_others_take_the_place_of_the_trajectorys(tokenizer):
    trajectory = converse(tokenizer, [ANSWER])
    assert "logprobs" not in conversation(trajectory, tokenizer)
    given_ones = [-0.12345 * mask for mask in trajectory.loss_mask]
    record = conversation(trajectory, tokenizer, given_ones)
    assert record["logprobs"] == [[-0.123] * trajectory.sampled_length]


@given(data=st.data())
def test_any_conversation_is_written_down_whole(data, tokenizer, chat):
    ids = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    turns = data.draw(st.lists(ids, max_size=4))
    limits = data.draw(any_limits(shortest_message(tokenizer, chat)))
    engine = Babbler(
        tokenizer, {"Q?": turns}, "S", answer_now=limits.max_turns == 0, logprobs=True
    )
    asked = [{"question": "Q?"}]
    trajectory = rollout(engine, tokenizer, Shelf(), asked, limits, "S")[0]
    record = conversation(trajectory, tokenizer)
    assert len(record["observations"]) == len(record["turns"]) - 1
    assert sum(map(len, record["logprobs"])) == trajectory.sampled_length
    for text, lengths in zip(record["turns"], record["token_lengths"], strict=True):
        assert sum(lengths) == len(text)


def shortest_message(tokenizer, chat):
    """Tokens of the longest of the shortest messages that ask for the answer."""
    correction = protocol.correction_ids(tokenizer, chat, answer_now=True)
    empty = protocol.observation_ids(tokenizer, chat, [], 10**6, answer_now=True)
    return max(len(correction), len(empty))


@pytest.mark.parametrize("text", ["Łódź 東京 <think> x</think>", " a", "", "\n\n"])
def test_lengths_of_tokens_add_up_to_the_text(text, tokenizer, smollm2_tokenizer):
    for each in (tokenizer, smollm2_tokenizer):
        ids = each(text, add_special_tokens=False)["input_ids"]
        lengths = token_lengths(each, ids)
        assert len(lengths) == len(ids)
        assert sum(lengths) == len(each.decode(ids))
        assert all(length >= 0 for length in lengths)


def test_characters_of_several_tokens_count_once(smollm2_tokenizer):
    ids = smollm2_tokenizer("東", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert sum(token_lengths(smollm2_tokenizer, ids)) == 1


@pytest.mark.parametrize(
    "number, written", [(-0.12345, -0.123), (-0.0001, 0.0), (math.nan, None)]
)
def test_numbers_are_written_short_and_as_json_has_them(number, written):
    assert rounded(number) == written
    assert str(rounded(number)) != "-0.0"
