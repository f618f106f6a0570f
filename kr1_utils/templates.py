"""Owns chat templates: which families can serve, and with which template.

A conversation only grows at its end: earlier messages are never rendered again. So a
template must leave them alone, open the assistant's turn when asked to, and end it with
one token. `fit` finds out whether it does. If not, `fit` tries TRL's training
templates, the template's own switches, and the system prompt moved into the first user
message.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from kr1_utils.extras import missing

AS_IT_IS = "as it is"
TRAINING = "with TRL's training template"
SWITCHED = "with its switches for thinking set"
MOVED = "with the system prompt in the first user message"
DROPS = "the thoughts of earlier turns stay, though it would drop them"

NO_TEMPLATE = "has no chat template: take an instruct model"
REWRITES = (
    "rewrites earlier messages when one is appended; rollouts need a template that"
    " only appends"
)
NOT_SHOWN = "does not show the text of each message once"
NOT_OPENED = "does not open the assistant's turn when it is asked to"
NO_THOUGHT = "closes the thought before the model can write it"
NOT_ONE_TOKEN = "ends a turn with text, not with one special token"
RAISES = "cannot show a conversation"

# Switches of Qwen3.5, Qwen3.6, Nemotron 3, LFM2.5, GLM-4.7 and DeepSeek-V3.1: the model
# thinks, and its thoughts stay. A template that has no such switch does not look at it.
_SWITCHES = (
    "{%- set enable_thinking = true -%}"
    "{%- set thinking = true -%}"
    "{%- set preserve_thinking = true -%}"
    "{%- set keep_past_thinking = true -%}"
    "{%- set truncate_history_thinking = false -%}"
    "{%- set clear_thinking = false -%}"
)

# Gemma 1 and 2 have no system role, and Mistral's system prompt wanders to the latest
# user message.
_MOVE_SYSTEM_PROMPT = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first = messages[0]['content'] + '\\n\\n' + messages[1]['content'] -%}"
    "{%- set messages = [{'role': 'user', 'content': first}] + messages[2:] -%}"
    "{%- endif -%}"
)

# What a prompt may have opened of the model's turn: a thought, or even all of one.
_OPENED = re.compile(r"<think>\s*\Z|(?:<think>\s*)?</think>\s*\Z")
# The same with the blanks before it: some templates write a line break there.
_OPENED_OR_BLANKS = re.compile(r"\s*(?:<think>\s*|(?:<think>\s*)?</think>\s*)?\Z")

# No part of one is part of another, and no template writes any of them by itself.
_SYSTEM, _QUESTION, _SAID, _MESSAGE = "SYSTEM0", "QUESTION1", "SAID2", "MESSAGE3"
_THOUGHT, _ACTION = "THOUGHT4", "<search> ACTION5</search>"


@dataclass(frozen=True)
class Family:
    """Models with one kind of template, and whether it serves: a row of the table."""

    name: str
    # The templates by which a test proves it: names of TRL's files, or of the test's.
    templates: tuple[str, ...]
    # What `fit` does with it.
    how: str = ""
    # Why `fit` refuses it, if it does.
    refused: str = ""


_NEMOTRON = (
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "nemotron_3_5_lightning",
)
_GEMMA_4 = ("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5")
_LFM_2_5 = ("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl")

FAMILIES = (
    Family("ChatML: tiny-lm, SmolLM2, Yi, InternLM2", ("chatml",), AS_IT_IS),
    Family("Qwen2.5, Qwen2.5-VL", ("qwen2_5", "qwen2_5_vl"), AS_IT_IS),
    Family("Qwen3", ("qwen3",), TRAINING),
    Family(
        "Qwen3-Instruct-2507, Qwen3-VL", ("qwen3_instruct_2507", "qwen3_vl"), AS_IT_IS
    ),
    Family("Qwen3.5, thinking", ("qwen3_5_think",), TRAINING),
    Family("Qwen3.5, not thinking", ("qwen3_5_nothink",), f"{TRAINING} and {SWITCHED}"),
    Family("Qwen3.6", ("qwen3_6",), TRAINING),
    Family("Qwen3.8", ("qwen3_8",), AS_IT_IS),
    Family("Llama 3, 3.1, 3.2", ("llama3", "llama3_1", "llama3_2"), AS_IT_IS),
    Family("Gemma 1, Gemma 2", ("gemma",), MOVED),
    Family("Gemma 3", ("gemma3",), AS_IT_IS),
    Family("Gemma 4", _GEMMA_4, AS_IT_IS),
    Family("DiffusionGemma, its template", ("diffusion_gemma",), AS_IT_IS),
    Family("Mistral", ("mistral",), MOVED),
    Family("Phi-3, Phi-3.5", ("phi3", "phi3_5"), AS_IT_IS),
    Family("Phi-4", ("phi4",), AS_IT_IS),
    Family("DeepSeek-R1-Distill", ("deepseek_r1_distill",), TRAINING),
    Family("DeepSeek-V3, R1", ("deepseekv3",), f"{TRAINING}; {DROPS}"),
    Family("DeepSeek-V3.1", ("deepseek_v3_1",), f"{SWITCHED}; {DROPS}"),
    Family("GLM-4", ("glm4moe",), f"{TRAINING}; {DROPS}"),
    Family("Nemotron 3, 3.5", _NEMOTRON, SWITCHED),
    Family("LFM2", ("lfm2", "lfm2_v2"), AS_IT_IS),
    Family("LFM2.5", _LFM_2_5, SWITCHED),
    Family("Cohere: Aya, Command", ("cohere", "cohere2"), AS_IT_IS),
    Family("Granite 3", ("granite",), AS_IT_IS),
    Family("OLMo 2", ("olmo2",), AS_IT_IS),
    Family("Zephyr, TinyLlama", ("zephyr",), AS_IT_IS),
    Family("Vicuna", ("vicuna",), AS_IT_IS),
    Family("Llama 2", ("llama2",), refused=NOT_ONE_TOKEN),
    Family("Alpaca", ("alpaca",), refused=NOT_ONE_TOKEN),
    Family(
        "ChatML that ignores `add_generation_prompt`",
        ("chatml_without_prompt",),
        refused=NOT_OPENED,
    ),
    Family("GPT-OSS", ("gptoss",), refused=REWRITES),
    Family("Muse Glimmer", ("muse_glimmer",), refused=NOT_OPENED),
    Family("Idefics3, SmolVLM", ("idefics3", "smolvlm"), refused=NOT_SHOWN),
    Family("LLaVA-NeXT", ("llava_next",), refused=RAISES),
)


class UnfitTemplateError(ValueError):
    """A chat template that cannot serve; `problem` is why, as the table says it."""

    def __init__(self, problem: str, found: str = ""):
        super().__init__(f"The chat template {problem}{found}.")


@dataclass(frozen=True)
class Fitted:
    """A template that serves, and what it writes around a user message."""

    template: str
    # What was done to it, as the table of families says it.
    how: str
    # From behind the end-of-turn token to the user message.
    before_user: str
    # From behind the user message to where the model starts to write.
    after_user: str
    # The end of `after_user` that belongs to the turn: "" or an opened thought.
    opened: str
    # The id of the token that ends an assistant message.
    end_of_turn: int


# What was found out about each tokenizer; it holds as long as its template stays.
_known: WeakKeyDictionary = WeakKeyDictionary()


def fit(tokenizer) -> Fitted:
    """See that the tokenizer's chat template serves; if it must be changed, say so.

    The template that serves is set on the tokenizer, so that whoever renders messages
    later uses it too.

    Returns:
        the template and what it writes around a user message.

    Raises:
        ValueError: if there is no template, or none that serves.
        ImportError: if TRL may have one, and is not installed.
    """
    known = _known.get(tokenizer)
    if known is not None and known.template == tokenizer.chat_template:
        return known
    own = _own_template(tokenizer)
    fitted = _best(tokenizer, own)
    if fitted.how != AS_IT_IS:
        print(f"Chat template: {tokenizer.name_or_path} works {fitted.how}.")
    tokenizer.chat_template = fitted.template
    _known[tokenizer] = fitted
    return fitted


def _own_template(tokenizer) -> str:
    """The tokenizer's template; of several, the one for conversations without tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError(f"{tokenizer.name_or_path} {NO_TEMPLATE}.")
    return template


