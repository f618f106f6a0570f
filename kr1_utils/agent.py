"""Owns the loop: generate, parse, search, append, over a whole batch of questions.

`rollout` is the one loop: the demo, the trainer and the evaluator all call it. It is
the rollout of Search-R1 (Jin et al., 2025, https://arxiv.org/abs/2503.09516,
algorithm 1), with limits in tokens and one forced answer turn at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kr1_utils import profiles, protocol
from kr1_utils.engines.base import Engine, Generation
from kr1_utils.profiles import Limits
from kr1_utils.protocol import ChatFormat, Turn

StopReason = Literal[
    # The model gave an answer.
    "answer",
    # The last turn, in which it was asked to answer, ended without an answer.
    "no_answer",
    # The last turn ran into its token limit before it closed a tag.
    "truncated",
    # Prompt and response might not fit the model's window, so it was not asked.
    "prompt_too_long",
]


class SearchesPassages(Protocol):
    """What the loop asks of a retriever. Anything with this method is one."""

    def search(self, queries: list[str], k: int) -> list[list[dict]]:
        """Up to `k` passages for each query, in order: `{"title", "text", …}`."""
        ...


# The reasons of a conversation that a limit ended, not the model.
CUT_OFF = ("truncated", "prompt_too_long")


@dataclass
class Trajectory:
    """One conversation about one question, with all that was said and found.

    `completion_ids`, `loss_mask` and, if the engine gives them, `logprobs` have one
    length (T,). Mask 1 is what the model sampled, mask 0 what was appended to it.
    """

    question: dict
    # (P,) token ids, up to where the model starts to write.
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    # 0.0 where the mask is 0.
    logprobs: list[float] | None = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    # One per turn, as written, behind what the template opened of it.
    texts: list[str] = field(default_factory=list)
    # One list per search that was made.
    passages: list[list[dict]] = field(default_factory=list)
    answer: str | None = None
    # "" while the conversation goes on.
    stop: StopReason | Literal[""] = ""

    @property
    def was_cut_off(self) -> bool:
        """Whether a limit ended it, not the model."""
        return self.stop in CUT_OFF

    @property
    def searches(self) -> int:
        """How many searches were made. A query in the answer turn is not searched."""
        return len(self.passages)

    @property
    def sampled_length(self) -> int:
        """Tokens that the model wrote."""
        return sum(self.loss_mask)

    @property
    def retrieved_length(self) -> int:
        """Tokens that were appended: observations, corrections and chat headers."""
        return len(self.loss_mask) - sum(self.loss_mask)

    def append_sampled(self, ids: list[int], logprobs: list[float] | None) -> None:
        """Append what the model sampled, with mask 1."""
        self.completion_ids += ids
        self.loss_mask += [1] * len(ids)
        if logprobs is None:
            self.logprobs = None
        elif self.logprobs is not None:
            self.logprobs += logprobs

    def append_masked(self, ids: list[int]) -> None:
        """Append what the model did not write, with mask 0."""
        self.completion_ids += ids
        self.loss_mask += [0] * len(ids)
        if self.logprobs is not None:
            self.logprobs += [0.0] * len(ids)

    def to_record(self) -> dict:
        """The row of it in trajectories.jsonl."""
        return {
            "question": self.question["question"],
            "turns": self.texts,
            "answer": self.answer,
            "stop": self.stop,
            "sampled": self.sampled_length,
            "retrieved": self.retrieved_length,
        }


def check_limits(limits: Limits, tokenizer, chat: ChatFormat) -> int:
    """Refuse limits in which a search turn, its observation and an answer do not fit.

    Returns:
        tokens to keep free for the message before the answer turn.

    Raises:
        ValueError: naming the limit that is too small, and the least it must be.
    """
    for name in ("top_k", "max_turn_tokens"):
        value = getattr(limits, name)
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    last_message = _tokens_of_last_message(tokenizer, chat)
    one_turn = _tokens_of_a_turn(limits)
    least = one_turn
    if limits.max_turns > 0:
        least += one_turn + last_message
    if limits.max_response_tokens < least:
        raise ValueError(
            f"max_response_tokens={limits.max_response_tokens} leaves no room for one"
            f" turn of max_turn_tokens={limits.max_turn_tokens} and an answer: it must"
            f" be at least {least}."
        )
    if limits.max_observation_tokens < last_message:
        raise ValueError(
            f"max_observation_tokens={limits.max_observation_tokens} is too small for"
            f" an empty observation: it must be at least {last_message}."
        )
    return last_message


def _tokens_of_last_message(tokenizer, chat: ChatFormat) -> int:
    """Tokens of a message that asks for the answer and brings no passage."""
    unlimited = 10**6
    observation = protocol.observation_ids(
        tokenizer, chat, [], unlimited, answer_now=True
    )
    correction = protocol.correction_ids(tokenizer, chat, answer_now=True)
    return max(len(observation), len(correction))


def _tokens_of_a_turn(limits: Limits) -> int:
    # A turn that does not end by itself gets an end-of-turn token from us.
    return limits.max_turn_tokens + 1


@dataclass(frozen=True)
class _Rules:
    """What holds for every conversation of one rollout."""

    tokenizer: Any
    chat: ChatFormat
    limits: Limits
    # Tokens to keep free for the message before the answer turn.
    last_message: int


@dataclass
class _Unfinished:
    """A conversation that goes on."""

    trajectory: Trajectory
    # Whether its next turn is the answer turn, which ends it.
    answer_turn: bool


def rollout(
    engine: Engine,
    tokenizer,
    retriever: SearchesPassages,
    questions: list[dict],
    limits: Limits,
    system_prompt: str = profiles.SYSTEM_PROMPT,
    on_turn: Callable[[int, list[Trajectory]], None] | None = None,
) -> list[Trajectory]:
    """Answer all `questions` together: one `generate` and one `search` call per turn.

    Args:
        engine: anything with `generate(prompt_ids, max_new_tokens)`. If it has a
            `window` (tokens), questions that may not fit it are not asked.
        retriever: anything with `search(queries, k)`.
        questions: `{"question": …}`; other keys are kept. The same one may come
            several times.
        on_turn: called after each turn with its number, from 1, and the trajectories
            that are still unfinished.

    Returns:
        one trajectory per question, in order, never longer than
        `limits.max_response_tokens`.

    Raises:
        ValueError: if limits leave no room (see `check_limits`), if the chat template
            is refused (see `ChatFormat`), or if engine or retriever lose a row.
    """
    chat = ChatFormat.from_tokenizer(tokenizer)
    last_message = check_limits(limits, tokenizer, chat)
    rules = _Rules(tokenizer, chat, limits, last_message)
    window = getattr(engine, "window", None)
    trajectories = [_start(q, system_prompt, window, rules) for q in questions]

    answer_at_once = limits.max_turns == 0
    unfinished = [_Unfinished(t, answer_at_once) for t in trajectories if not t.stop]
    turn_number = 0
    while unfinished:
        turn_number += 1
        _take_turns(unfinished, engine, rules)
        unfinished = [c for c in unfinished if not c.trajectory.stop]
        _search(unfinished, retriever, limits.top_k)
        for conversation in unfinished:
            _append_message(conversation, turn_number, rules)
        if on_turn:
            on_turn(turn_number, [c.trajectory for c in unfinished])
    return trajectories


def _start(
    question: dict, system_prompt: str, window: int | None, rules: _Rules
) -> Trajectory:
    """The prompt of one question, refused if it may not fit the engine's window."""
    limits = rules.limits
    messages = protocol.messages(
        question["question"], system_prompt, answer_now=limits.max_turns == 0
    )
    prompt_ids = protocol.prompt_ids(rules.tokenizer, messages)
    trajectory = Trajectory(question, prompt_ids)
    if window and len(prompt_ids) + limits.max_response_tokens > window:
        trajectory.stop = "prompt_too_long"
        # The trainer would pad all prompts of a batch to this one's length.
        longest_prompt = max(1, window - limits.max_response_tokens)
        trajectory.prompt_ids = prompt_ids[:longest_prompt]
        # A completion is never empty.
        trajectory.append_masked([rules.chat.end_of_turn])
    return trajectory


