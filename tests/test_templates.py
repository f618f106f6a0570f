"""Which chat templates can serve: each row of the table, with conversations."""

import builtins
import copy
import re
from pathlib import Path

import pytest
import trl
from helpers import Shelf
from transformers import AddedToken

from kr1_utils import protocol, rewards, templates, views
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.checks import check_mask
from kr1_utils.profiles import Limits
from kr1_utils.protocol import ChatFormat
from kr1_utils.templates import FAMILIES

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"

# Templates of families that TRL's package does not have, in a few lines each.
OTHERS = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "chatml_without_prompt": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}"
    ),
    # The system prompt stands in the latest user message, and so wanders.
    "mistral": (
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "phi4": (
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}"
        "<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
    ),
    # Without the switch, the thought is closed before the model writes.
    "deepseek_v3_1": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜></think>{{ m.content.split('</think>')[-1] }}"
        "{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>"
        "{{ '<think>' if thinking else '</think>' }}{% endif %}"
    ),
    "granite": (
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>"
        "{{ m.content }}<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|start_of_role|>assistant<|end_of_role|>{% endif %}"
    ),
    # Only what ends a turn is a special token: headers are text.
    "olmo2": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
        "{{ (eos_token if m.role == 'assistant' else '') + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token }}"
        "{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "vicuna": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ m.content + ' ' }}"
        "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "llama2": (
        "{% set start = 1 if messages[0].role == 'system' else 0 %}"
        "{% for m in messages[start:] %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' }}{% if loop.first and start %}"
        "{{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}{% endif %}"
        "{{ m.content + ' [/INST]' }}{% else %}"
        "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
        "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + m.content + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}
# Their headers are text.
WITHOUT_HEADER_TOKENS = ("olmo2", "zephyr", "llama2")
# Behind their headers stands a blank, which the model writes.
BLANK_FIRST = ("mistral", "vicuna")

SPECIAL = re.compile(
    r"<[|｜][^<>\s]+[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_\w+>|\[/?INST\]"
)
LIMITS = Limits(
    max_turns=2,
    top_k=2,
    max_turn_tokens=80,
    max_observation_tokens=200,
    max_response_tokens=900,
)
# As the templates that take a turn apart write it again.
SEARCH = "<think>\nI look.\n</think>\n\n<search> Dara</search>"
ANSWER = "<think>\nI read it.\n</think>\n\n<answer> Merano</answer>"
SYSTEM = "Search, read,\n\nanswer."
QUESTION = "Where was she born?"


