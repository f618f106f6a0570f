"""Owns the conversation: its tags, parsing a turn, the token ids of each message.

The tags are those of Knowledge-R1 and Search-R1 (Jin et al., 2025,
https://arxiv.org/abs/2503.09516, table 1). What is `<context>` here is
`<information>` in Search-R1.
"""

import re
from dataclasses import dataclass
from typing import Literal

from kr1_utils import templates
from kr1_utils.profiles import SYSTEM_PROMPT

TAGS = ("think", "search", "answer", "context")

# A turn is over right after either of them.
CLOSING = ("</search>", "</answer>")

# Ends the user message before the last turn.
ANSWER_NOW = "Now answer."

# The user message after a turn that holds neither a search nor an answer.
CORRECTION = "Write <think>, then <search> or <answer>."

# The inside of a context without passages.
NOTHING_FOUND = "Nothing found."

# No token of the tokenizers we know has more characters. A test checks that of two.
MAX_TOKEN_CHARACTERS = 256

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_WELL_FORMED = re.compile(
    r"\s*<think>(.*?)</think>\s*<(search|answer)>(.*?)</\2>\s*", re.DOTALL
)

# The "<" of one of our tags, however it is spaced, and of a template token "<|…|>".
_OPENS_A_TAG = re.compile(
    r"<(?=\s*(?:/\s*)?(?:" + "|".join(TAGS) + r")\b|\|)", re.IGNORECASE
)


@dataclass(frozen=True)
class Turn:
    """One assistant message, parsed."""

    kind: Literal["search", "answer", "neither"]
    # The query or the answer, without blanks around it; "" if `kind` is "neither".
    content: str
    thought: str
    # Exactly one <think> and one action, and nothing beside them.
    well_formed: bool


def parse_turn(text: str) -> Turn:
    """Read one assistant message: its first closed action counts, unless it is empty.

    Args:
        text: what the template opened and what the model wrote, without the
            end-of-turn token.
    """
    thought = _THOUGHT.search(text)
    action = _ACTION.search(text)
    content = action.group(2).strip() if action else ""
    return Turn(
        kind=action.group(1) if content else "neither",
        content=content,
        thought=thought.group(1).strip() if thought else "",
        well_formed=bool(content) and _is_well_formed(text),
    )


def _is_well_formed(text: str) -> bool:
    """Whether `text` is one thought and one action, with no other tag anywhere."""
    if "context>" in text:
        return False
    for tag in TAGS:
        if text.count(f"<{tag}>") > 1 or text.count(f"</{tag}>") > 1:
            return False
    return _WELL_FORMED.fullmatch(text) is not None


def render_turn(thought: str, kind: str, content: str) -> str:
    """The text of a well-formed turn, as `parse_turn` reads it back.

    Args:
        kind: "search" or "answer".
    """
    return f"<think> {thought}</think><{kind}> {content}</{kind}>"


def escape_tags(text: str) -> str:
    """`text` from outside, with "&lt;" where it would open or close one of our tags.

    Template tokens such as `<|im_end|>` are escaped too. Half a surrogate pair, which
    no tokenizer takes, becomes "?".
    """
    characters = text.encode("utf-8", "replace").decode()
    return _OPENS_A_TAG.sub("&lt;", characters)