def _take_turns(unfinished: list[_Unfinished], engine: Engine, rules: _Rules) -> None:
    """Let the engine write one turn of every conversation."""
    prompts = [
        c.trajectory.prompt_ids + c.trajectory.completion_ids for c in unfinished
    ]
    limits = [rules.limits.max_turn_tokens] * len(prompts)
    generations = engine.generate(prompts, limits)
    if len(generations) != len(prompts):
        raise ValueError(
            f"The engine returned {len(generations)} turns for {len(prompts)} prompts."
        )
    for conversation, generation in zip(unfinished, generations):
        _end_turn(conversation, generation, rules)


def _end_turn(conversation: _Unfinished, generation: Generation, rules: _Rules) -> None:
    """Append what was sampled, close the turn, and say whether it was the last."""
    trajectory = conversation.trajectory
    end_of_turn = rules.chat.end_of_turn
    ids = generation.ids
    trajectory.append_sampled(ids, generation.logprobs)
    ended_itself = bool(ids) and ids[-1] == end_of_turn
    if not ended_itself:
        trajectory.append_masked([end_of_turn])

    written = rules.tokenizer.decode(ids[:-1] if ended_itself else ids)
    text = rules.chat.opened + written
    turn = protocol.parse_turn(text)
    trajectory.texts.append(text)
    trajectory.turns.append(turn)

    if turn.kind == "answer":
        trajectory.answer = turn.content
        trajectory.stop = "answer"
    elif conversation.answer_turn:
        ran_into_limit = not ended_itself and len(ids) >= rules.limits.max_turn_tokens
        cut_off = ran_into_limit and turn.kind == "neither"
        trajectory.stop = "truncated" if cut_off else "no_answer"