def template_named(name):
    if name in OTHERS:
        return OTHERS[name]
    return (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_for(tokenizer, name):
    """The shipped tokenizer with a family's template and special tokens."""
    template = template_named(name)
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    if name not in WITHOUT_HEADER_TOKENS:
        tokens = sorted(set(SPECIAL.findall(template)))
        made.add_tokens(tokens, special_tokens=True)
    made.chat_template = template
    return made


def serving():
    return [
        pytest.param(family, name, id=name)
        for family in FAMILIES
        for name in family.templates
        if not family.refused
    ]


def refused():
    return [
        pytest.param(family, name, id=name)
        for family in FAMILIES
        for name in family.templates
        if family.refused
    ]


def converse(tokenizer, name, shelf=None):
    """A search, what it found, and an answer."""
    blank = " " if name in BLANK_FIRST else ""
    turns = [blank + SEARCH, blank + ANSWER]
    engine = ScriptedEngine(tokenizer, {QUESTION: turns})
    asked = [{"question": QUESTION}]
    return rollout(engine, tokenizer, shelf or Shelf(), asked, LIMITS, SYSTEM)[0]


def test_every_template_of_trl_stands_in_the_table():
    ours = {name for family in FAMILIES for name in family.templates}
    of_trl = {file.stem for file in TRL_TEMPLATES.glob("*.jinja")}
    originals = {name for name in of_trl if not name.endswith("_training")}
    assert ours == originals | set(OTHERS)


@pytest.mark.parametrize("family, name", serving())
def test_family_works_as_the_table_says(tokenizer, family, name, capsys):
    made = tokenizer_for(tokenizer, name)
    assert templates.fit(made).how == family.how
    told = capsys.readouterr().out
    is_changed = family.how != templates.AS_IT_IS
    assert told.count("\n") == is_changed
    assert family.how in told or not is_changed


@pytest.mark.parametrize("family, name", refused())
def test_family_is_refused_as_the_table_says(tokenizer, family, name):
    made = tokenizer_for(tokenizer, name)
    for use in (
        lambda: ChatFormat.from_tokenizer(made),
        lambda: protocol.prompt_ids(made, protocol.messages(QUESTION)),
    ):
        with pytest.raises(ValueError, match=re.escape(family.refused)) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("family, name", serving())
def test_conversation_of_a_family_is_well_formed_and_masked(tokenizer, family, name):
    made = tokenizer_for(tokenizer, name)
    t = converse(made, name)
    chat = ChatFormat.from_tokenizer(made)
    assert (t.answer, t.stop, t.searches) == ("Merano", "answer", 1)
    assert rewards.format_score(t.turns) == 1.0
    assert [turn.thought for turn in t.turns] == ["I look.", "I read it."]
    check_mask(t.completion_ids, t.loss_mask, made, chat)
    names = views.writers(t, chat, made)[len(t.prompt_ids) :]
    assert [name == "model" for name in names] == [mask == 1 for mask in t.loss_mask]
    assert t.completion_ids[-1] == chat.end_of_turn


@pytest.mark.parametrize("family, name", serving())
def test_what_the_prompt_opens_is_parsed_but_not_sampled(tokenizer, family, name):
    made = tokenizer_for(tokenizer, name)
    t = converse(made, name)
    opened = ChatFormat.from_tokenizer(made).opened
    sampled = [i for i, mask in zip(t.completion_ids, t.loss_mask, strict=True) if mask]
    said = "".join(text.removeprefix(opened) for text in t.texts)
    assert all(text.startswith(opened) for text in t.texts)
    assert made.decode(sampled) == said
    assert made.decode(t.prompt_ids).endswith(opened)


@pytest.mark.parametrize("family, name", serving())
def test_appended_ids_are_those_of_the_template(tokenizer, family, name):
    made = tokenizer_for(tokenizer, name)
    t = converse(made, name)
    ids = t.prompt_ids + t.completion_ids
    if templates.DROPS in family.how:
        # Such a template cannot show what was said. It was not lost for that.
        assert "I look." in made.decode(ids)
        return
    found = protocol.render_context(t.passages[0])
    found = protocol.escape_special_tokens(made, found)
    conversation = [
        *protocol.messages(QUESTION, SYSTEM),
        assistant_message(SEARCH, name),
        {"role": "user", "content": f"<context>\n{found}\n</context>"},
        assistant_message(ANSWER, name),
    ]
    rendered = made.apply_chat_template(conversation, tokenize=False)
    again = protocol.encode(made, rendered)
    assert again[: len(ids)] == ids
    behind = made.decode(again[len(ids) :]).strip()
    assert behind in ("", "<eos>", "<|END_OF_TURN_TOKEN|>")


def assistant_message(text, name):
    """A turn as this template wants it: Qwen3.8's has the thought in its own field."""
    if name != "qwen3_8":
        return {"role": "assistant", "content": text}
    thought, action = text.split("</think>")
    return {
        "role": "assistant",
        "content": action.strip(),
        "reasoning_content": thought.removeprefix("<think>").strip(),
    }


def test_fitting_template_is_used_by_whoever_renders_later(tokenizer):
    made = tokenizer_for(tokenizer, "gemma")
    protocol.prompt_ids(made, protocol.messages(QUESTION, SYSTEM))
    text = made.apply_chat_template(
        protocol.messages(QUESTION, SYSTEM), tokenize=False, add_generation_prompt=True
    )
    assert text == (
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n{QUESTION}<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_template_is_told_of_once_and_judged_anew_when_it_changes(tokenizer, capsys):
    made = tokenizer_for(tokenizer, "qwen3")
    for _ in range(3):
        ChatFormat.from_tokenizer(made)
    assert capsys.readouterr().out.count("\n") == 1
    made.chat_template = template_named("alpaca")
    with pytest.raises(ValueError, match=templates.NOT_ONE_TOKEN):
        ChatFormat.from_tokenizer(made)


def test_template_unknown_to_trl_that_drops_thoughts_serves_and_they_stay(tokenizer):
    made = tokenizer_for(tokenizer, "deepseek_r1_distill")
    made.chat_template = f"{{# ours #}}{made.chat_template}"
    t = converse(made, "deepseek_r1_distill")
    assert templates.fit(made).how == f"{templates.AS_IT_IS}; {templates.DROPS}"
    assert "I look." in made.decode(t.completion_ids)
    assert rewards.format_score(t.turns) == 1.0


def test_template_with_variants_is_used_without_tools(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.chat_template = {"default": OTHERS["chatml"], "tool_use": "{{ tools }}"}
    plain = ChatFormat.from_tokenizer(tokenizer)
    assert ChatFormat.from_tokenizer(made) == plain
    made.chat_template = {"tool_use": "{{ tools }}"}
    with pytest.raises(ValueError, match="no chat template"):
        ChatFormat.from_tokenizer(made)


@pytest.mark.parametrize(
    "template, problem",
    [
        # Nothing says whose turn it is.
        (
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            templates.NOT_OPENED,
        ),
        # The assistant's turn ends with a line break.
        (OTHERS["chatml"].replace("<|im_end|>\n", "\n"), templates.NOT_ONE_TOKEN),
        # Only the latest message is shown.
        ("{{ messages[-1].content }}<|im_end|>", templates.NOT_SHOWN),
        # A thought without content, and no switch.
        (
            OTHERS["chatml"].replace(
                "assistant\n{% endif", "assistant\n</think>{% endif"
            ),
            templates.NO_THOUGHT,
        ),
        ("{{ raise_exception('Not today.') }}", "Not today"),
        ("{% for %}", templates.RAISES),
    ],
)
def test_template_that_cannot_serve_is_refused(tokenizer, template, problem):
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    with pytest.raises(ValueError, match=re.escape(problem)):
        ChatFormat.from_tokenizer(made)


def test_system_prompt_that_a_template_ignores_is_moved(tokenizer):
    made = copy.deepcopy(tokenizer)
    without_system = "{% for m in messages if m.role != 'system' %}"
    made.chat_template = OTHERS["chatml"].replace(
        "{% for m in messages %}", without_system
    )
    ids = protocol.prompt_ids(made, protocol.messages(QUESTION, SYSTEM))
    assert f"user\n{SYSTEM}\n\n{QUESTION}" in made.decode(ids)


def test_end_of_turn_that_swallows_blanks_is_counted_as_the_tokenizer_does(tokenizer):
    """Phi-3's tokenizer makes one token of <|end|> and the line break behind it."""
    made = copy.deepcopy(tokenizer)
    tokens = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    made.add_tokens(
        [AddedToken(token, rstrip=True, special=True) for token in tokens],
        special_tokens=True,
    )
    made.chat_template = template_named("phi3")
    t = converse(made, "phi3")
    chat = ChatFormat.from_tokenizer(made)
    check_mask(t.completion_ids, t.loss_mask, made, chat)
    message = f"<context>\n{protocol.render_context(t.passages[0])}\n</context>"
    message = protocol.escape_special_tokens(made, message)
    rendered = made.apply_chat_template(
        [
            *protocol.messages(QUESTION, SYSTEM),
            {"role": "assistant", "content": SEARCH},
            {"role": "user", "content": message},
            {"role": "assistant", "content": ANSWER},
        ],
        tokenize=False,
    )
    ids = t.prompt_ids + t.completion_ids
    assert protocol.encode(made, rendered)[: len(ids)] == ids


def test_header_is_read_as_it_stands_behind_a_turn(tokenizer):
    """Llama's tokenizers put a blank before a text, but none behind a special token."""
    made = tokenizer_for(tokenizer, "zephyr")
    encode = type(made).__call__

    class PutsABlankFirst(type(made)):
        def __call__(self, text, **more):
            starts_with_a_token = text.startswith(tuple(self.all_special_tokens))
            return encode(self, text if starts_with_a_token else f" {text}", **more)

    made.__class__ = PutsABlankFirst
    chat = ChatFormat.from_tokenizer(made)
    assert made.decode(protocol.user_ids(made, chat, "Go on.")) == (
        f"{chat.before_user}Go on.{chat.after_user}"
    )


def test_template_that_needs_trl_says_so_without_it(tokenizer, monkeypatch):
    made = tokenizer_for(tokenizer, "qwen3")
    plain_import = builtins.__import__

    def without_trl(name, *more):
        if name.startswith("trl"):
            raise ImportError(name)
        return plain_import(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_trl)
    with pytest.raises(ImportError, match=re.escape("[train]")):
        ChatFormat.from_tokenizer(made)
    # One that serves as it is needs no TRL.
    ChatFormat.from_tokenizer(copy.deepcopy(tokenizer))


def test_shipped_models_keep_their_own_templates(tokenizer, smollm2_tokenizer, capsys):
    for own in (tokenizer, smollm2_tokenizer):
        made = copy.deepcopy(own)
        ChatFormat.from_tokenizer(made)
        assert made.chat_template == own.chat_template
    assert capsys.readouterr().out == ""
