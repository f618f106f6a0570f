"""TRL's tool loop is given our conversations, our search and our ends of turns."""

import copy
import types

import pytest
import torch
from helpers import ANSWER, SEARCH, Shelf
from trl.chat_template_utils import parse_response

from kr1_utils import protocol
from kr1_utils.bench import trl_tools
from kr1_utils.profiles import resolve

TINY = resolve("tiny")
MESSAGES = protocol.messages("Who was born in Merano?", TINY.system_prompt)


@pytest.fixture
def tool_tokenizer(tokenizer):
    """As `trl_tools` gives it to TRL."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = trl_tools.TOOL_TEMPLATE
    own.response_template = trl_tools.RESPONSE_TEMPLATE
    return own


def rendered(tokenizer, messages):
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_prompt_is_ours(tokenizer, tool_tokenizer):
    text = rendered(tool_tokenizer, MESSAGES)
    ids = protocol.prompt_ids(tokenizer, MESSAGES)
    assert tool_tokenizer.encode(text, add_special_tokens=False) == ids


def test_result_of_the_tool_is_appended_as_our_observation_is(tool_tokenizer):
    assistant = {"role": "assistant", "content": "Hm."}
    result = {"role": "tool", "content": "Dara Kallas was born in Merano."}
    before = rendered(tool_tokenizer, MESSAGES)
    after = rendered(tool_tokenizer, [*MESSAGES, assistant, result])
    assert after.startswith(before)
    observation = f"<|im_start|>user\n<context>\n{result['content']}\n</context>"
    assert observation in after


def test_a_search_is_read_as_a_call_of_the_tool(tool_tokenizer):
    prompt = tool_tokenizer.encode(rendered(tool_tokenizer, MESSAGES))
    turn = tool_tokenizer.encode(SEARCH, add_special_tokens=False)
    parsed = parse_response(tool_tokenizer, turn, prefix=prompt)
    (call,) = parsed["tool_calls"]
    assert call["function"]["name"] == "search"
    assert call["function"]["arguments"]["query"].strip() == "Dara"


def test_an_answer_is_no_call(tool_tokenizer):
    prompt = tool_tokenizer.encode(rendered(tool_tokenizer, MESSAGES))
    turn = tool_tokenizer.encode(ANSWER, add_special_tokens=False)
    assert not parse_response(tool_tokenizer, turn, prefix=prompt).get("tool_calls")


def test_what_the_tool_finds_is_cut_as_ours_is(tokenizer):
    long = {"id": "1", "title": "Merano", "text": "Merano is a town. " * 500}
    search = trl_tools.search_tool(tokenizer, Shelf([long]), TINY)
    text = search(" Merano ")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert 0 < len(ids) <= TINY.limits.max_observation_tokens
    assert "<context>" not in text and "</context>" not in text


def test_the_tool_searches_for_the_query_without_blanks_around_it(tokenizer):
    shelf = Shelf()
    trl_tools.search_tool(tokenizer, shelf, TINY)(" Dara ")
    assert shelf.calls == [["Dara"]]


def no_model():
    """Shows what `generate` is called with."""
    return types.SimpleNamespace(
        generation_config=types.SimpleNamespace(eos_token_id=None),
        generate=lambda **arguments: arguments,
    )


def test_closing_tags_that_are_tokens_end_a_turn(tool_tokenizer):
    model = no_model()
    end_of_turn = tool_tokenizer.eos_token_id
    trl_tools.end_turns_at_closing_tags(model, tool_tokenizer)
    closing = tool_tokenizer.convert_tokens_to_ids(list(protocol.CLOSING))
    assert model.generation_config.eos_token_id == [end_of_turn, *closing]
    assert model.generate() == {}


def test_closing_tags_that_are_text_end_a_turn(smollm2_tokenizer):
    model = no_model()
    own = copy.deepcopy(smollm2_tokenizer)
    trl_tools.end_turns_at_closing_tags(model, own)
    assert model.generate()["stop_strings"] == list(protocol.CLOSING)
    assert own.eos_token == smollm2_tokenizer.eos_token


def test_all_tokens_that_a_model_is_given_are_counted():
    class Model(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids

    model = Model()
    computed = trl_tools.count_tokens(model)
    model(input_ids=torch.zeros(2, 5))
    model(input_ids=torch.zeros(2, 1))
    assert sum(computed) == 12