def _search(
    unfinished: list[_Unfinished], retriever: SearchesPassages, top_k: int
) -> None:
    """Search for all queries of this turn at once."""
    searching = [
        c.trajectory for c in unfinished if c.trajectory.turns[-1].kind == "search"
    ]
    queries = [trajectory.turns[-1].content for trajectory in searching]
    found = retriever.search(queries, top_k)
    if len(found) != len(queries):
        raise ValueError(
            f"The retriever returned {len(found)} results for {len(queries)} queries."
        )
    for trajectory, passages in zip(searching, found):
        trajectory.passages.append(passages)


def _append_message(conversation: _Unfinished, turn_number: int, rules: _Rules) -> None:
    """Append what comes back after a turn, and say whether the answer turn is next."""
    limits = rules.limits
    trajectory = conversation.trajectory
    one_turn = _tokens_of_a_turn(limits)
    # What the message may take, so that one turn still fits after it.
    room = limits.max_response_tokens - len(trajectory.completion_ids) - one_turn

    conversation.answer_turn = turn_number >= limits.max_turns
    ids = _message_ids(conversation, room, rules)
    # A turn that is not the last needs room for a message and a turn after it.
    room_for_another = room - len(ids) >= rules.last_message + one_turn
    if not conversation.answer_turn and not room_for_another:
        conversation.answer_turn = True
        ids = _message_ids(conversation, room, rules)
    trajectory.append_masked(ids)


def _message_ids(conversation: _Unfinished, room: int, rules: _Rules) -> list[int]:
    """After a search an observation of at most `room` tokens, else a correction."""
    trajectory = conversation.trajectory
    answer_now = conversation.answer_turn
    if trajectory.turns[-1].kind != "search":
        return protocol.correction_ids(rules.tokenizer, rules.chat, answer_now)
    return protocol.observation_ids(
        rules.tokenizer,
        rules.chat,
        trajectory.passages[-1],
        min(room, rules.limits.max_observation_tokens),
        answer_now,
    )


class ScriptedEngine:
    """Says what it was told to: for tests, and to write training conversations by rule.

    Args:
        scripts: the text of a question -> the texts of its turns. After the last one it
            says nothing.
    """

    def __init__(self, tokenizer, scripts: dict[str, list[str]]):
        self.tokenizer = tokenizer
        self.chat = ChatFormat.from_tokenizer(tokenizer)
        # As the tokenizer gives them back: some swallow blanks behind special tokens.
        self.assistant_header = self._shown(self.chat.after_user)
        self.before_question = self._text_before_question()
        self.scripts = {}
        for question, turns in scripts.items():
            # A prompt holds the question as the tokenizer writes it.
            shown = protocol.echo(tokenizer, protocol.escape_tags(question))
            self.scripts[shown] = [self._turn_ids(turn) for turn in turns]
        # Some templates leave out the blanks around a message.
        for shown in list(self.scripts):
            self.scripts.setdefault(shown.strip(), self.scripts[shown])

    def _shown(self, text: str) -> str:
        return self.tokenizer.decode(protocol.encode(self.tokenizer, text))

    def _text_before_question(self) -> str:
        """What a prompt holds between the system prompt and the question."""
        # No template writes either of these by itself.
        system_prompt = "the system's prompt"
        question = "the user's question"
        messages = protocol.messages(question, system_prompt)
        prompt = self.tokenizer.decode(protocol.prompt_ids(self.tokenizer, messages))
        return prompt.split(system_prompt)[1].split(question)[0]

    def _turn_ids(self, turn: str) -> list[int]:
        """What the model has to write of a turn; the template may have begun it."""
        opened = self.chat.opened
        if not turn.startswith(opened):
            opened = opened.strip()
        return protocol.encode(self.tokenizer, turn.removeprefix(opened))

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        """The next turn of each conversation, cut at its limit.

        Raises:
            KeyError: for a question without a script.
        """
        return [
            Generation(self._next_turn(self.tokenizer.decode(ids))[:limit])
            for ids, limit in zip(prompt_ids, max_new_tokens)
        ]

    def _next_turn(self, conversation: str) -> list[int]:
        prompt = conversation.split(self.assistant_header, 1)[0]
        turns = self.scripts[self._question(prompt)]
        number = conversation.count(self.assistant_header) - 1
        return turns[number] if number < len(turns) else []

    def _question(self, prompt: str) -> str:
        """The question with a script that a prompt ends with.

        Where the system prompt is part of the user message, only blank lines stand
        between the two, and both may hold such lines themselves.
        """
        pieces = prompt.split(self.before_question)
        for first in range(1, len(pieces)):
            message = self.before_question.join(pieces[first:])
            question = message.removesuffix(f"\n{protocol.ANSWER_NOW}")
            if question in self.scripts:
                return question
        raise KeyError(pieces[-1])