def _best(tokenizer, own: str) -> Fitted:
    """The first template that keeps thoughts; if there is none, one that serves."""
    serving = []
    for template, how in _candidates(tokenizer, own):
        try:
            fitted = _read(tokenizer, template, how)
        except UnfitTemplateError as error:
            # The latest has the most changes: it no longer lacks a system role.
            latest = error
            continue
        if _keeps_thoughts(tokenizer, fitted):
            return fitted
        serving.append(fitted)
    if not serving:
        raise latest
    # TRL's comes first, for it was made to be trained on.
    serving.sort(key=lambda fitted: not fitted.how.startswith(TRAINING))
    return replace(serving[0], how=f"{serving[0].how}; {DROPS}")


def _candidates(tokenizer, own: str) -> Iterator[tuple[str, str]]:
    """Templates to try, and what was done to each, from the least change to the most.

    TRL is asked only if the model's own template is not taken.
    """
    yield own, AS_IT_IS
    bases = [(own, "")]
    training = _training_template(tokenizer)
    if training is not None:
        yield training, TRAINING
        bases.append((training, TRAINING))
    for base, how in bases:
        yield _SWITCHES + base, _joined(how, SWITCHED)
    for base, how in bases:
        yield _MOVE_SYSTEM_PROMPT + base, _joined(how, MOVED)


