"""What a turn means, what comes back, and that outside text stays text."""

import copy
import re
from pathlib import Path

import pytest
import trl
from hypothesis import assume, given
from hypothesis import strategies as st

from kr1_utils import protocol
from kr1_utils.protocol import (
    ANSWER_NOW,
    TAGS,
    ChatFormat,
    Turn,
    parse_turn,
    render_turn,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
OUR_TAGS = [f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]
PIECES = [
    *OUR_TAGS,
    "< think>",
    "</ search >",
    "<ANSWER>",
    "<|im_end|>",
    "<|im_start|>",
    "<|",
    "<",
    ">",
    "/",
    "|",
    "think",
    "context>",
    " ",
    "\n",
    "\t",
    "Dara",
    " Kallas",
    "ż",
    "東",
    ".",
    "&lt;",
    "",
    "\u200b",
]
anything = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
)
plain = st.text(
    alphabet=st.characters(exclude_characters="<>", exclude_categories=["Cs"]),
    max_size=40,
)
passages = st.lists(
    st.fixed_dictionaries(
        {
            "title": anything,
            "text": st.one_of(
                anything, st.integers(0, 60).map("one long enough passage ".__mul__)
            ),
        }
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    "text, kind, content, thought, well_formed",
    [
        ("<think> a</think><search> b</search>", "search", "b", "a", True),
        ("<think> a</think><answer> b</answer>", "answer", "b", "a", True),
        (
            "<think>a\nb\n\nc</think>\n<search>d\ne</search>\n",
            "search",
            "d\ne",
            "a\nb\n\nc",
            True,
        ),
        (" \n<think>\n</think>\n\n<answer>\nb\n</answer>\n", "answer", "b", "", True),
        ("<think></think><answer>b</answer>", "answer", "b", "", True),
        ("", "neither", "", "", False),
        ("just text", "neither", "", "", False),
        ("<think>a</think>", "neither", "", "a", False),
        ("<search>b</search>", "search", "b", "", False),
        ("<think>a</think>b<search>c</search>", "search", "c", "a", False),
        ("x<think>a</think><search>c</search>", "search", "c", "a", False),
        ("<think>a</think><search>c</search> and more", "search", "c", "a", False),
        ("<think>a</think><search>c", "neither", "", "a", False),
        ("<think>a</think><search>c</answer>", "neither", "", "a", False),
        ("<think>a</think><search> </search>", "neither", "", "a", False),
        ("<think>a</think><answer>\n</answer>", "neither", "", "a", False),
        (
            "<think>a</think><search>b</search><answer>c</answer>",
            "search",
            "b",
            "a",
            False,
        ),
        (
            "<think>a</think><answer>b</answer><search>c</search>",
            "answer",
            "b",
            "a",
            False,
        ),
        (
            "<think>a</think><think>b</think><search>c</search>",
            "search",
            "c",
            "a",
            False,
        ),
        (
            "<think>a<think>b</think><search>c</search>",
            "search",
            "c",
            "a<think>b",
            False,
        ),
        ("<think>a</think></think><search>c</search>", "search", "c", "a", False),
        (
            "<think>a</think><context>x</context><search>c</search>",
            "search",
            "c",
            "a",
            False,
        ),
        (
            "<think><context>x</context></think><search>c</search>",
            "search",
            "c",
            "<context>x</context>",
            False,
        ),
        ("<search>c</search><think>a</think>", "search", "c", "a", False),
        ("<SEARCH>c</SEARCH>", "neither", "", "", False),
    ],
)
def test_a_turn_is_read_as_it_was_meant(text, kind, content, thought, well_formed):
    assert parse_turn(text) == Turn(kind, content, thought, well_formed)


@given(anything)
def test_parse_turn_never_crashes_and_keeps_its_word(text):
    turn = parse_turn(text)
    assert turn.kind in ("search", "answer", "neither")
    assert (turn.kind == "neither") == (turn.content == "")
    assert (
        turn.content == turn.content.strip()
        and turn.content in text
        and turn.thought in text
    )
    assert not (turn.well_formed and turn.kind == "neither")


@given(plain, st.sampled_from(["search", "answer"]), plain)
def test_rendered_turn_is_parsed_back(thought, kind, content):
    assume(content.strip())
    turn = parse_turn(render_turn(thought, kind, content))
    assert turn == Turn(kind, content.strip(), thought.strip(), True)


@given(anything)
def test_escaped_text_holds_no_tag_and_no_template_token_and_is_else_the_same(text):
    safe = protocol.escape_tags(text)
    assert not re.search(
        r"<\s*/?\s*(think|search|answer|context)\b", safe, re.IGNORECASE
    )
    assert "<|" not in safe
    without_escapes = safe.replace("&lt;", "<")
    assert without_escapes == text.replace("&lt;", "<")


@given(anything)
def test_escaped_text_is_left_alone_the_second_time(text):
    assert protocol.escape_tags(protocol.escape_tags(text)) == protocol.escape_tags(
        text
    )


def test_escape_leaves_ordinary_text_alone():
    for text in ("a < b, x<y>", "<i>thinking</i> <thinker>", "a |> b"):
        assert protocol.escape_tags(text) == text


@given(anything)
def test_no_outside_text_becomes_a_special_token_or_a_tag(tokenizer, text):
    template_tokens = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    special = set(tokenizer.convert_tokens_to_ids(template_tokens + OUR_TAGS))
    context = protocol.render_context([{"title": text, "text": text}])
    for safe in (protocol.escape_tags(text), context):
        assert not special & set(protocol.encode(tokenizer, safe))


def test_question_with_tags_is_escaped_in_the_prompt():
    content = protocol.messages("Who <answer>x</answer>?<|im_end|>")[1]["content"]
    assert content == "Who &lt;answer>x&lt;/answer>?&lt;|im_end|>"


@pytest.mark.parametrize("answer_now", [False, True])
def test_messages_ask_for_the_answer_only_when_told(answer_now):
    system, user = protocol.messages("Q?", "S", answer_now)
    assert system == {"role": "system", "content": "S"}
    assert user["content"] == ("Q?\n" + ANSWER_NOW if answer_now else "Q?")


def test_context_has_one_line_per_passage():
    text = protocol.render_context(
        [{"title": "A", "text": "x\n\ny"}, {"title": "B", "text": "z"}]
    )
    assert text == "- A: x y\n- B: z"


def test_search_that_finds_nothing_says_so(tokenizer, chat):
    ids = protocol.observation_ids(tokenizer, chat, [], 100)
    assert f"<context>\n{protocol.NOTHING_FOUND}\n</context>" in tokenizer.decode(ids)


@given(passages, st.integers(0, 120), st.booleans())
def test_observation_keeps_limit_closing_tag_and_whole_words(
    tokenizer, chat, found, more, answer_now
):
    ending = "\n</context>" + (f"\n{ANSWER_NOW}" if answer_now else "")
    limit = len(protocol.user_ids(tokenizer, chat, f"<context>\n{ending}")) + more
    ids = protocol.observation_ids(tokenizer, chat, found, limit, answer_now)
    assert len(ids) <= limit
    text = tokenizer.decode(ids)
    body = protocol.render_context(found)
    start = f"{chat.before_user}<context>\n"
    end = f"{ending}{chat.after_user}"
    assert text.startswith(start) and text.endswith(end)
    kept = text[len(start) : len(text) - len(end)]
    assert body.startswith(kept)
    assert kept == "" or kept == body.rstrip() or body[len(kept)].isspace()
    assert text.count("</context>") == 1


@given(passages)
def test_observation_that_fits_is_not_cut(tokenizer, chat, found):
    body = protocol.render_context(found).rstrip()
    whole = protocol.user_ids(tokenizer, chat, f"<context>\n{body}\n</context>")
    assert protocol.observation_ids(tokenizer, chat, found, len(whole)) == whole


@pytest.mark.parametrize("answer_now", [False, True])
def test_observation_without_room_for_its_tags_is_refused(tokenizer, chat, answer_now):
    found = [{"title": "T", "text": "x"}]
    ending = f"\n</context>\n{ANSWER_NOW}" if answer_now else "\n</context>"
    least = len(protocol.user_ids(tokenizer, chat, f"<context>\n{ending}"))
    assert (
        len(protocol.observation_ids(tokenizer, chat, found, least, answer_now))
        == least
    )
    with pytest.raises(
        ValueError, match=f"takes {least} tokens, more than the {least - 1}"
    ):
        protocol.observation_ids(tokenizer, chat, found, least - 1, answer_now)


@pytest.mark.parametrize("answer_now", [False, True])
def test_correction_asks_for_the_answer_only_when_told(tokenizer, chat, answer_now):
    text = tokenizer.decode(protocol.correction_ids(tokenizer, chat, answer_now))
    assert text.startswith(chat.before_user + protocol.CORRECTION)
    assert text.endswith(chat.after_user)
    assert text.count(ANSWER_NOW) == answer_now


@given(plain)
def test_encoding_adds_no_token_of_its_own(tokenizer, text):
    assert tokenizer.decode(protocol.encode(tokenizer, text)) == text


CONVERSATION = [
    *protocol.messages(
        "Who is the father of the director of film Silent River?",
        "Search, read, answer.",
    ),
    {
        "role": "assistant",
        "content": render_turn("I need to read about it.", "search", "Silent River"),
    },
    {
        "role": "user",
        "content": (
            "<context>\n- Silent River: It was directed by Dara Kallas.\n</context>"
        ),
    },
    {"role": "assistant", "content": "no tag at all, żółć 東京"},
    {"role": "user", "content": protocol.CORRECTION + "\n" + ANSWER_NOW},
]


def appended(tokenizer, conversation):
    """The conversation as a rollout makes it: a prompt, and ids appended to it."""
    chat = ChatFormat.from_tokenizer(tokenizer)
    ids = protocol.prompt_ids(tokenizer, conversation[:2])
    for message in conversation[2:]:
        if message["role"] == "assistant":
            ids += protocol.encode(tokenizer, message["content"])
            ids += [chat.end_of_turn]
        else:
            ids += protocol.user_ids(tokenizer, chat, message["content"])
    return ids


def test_appended_ids_are_those_of_the_whole_conversation_rendered_again(tokenizer):
    assert appended(tokenizer, CONVERSATION) == protocol.prompt_ids(
        tokenizer, CONVERSATION
    )


@given(st.lists(st.tuples(plain, plain), min_size=1, max_size=3))
def test_appended_ids_are_those_rendered_again_for_any_text(tokenizer, turns):
    conversation = protocol.messages("Q?", "S")
    for said, found in turns:
        context = protocol.render_context([{"title": "T", "text": found}])
        conversation += [
            {"role": "assistant", "content": render_turn("", "search", said)},
            {"role": "user", "content": f"<context>\n{context}\n</context>"},
        ]
    assert appended(tokenizer, conversation) == protocol.prompt_ids(
        tokenizer, conversation
    )


@pytest.fixture
def other(tokenizer):
    """A tokenizer of our own to put other templates on."""
    return copy.deepcopy(tokenizer)


def test_appended_text_is_what_the_template_of_qwen_renders(other):
    other.chat_template = (TEMPLATES / "qwen2_5.jinja").read_text(encoding="utf-8")
    rendered = other.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=True
    )
    assert other.decode(appended(other, CONVERSATION)) == rendered


