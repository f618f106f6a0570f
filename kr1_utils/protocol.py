"""Owns the conversation: its tags, parsing a turn, rendering an observation.

The tags are those of Knowledge-R1 and Search-R1 (https://arxiv.org/abs/2503.09516,
table 1).
"""

import re
from dataclasses import dataclass

from kr1_utils.profiles import SYSTEM_PROMPT

TAGS = ("think", "search", "answer", "context")
CLOSING = ("</search>", "</answer>")  # a turn is over right after either of them
ANSWER_NOW = "Now answer."  # added to the user message that precedes the last turn
CORRECTION = "Write <think>, then <search> or <answer>."
NOTHING_FOUND = "Nothing found."
_OURS = re.compile(r"<(?=\s*(?:/\s*)?(?:" + "|".join(TAGS) + r")\b|\|)", re.IGNORECASE)
_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)

_WELL_FORMED = re.compile(
    r"\s*<think>(.*?)</think>\s*<(search|answer)>(.*?)</\2>\s*", re.DOTALL
)


@dataclass(frozen=True)
class Turn:
    """One parsed assistant message: what it does (`kind`), with what (`content`), and
    how well."""

    kind: str  # "search", "answer" or "neither"
    content: str  # the query or the answer, stripped
    thought: str
    well_formed: bool  # exactly one <think> and one action, and nothing beside them


def parse_turn(text: str) -> Turn:
    """Read one assistant message. The first closed action counts, an empty one does
    not.

    Args:
        text: what the model wrote, line breaks included, without the end-of-turn token.
    """
    action = _ACTION.search(text)
    content = action.group(2).strip() if action else ""
    once = all(text.count(f"<{t}>") <= 1 and text.count(f"</{t}>") <= 1 for t in TAGS)
    clean = (
        bool(_WELL_FORMED.fullmatch(text))
        and once
        and "context>" not in text
        and bool(content)
    )
    thought = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    return Turn(
        kind=action.group(1) if content else "neither",
        content=content,
        thought=thought.group(1).strip() if thought else "",
        well_formed=clean,
    )


def render_turn(thought: str, kind: str, content: str) -> str:
    """The text of a well-formed turn, as `parse_turn` reads it back."""
    return f"<think> {thought}</think><{kind}> {content}</{kind}>"


def escape_tags(text: str) -> str:
    """Text from outside can not open or close our tags, nor `<|…|>` tokens; half a
    surrogate pair is "?"."""
    return _OURS.sub("&lt;", text.encode("utf-8", "replace").decode())


def escape_special_tokens(tokenizer, text: str) -> str:
    """Tokens of this tokenizer's own that text from outside may spell, as `</s>`, are
    spelt as text."""
    for token in tokenizer.added_tokens_decoder.values():
        if (token.special or token.content[0] == "<") and token.content.strip(
            "</>"
        ) not in TAGS:
            text = text.replace(
                token.content, f"&#{ord(token.content[0])};{token.content[1:]}"
            )
    return text


def echo(tokenizer, text: str) -> str:
    """Text as this tokenizer gives it back: Qwen's, for one, writes a letter and its
    accent as one."""
    return tokenizer.decode(
        tokenizer(escape_special_tokens(tokenizer, text), add_special_tokens=False)[
            "input_ids"
        ]
    )


def messages(
    question: str, system_prompt: str = SYSTEM_PROMPT, answer_now: bool = False
) -> list[dict]:
    """The conversation so far, as chat messages: the system prompt and the question."""
    content = escape_tags(question) + (f"\n{ANSWER_NOW}" if answer_now else "")
    return [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": content},
    ]


def render_context(passages: list[dict]) -> str:
    """The inside of `<context>…</context>`: one line a passage, titles and texts
    escaped."""
    lines = [
        escape_tags(" ".join(f"- {p['title']}: {p['text']}".split())) for p in passages
    ]
    return "\n".join(lines) or NOTHING_FOUND


@dataclass(frozen=True)
class ChatFormat:
    """What the chat template puts around a user message that follows an assistant turn.

    Conversations grow by appended ids only, so these strings replace a second
    rendering."""

    before_user: str  # from after the end-of-turn token to the message
    after_user: str  # from the message to where the model starts to write
    end_of_turn: int  # token id

    @classmethod
    def from_tokenizer(cls, tokenizer) -> "ChatFormat":
        """Read the format off the tokenizer's own template.

        Raises:
            ValueError: if there is no template, or earlier messages change when one is
                added.
        """
        if not tokenizer.chat_template:
            raise ValueError(
                f"{tokenizer.name_or_path} has no chat template: take an instruct"
                " model."
            )
        first = [*messages("Q?"), {"role": "assistant", "content": "ASSISTANT"}]
        text = tokenizer.apply_chat_template(first, tokenize=False)
        more = tokenizer.apply_chat_template(
            [*first, {"role": "user", "content": "USER"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        if not more.startswith(text.rstrip()) or more.count("USER") != 1:
            raise ValueError(
                "The chat template rewrites earlier messages when one is appended; "
                "rollouts need a template that only appends."
            )
        end = tokenizer(text.split("ASSISTANT")[1], add_special_tokens=False)[
            "input_ids"
        ][0]
        before, after = more.split("ASSISTANT")[1].split("USER")
        return cls(
            before.removeprefix(tokenizer.convert_ids_to_tokens(end)), after, end
        )


def prompt_ids(tokenizer, msgs: list[dict]) -> list[int]:
    """Token ids of the conversation, ending where the model starts to write."""
    msgs = [
        m | {"content": escape_special_tokens(tokenizer, m["content"])}
        if m["role"] == "user"
        else m
        for m in msgs
    ]
    text = tokenizer.apply_chat_template(
        msgs, tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def user_ids(tokenizer, chat: ChatFormat, content: str) -> list[int]:
    """Token ids that append one user message and open the next assistant turn."""
    text = (
        chat.before_user + escape_special_tokens(tokenizer, content) + chat.after_user
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def observation_ids(
    tokenizer,
    chat: ChatFormat,
    passages: list[dict],
    limit: int,
    answer_now: bool = False,
) -> list[int]:
    """Token ids of the user message that brings passages back, at most `limit` of them.

    What is too long is cut between words; `</context>` and the call to answer are
    always kept.

    Raises:
        ValueError: if not even an empty context fits into `limit` tokens.
    """
    ending = f"\n</context>{chr(10) + ANSWER_NOW if answer_now else ''}"
    body = render_context(passages)
    # A word is at least one token, and a token at most 256 characters: what is more
    # never fits.
    words = list(re.finditer(r"\S+", body[: 256 * (limit + 1)]))[: limit + 1]
    keep = len(words)
    while True:
        text = body[: words[keep - 1].end()] if keep else ""
        ids = user_ids(tokenizer, chat, f"<context>\n{text}{ending}")
        if len(ids) <= limit:
            return ids
        if not keep:
            raise ValueError(
                f"An empty context takes {len(ids)} tokens, more than the {limit}"
                " allowed."
            )
        # Each excess token is at most one word; guess in proportion, then creep.
        keep = max(
            0,
            min(keep - 1, int(keep * limit / len(ids)))
            if len(ids) > limit + 8
            else keep - 1,
        )