def _joined(*hows: str) -> str:
    return " and ".join(how for how in hows if how)


def _training_template(tokenizer) -> str | None:
    """TRL's template for training this model; None if TRL does not know it."""
    try:
        from trl.chat_template_utils import get_training_chat_template
    except ImportError:
        get_training_chat_template = missing("train")
    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TypeError, _template_error()):
        return None


def _template_error() -> type[Exception]:
    # transformers renders with Jinja, and needs it no earlier than this does.
    from jinja2 import TemplateError

    return TemplateError


def _read(tokenizer, template: str, how: str) -> Fitted:
    """What a template writes around messages.

    Raises:
        UnfitTemplateError: if it cannot serve.
    """
    prompt, shorter, longer = _rendered(tokenizer, template, {"content": _SAID})
    shown_once = all(longer.count(text) == 1 for text in (_QUESTION, _SAID, _MESSAGE))
    if not shown_once or _SYSTEM not in prompt:
        raise UnfitTemplateError(NOT_SHOWN)
    if not longer.startswith(shorter) or not longer.startswith(_header_of(prompt)):
        raise UnfitTemplateError(REWRITES)
    before, after = longer.split(_SAID)
    if _header_of(before) != _header_of(prompt):
        raise UnfitTemplateError(NOT_OPENED)
    end_of_turn = _end_of_turn(tokenizer, after)
    before_user, after_user = after.removeprefix(end_of_turn.content).split(_MESSAGE)
    writes_a_header = after_user.removeprefix(end_of_turn.content).strip()
    if not writes_a_header or not prompt.endswith(after_user):
        raise UnfitTemplateError(NOT_OPENED)
    opened = _OPENED.search(after_user)
    opened = opened.group() if opened else ""
    if "</think>" in opened:
        raise UnfitTemplateError(NO_THOUGHT)
    if end_of_turn.rstrip:
        # Phi-3's tokenizer makes one token of it and the blanks behind it.
        before_user = before_user.lstrip()
    return Fitted(
        template=template,
        how=how,
        before_user=before_user,
        after_user=after_user,
        opened=opened,
        end_of_turn=tokenizer.convert_tokens_to_ids(end_of_turn.content),
    )


def _end_of_turn(tokenizer, after: str):
    """The special token with which the text behind an assistant message begins."""
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    token = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    if token is None or not after.startswith(token.content):
        is_special = False
    else:
        is_special = token.special or token.content == tokenizer.eos_token
    if not is_special:
        found = after.split(_MESSAGE)[0][:20]
        raise UnfitTemplateError(NOT_ONE_TOKEN, f": {found!r}")
    return token


def _keeps_thoughts(tokenizer, fitted: Fitted) -> bool:
    """Whether a turn is shown as the model writes it, also when messages follow.

    Some templates find the thought in the message; others, such as Qwen3.8's, want it
    in a field of its own.
    """
    whole = {"content": f"<think>\n{_THOUGHT}\n</think>\n\n{_ACTION}"}
    apart = {
        "content": _ACTION,
        "reasoning_content": _THOUGHT,
        "thinking": _THOUGHT,
    }
    return any(_keeps_thought(tokenizer, fitted, said) for said in (whole, apart))


def _keeps_thought(tokenizer, fitted: Fitted, said: dict) -> bool:
    try:
        prompt, shorter, longer = _rendered(tokenizer, fitted.template, said)
    except UnfitTemplateError:
        return False
    if not longer.startswith(shorter) or longer.count(_THOUGHT) != 1:
        return False
    before = longer.split(_THOUGHT)[0]
    return _ACTION in longer and _header_of(before) == _header_of(prompt)


def _rendered(tokenizer, template: str, said: dict) -> tuple[str, str, str]:
    """A conversation that grows: its prompt, with a turn of the model, and one more.

    Args:
        said: the turn, without its role.
    """
    conversation = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", **said},
        {"role": "user", "content": _MESSAGE},
    ]
    texts = []
    for messages, opens_a_turn in ((2, True), (3, False), (4, True)):
        try:
            text = tokenizer.apply_chat_template(
                conversation[:messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=opens_a_turn,
            )
        except (TypeError, _template_error()) as error:
            raise UnfitTemplateError(RAISES, f" ({error})") from None
        texts.append(text)
    prompt, shorter, longer = texts
    # Phi-3's ends a conversation that does not go on with an end-of-sequence token.
    end_of_sequence = tokenizer.eos_token or ""
    return prompt, shorter.rstrip().removesuffix(end_of_sequence).rstrip(), longer


def _header_of(text: str) -> str:
    """`text` without a thought, open or empty, at its end, and without blanks there."""
    return _OPENED_OR_BLANKS.sub("", text)