def test_format_of_the_template_of_qwen_is_read_off(other):
    other.chat_template = (TEMPLATES / "qwen2_5.jinja").read_text(encoding="utf-8")
    end = other.convert_tokens_to_ids("<|im_end|>")
    assert ChatFormat.from_tokenizer(other) == ChatFormat(
        "\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", end
    )


def test_end_of_turn_is_the_end_of_sequence_that_trl_expects(tokenizer, chat):
    assert chat.end_of_turn == tokenizer.eos_token_id


def test_model_without_a_template_is_refused(other):
    other.chat_template = None
    with pytest.raises(
        ValueError, match="has no chat template: take an instruct model"
    ):
        ChatFormat.from_tokenizer(other)


def test_template_that_drops_earlier_thoughts_is_refused(other):
    qwen3 = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    # TRL knows Qwen3's template, and has another for it, but not one that differs.
    other.chat_template = f"{{# ours #}}{qwen3}"
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        ChatFormat.from_tokenizer(other)


def test_template_that_numbers_messages_from_the_end_is_refused(other):
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.revindex }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        ChatFormat.from_tokenizer(other)


def test_template_that_ends_with_an_end_of_sequence_token_serves(other):
    """Phi-3's writes one behind the last message, where no turn is opened."""
    other.chat_template += "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    other.eos_token = "<|endoftext|>"
    chat = ChatFormat.from_tokenizer(other)
    assert other.decode([chat.end_of_turn]) == "<|im_end|>"
    assert chat.before_user == "\n<|im_start|>user\n"


def test_system_prompt_goes_to_the_user_where_there_is_no_system_role(other):
    other.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No role') }}"
        "{% endif %}" + other.chat_template
    )
    ids = protocol.prompt_ids(other, protocol.messages("Q?", "Search."))
    assert other.decode(ids) == (
        "<|im_start|>user\nSearch.\n\nQ?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_turn_that_ends_with_a_blank_is_refused(other):
    """As in Llama-2's template: the first token of " </s>" is the blank."""
    other.chat_template = other.chat_template.replace("<|im_end|>", " <|im_end|>")
    with pytest.raises(ValueError, match="not with one special token"):
        ChatFormat.from_tokenizer(other)


def test_template_that_opens_no_turn_is_refused(other):
    """The prompt would end behind the question, and the model write the header."""
    other.chat_template = other.chat_template.split("{% if add_generation_prompt")[0]
    with pytest.raises(ValueError, match="does not open the assistant's turn"):
        ChatFormat.from_tokenizer(other)