def escape_special_tokens(tokenizer, text: str) -> str:
    """`text` from outside, in which no special token of this tokenizer is left.

    What spells one, such as `</s>`, begins with a character reference instead
    ("&#60;/s>"). Our own tags stay, for a tokenizer may have them as tokens.
    """
    for token in tokenizer.added_tokens_decoder.values():
        spelling = token.content
        is_our_tag = spelling.strip("</>") in TAGS
        looks_like_a_tag = spelling.startswith("<")
        if (token.special or looks_like_a_tag) and not is_our_tag:
            reference = f"&#{ord(spelling[0])};"
            text = text.replace(spelling, reference + spelling[1:])
    return text


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text` alone: no token is added at its beginning or end."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def echo(tokenizer, text: str) -> str:
    """`text` as the tokenizer gives it back from ids.

    It may differ: Qwen's tokenizers, for one, join a letter and its accent.
    """
    return tokenizer.decode(encode(tokenizer, escape_special_tokens(tokenizer, text)))


def messages(
    question: str, system_prompt: str = SYSTEM_PROMPT, answer_now: bool = False
) -> list[dict]:
    """The beginning of a conversation: the system prompt and the question, escaped.

    Args:
        answer_now: ask for the answer in the first turn.

    Returns:
        two chat messages, `{"role": …, "content": …}`.
    """
    content = escape_tags(question)
    if answer_now:
        content = _ask_for_answer(content)
    return [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": content},
    ]


def render_context(passages: list[dict]) -> str:
    """The inside of `<context>…</context>`: one line per passage, escaped.

    Args:
        passages: `{"title": …, "text": …}`; other keys are not shown.
    """
    lines = [_passage_line(passage) for passage in passages]
    return "\n".join(lines) or NOTHING_FOUND


def _passage_line(passage: dict) -> str:
    words = f"- {passage['title']}: {passage['text']}".split()
    return escape_tags(" ".join(words))


def _ask_for_answer(text: str) -> str:
    return f"{text}\n{ANSWER_NOW}"


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template writes around a user message after an assistant turn.

    A conversation grows by appended ids alone: these strings make a second rendering
    of its beginning unnecessary.
    """

    # From behind the end-of-turn token to the user message.
    before_user: str
    # From behind the user message to where the model starts to write.
    after_user: str
    # The id of the token that ends an assistant message.
    end_of_turn: int
    # The end of `after_user` that belongs to the model's turn: "", or "<think>" where
    # the template opens the thought.
    opened: str = ""

    @classmethod
    def from_tokenizer(cls, tokenizer) -> "ChatFormat":
        """Read the format off the tokenizer's template, changed where it must be.

        See `templates.fit`, which sets the template that serves on the tokenizer, and
        says so if it is not the tokenizer's own.

        Raises:
            ValueError: if there is no template, or none that serves: one that changes
                no earlier message when one is appended, opens the assistant's turn,
                and ends it with one special token.
        """
        fitted = templates.fit(tokenizer)
        return cls(
            fitted.before_user, fitted.after_user, fitted.end_of_turn, fitted.opened
        )


def prompt_ids(tokenizer, conversation: list[dict]) -> list[int]:
    """Token ids (P,) of chat messages, ending where the model starts to write.

    Raises:
        ValueError: if the chat template is refused (see `ChatFormat`).
    """
    templates.fit(tokenizer)
    escaped = [_escape_user_message(tokenizer, message) for message in conversation]
    text = tokenizer.apply_chat_template(
        escaped, tokenize=False, add_generation_prompt=True
    )
    return encode(tokenizer, text)


def _escape_user_message(tokenizer, message: dict) -> dict:
    if message["role"] != "user":
        return message
    content = escape_special_tokens(tokenizer, message["content"])
    return {**message, "content": content}


def user_ids(tokenizer, chat: ChatFormat, content: str) -> list[int]:
    """Token ids that append one user message and open the next assistant turn."""
    escaped = escape_special_tokens(tokenizer, content)
    text = chat.before_user + escaped + chat.after_user
    return ids_after_turn(tokenizer, chat, text)


def ids_after_turn(tokenizer, chat: ChatFormat, text: str) -> list[int]:
    """Token ids of `text` where it follows the end of a turn.

    There a tokenizer that puts a blank before each text, as Llama's do, puts none.
    """
    end_of_turn = tokenizer.convert_ids_to_tokens(chat.end_of_turn)
    return encode(tokenizer, end_of_turn + text)[1:]


def correction_ids(tokenizer, chat: ChatFormat, answer_now: bool = False) -> list[int]:
    """Token ids of the user message after a turn without search and answer."""
    text = _ask_for_answer(CORRECTION) if answer_now else CORRECTION
    return user_ids(tokenizer, chat, text)


def observation_ids(
    tokenizer,
    chat: ChatFormat,
    passages: list[dict],
    limit: int,
    answer_now: bool = False,
) -> list[int]:
    """Token ids of the user message that brings passages back, at most `limit` of them.

    Passages that are too long are cut between words. `</context>` and the call to
    answer are always kept.

    Args:
        limit: in tokens, with the chat headers around the message.
        answer_now: ask for the answer in the next turn.

    Raises:
        ValueError: if not even an empty context fits into `limit` tokens.
    """
    body = render_context(passages)
    word_ends = _word_ends_within(body, limit)
    words = len(word_ends)
    while True:
        kept = body[: word_ends[words - 1]] if words else ""
        ids = user_ids(tokenizer, chat, _context_message(kept, answer_now))
        if len(ids) <= limit:
            return ids
        if words == 0:
            raise ValueError(
                f"An empty context takes {len(ids)} tokens, more than the {limit}"
                " allowed."
            )
        words = _fewer_words(words, len(ids), limit)


def _context_message(body: str, answer_now: bool) -> str:
    message = f"<context>\n{body}\n</context>"
    return _ask_for_answer(message) if answer_now else message


def _word_ends_within(text: str, limit: int) -> list[int]:
    """Where the words of `text` end, for no more words than `limit` tokens can hold.

    A word is at least one token, and a token has at most `MAX_TOKEN_CHARACTERS`. So a
    megabyte of text is not looked at where a few hundred tokens are allowed. One word
    more than the limit is kept, to see that the text is too long.
    """
    within_reach = text[: MAX_TOKEN_CHARACTERS * (limit + 1)]
    ends = [word.end() for word in re.finditer(r"\S+", within_reach)]
    return ends[: limit + 1]


def _fewer_words(words: int, tokens: int, limit: int) -> int:
    """How many words to try next, when `words` of them made `tokens` > `limit`."""
    # Close to the limit, go one word at a time, so that no word is lost that fits.
    if tokens <= limit + 8:
        return words - 1
    # Far from it, expect every word to take an equal share of the tokens.
    return max(0, min(words - 1, int(words * limit / tokens)))
