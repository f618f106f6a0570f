"""A batch of the wrong shape, or a mask that trains on the wrong tokens, is refused."""

import pytest
from helpers import ANSWER, ROOMY, SEARCH, Babbler, Shelf, any_limits, any_scripts
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import protocol
from kr1_utils.agent import ScriptedEngine, check_limits, rollout
from kr1_utils.checks import check_batch, check_mask
from kr1_utils.profiles import Limits


def scripted(tokenizer, texts, question="Q?"):
    engine = ScriptedEngine(tokenizer, {question: texts})
    asked = [{"question": question}]
    return rollout(engine, tokenizer, Shelf(), asked, ROOMY, "S")[0]


@pytest.fixture
def good(tokenizer):
    return scripted(tokenizer, [SEARCH, "no tag", ANSWER])


@given(st.data())
def test_checks_accept_whatever_a_rollout_makes(tokenizer, chat, data):
    limits = data.draw(any_limits(check_limits(ROOMY, tokenizer, chat)))
    scripts = {
        f"Question {number}?": [protocol.encode(tokenizer, turn) for turn in turns]
        for number, turns in enumerate(data.draw(any_scripts))
    }
    answer_now = limits.max_turns == 0
    logprobs = data.draw(st.booleans())
    engine = Babbler(tokenizer, scripts, "S", answer_now, logprobs)
    asked = [{"question": question} for question in scripts]
    trajectories = rollout(engine, tokenizer, Shelf(), asked, limits, "S")
    check_batch(list(scripts), trajectories, limits)
    for t in trajectories:
        check_mask(t.completion_ids, t.loss_mask, tokenizer, chat)


@given(any_scripts)
def test_inverted_mask_of_a_model_that_spoke_is_refused(tokenizer, chat, scripts):
    turns = ["x" + text for text in scripts[0]] or [ANSWER]
    t = scripted(tokenizer, turns)
    inverted = [1 - m for m in t.loss_mask]
    with pytest.raises(ValueError, match="is it inverted"):
        check_mask(t.completion_ids, inverted, tokenizer, chat)


def test_any_appended_token_that_is_trained_on_is_refused(good, tokenizer, chat):
    appended = [i for i, m in enumerate(good.loss_mask) if m == 0]
    # Where the model's turn ends, the end-of-turn token may also be sampled.
    ends = {
        i
        for i in appended
        if good.completion_ids[i] == chat.end_of_turn and good.loss_mask[i - 1] == 1
    }
    assert len(ends) == 3 and len(appended) > 60
    for i in sorted(set(appended) - ends):
        mask = [*good.loss_mask[:i], 1, *good.loss_mask[i + 1 :]]
        message = f"trains on token {i} .*observation or a header"
        with pytest.raises(ValueError, match=message):
            check_mask(good.completion_ids, mask, tokenizer, chat)


def test_any_sampled_token_that_is_left_out_is_refused(good, tokenizer, chat):
    for i in [i for i, m in enumerate(good.loss_mask) if m == 1]:
        mask = [*good.loss_mask[:i], 0, *good.loss_mask[i + 1 :]]
        with pytest.raises(ValueError, match=f"leaves out token {i} "):
            check_mask(good.completion_ids, mask, tokenizer, chat)


def test_mask_that_trains_on_everything_is_refused(good, tokenizer, chat):
    with pytest.raises(ValueError, match="observation or a header"):
        check_mask(good.completion_ids, [1] * len(good.loss_mask), tokenizer, chat)


def test_mask_shifted_by_one_is_refused(good, tokenizer, chat):
    for mask in ([0, *good.loss_mask[:-1]], [*good.loss_mask[1:], 0]):
        with pytest.raises(ValueError, match="loss mask"):
            check_mask(good.completion_ids, mask, tokenizer, chat)


def test_turns_without_a_message_between_them_are_refused(tokenizer, chat):
    ids = protocol.encode(tokenizer, f"{SEARCH}<|im_end|>{ANSWER}<|im_end|>")
    with pytest.raises(ValueError, match="No user message follows"):
        check_mask(ids, [1] * len(ids), tokenizer, chat)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.completion_ids.append(5), "of lengths"),
        (lambda t: t.loss_mask.pop(), "of lengths"),
        (lambda t: setattr(t, "logprobs", [0.0]), "of lengths"),
        (lambda t: (t.completion_ids.clear(), t.loss_mask.clear()), "of lengths"),
        (
            lambda t: t.question.update(question="Another?"),
            "answers another question than prompt 1",
        ),
    ],
    ids=["longer ids", "shorter mask", "one logprob", "empty", "another question"],
)
def test_batch_with_one_bad_row_is_refused(tokenizer, change, message):
    rows = [scripted(tokenizer, [ANSWER]), scripted(tokenizer, [ANSWER], "R?")]
    check_batch(["Q?", "R?"], rows, ROOMY)
    change(rows[1])
    with pytest.raises(ValueError, match=message):
        check_batch(["Q?", "R?"], rows, ROOMY)


def test_rows_in_another_order_or_number_are_refused(tokenizer):
    rows = [scripted(tokenizer, [ANSWER]), scripted(tokenizer, [ANSWER], "R?")]
    with pytest.raises(ValueError, match="Trajectory 0 answers another question"):
        check_batch(["Q?", "R?"], rows[::-1], ROOMY)
    with pytest.raises(ValueError, match="1 trajectories came back for 2 prompts"):
        check_batch(["Q?", "R?"], rows[:1], ROOMY)


def test_row_beyond_the_limit_is_refused(good):
    tokens = len(good.completion_ids)
    check_batch(["Q?"], [good], Limits(3, 2, 60, 120, tokens))
    with pytest.raises(ValueError, match="more than max_response_tokens"):
        check_batch(["Q?"], [good], Limits(3, 2, 60, 120, tokens - 1))
