"""Owns the loop: generate, parse, search, append, over a whole batch of questions.

`rollout` is the one loop; the demo, the trainer and the evaluator all call it.
"""

from dataclasses import dataclass, field

from kr1_utils import profiles, protocol
from kr1_utils.engines.base import Generation
from kr1_utils.profiles import Limits
from kr1_utils.protocol import ChatFormat, Turn


@dataclass
class Trajectory:
    """One conversation about one question.

    `completion_ids`, `loss_mask` and, where the engine gives them, `logprobs` have one
    length (T,); mask 1 is what the model sampled, 0 is what was appended to it."""

    question: dict
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # one a turn, as written
    passages: list[list[dict]] = field(default_factory=list)  # one list a search
    answer: str | None = None
    # "answer", "no_answer" (the last turn had none), "truncated" (it ran too long) or,
    # where prompt and
    # response may not fit the model's window and nothing was sampled, "prompt_too_long"
    stop: str = ""

    @property
    def searches(self) -> int:
        return len(self.passages)  # a search in the answer turn is not made

    @property
    def sampled_length(self) -> int:
        return sum(self.loss_mask)

    @property
    def retrieved_length(self) -> int:
        return len(self.loss_mask) - sum(self.loss_mask)

    def to_record(self) -> dict:
        """What trajectories.jsonl keeps of it."""
        return {
            "question": self.question["question"],
            "turns": self.texts,
            "answer": self.answer,
            "stop": self.stop,
            "sampled": self.sampled_length,
            "retrieved": self.retrieved_length,
        }

    def _append(
        self, ids: list[int], mask: int, logprobs: list[float] | None = None
    ) -> None:
        self.completion_ids += ids
        self.loss_mask += [mask] * len(ids)
        if self.logprobs is not None:
            self.logprobs += logprobs if mask else [0.0] * len(ids)


def check_limits(limits: Limits, tokenizer, chat: ChatFormat) -> int:
    """Tokens of the shortest message that asks for the last turn; refuses limits
    without room.

    Raises:
        ValueError: if one search turn, an empty observation and the answer turn do not
            fit.
    """
    for name in ("top_k", "max_turn_tokens"):
        if getattr(limits, name) < 1:
            raise ValueError(f"{name}={getattr(limits, name)} must be at least 1.")
    shortest = len(
        protocol.observation_ids(tokenizer, chat, [], 10**6, answer_now=True)
    )
    shortest = max(shortest, len(_correction(tokenizer, chat, True)))
    least = (
        limits.max_turn_tokens
        + 1
        + (limits.max_turns > 0) * (limits.max_turn_tokens + 1 + shortest)
    )
    if limits.max_response_tokens < least:
        raise ValueError(
            f"max_response_tokens={limits.max_response_tokens} leaves no room for one"
            f" turn of max_turn_tokens={limits.max_turn_tokens} and an answer: it must"
            f" be at least {least}."
        )
    if limits.max_observation_tokens < shortest:
        raise ValueError(
            f"max_observation_tokens={limits.max_observation_tokens} is too small for"
            f" an empty observation: it must be at least {shortest}."
        )
    return shortest


def _correction(tokenizer, chat: ChatFormat, last: bool) -> list[int]:
    text = protocol.CORRECTION + (f"\n{protocol.ANSWER_NOW}" if last else "")
    return protocol.user_ids(tokenizer, chat, text)


def rollout(
    engine,
    tokenizer,
    retriever,
    questions: list[dict],
    limits: Limits,
    system_prompt: str = profiles.SYSTEM_PROMPT,
    on_turn=None,
) -> list[Trajectory]:
    """Answer all `questions` together: one `generate` and one `search` call a turn.

    Args:
        engine: `generate(prompt_ids, max_new_tokens) -> list[Generation]`, one a
            prompt, in order. If it has a `window` (tokens), questions that may not fit
            it are not asked.
        retriever: `search(queries, k) -> list[list[passage]]`, one list a query, in
            order.
        questions: `{"question": …}`, other keys are kept; the same one may come several
            times.
        on_turn: called with (turn number, unfinished trajectories) after each turn, for
            progress.

    Returns:
        one trajectory a question, in order, never longer than
        `limits.max_response_tokens`.
    """
    chat = ChatFormat.from_tokenizer(tokenizer)
    shortest = check_limits(limits, tokenizer, chat)
    one_turn = limits.max_turn_tokens + 1  # the end-of-turn token may be ours
    everyone = [
        Trajectory(
            q,
            protocol.prompt_ids(
                tokenizer,
                protocol.messages(q["question"], system_prompt, limits.max_turns == 0),
            ),
        )
        for q in questions
    ]
    window = getattr(engine, "window", None)
    for t in everyone:
        if window and len(t.prompt_ids) + limits.max_response_tokens > window:
            t.stop = "prompt_too_long"
            del t.prompt_ids[
                max(1, window - limits.max_response_tokens) :
            ]  # no room for it in a batch either
            t._append([chat.end_of_turn], 0)  # a completion is never empty
    last = {
        id(t): limits.max_turns == 0 for t in everyone
    }  # whose next turn is the answer turn
    todo, number = [t for t in everyone if not t.stop], 0
    while todo:
        number += 1
        generations = engine.generate(
            [t.prompt_ids + t.completion_ids for t in todo],
            [limits.max_turn_tokens] * len(todo),
        )
        if len(generations) != len(todo):
            raise ValueError(
                f"The engine returned {len(generations)} turns for {len(todo)} prompts."
            )
        for t, g in zip(todo, generations):
            _end_turn(t, g, tokenizer, chat, last[id(t)], limits.max_turn_tokens)
        todo = [t for t in todo if not t.stop]
        searching = [t for t in todo if t.turns[-1].kind == "search"]
        found = retriever.search([t.turns[-1].content for t in searching], limits.top_k)
        for t, passages in zip(searching, found, strict=True):
            t.passages.append(passages)
        for t in todo:
            room = limits.max_response_tokens - len(t.completion_ids) - one_turn
            last[id(t)] = number >= limits.max_turns
            ids = _message(
                t,
                tokenizer,
                chat,
                min(room, limits.max_observation_tokens),
                last[id(t)],
            )
            if not last[id(t)] and room - len(ids) < one_turn + shortest:
                last[id(t)] = True  # no room for a turn more before the answer turn
                ids = _message(
                    t, tokenizer, chat, min(room, limits.max_observation_tokens), True
                )
            t._append(ids, 0)
        if on_turn:
            on_turn(number, todo)
    return everyone


def _end_turn(
    t: Trajectory, g: Generation, tokenizer, chat: ChatFormat, last: bool, limit: int
) -> None:
    """Append what was sampled, close the turn, and decide whether the conversation is
    over."""
    if g.logprobs is None:
        t.logprobs = None
    t._append(g.ids, 1, g.logprobs)
    closed = bool(g.ids) and g.ids[-1] == chat.end_of_turn
    if not closed:
        t._append([chat.end_of_turn], 0)
    text = tokenizer.decode(g.ids[:-1] if closed else g.ids)
    turn = protocol.parse_turn(text)
    t.texts.append(text)
    t.turns.append(turn)
    if turn.kind == "answer":
        t.answer, t.stop = turn.content, "answer"
    elif last:
        cut = not closed and turn.kind == "neither" and len(g.ids) >= limit
        t.stop = "truncated" if cut else "no_answer"


def _message(
    t: Trajectory, tokenizer, chat: ChatFormat, limit: int, last: bool
) -> list[int]:
    if t.turns[-1].kind == "search":
        return protocol.observation_ids(tokenizer, chat, t.passages[-1], limit, last)
    return _correction(tokenizer, chat, last)


class ScriptedEngine:
    """Says what it was told to: for tests, and for writing training conversations by
    rule.

    Args:
        scripts: question text -> the texts of its turns; after the last one it falls
            silent.
    """

    def __init__(self, tokenizer, scripts: dict[str, list[str]]):
        self.tokenizer = tokenizer
        self.scripts = {
            protocol.echo(tokenizer, protocol.escape_tags(q)): [
                tokenizer(t, add_special_tokens=False)["input_ids"] for t in s
            ]
            for q, s in scripts.items()
        }
        user, header = (
            ChatFormat.from_tokenizer(tokenizer).after_user,
            ChatFormat.from_tokenizer(tokenizer).before_user,
        )
        self.user_starts, self.assistant_starts = header.lstrip(), user

    def generate(
        self, prompt_ids: list[list[int]], max_new_tokens: list[int]
    ) -> list[Generation]:
        out = []
        for ids, limit in zip(prompt_ids, max_new_tokens):
            text = self.tokenizer.decode(ids)
            question = text.split(self.user_starts, 1)[1].split(
                self.assistant_starts, 1
            )[0]
            turn = text.count(self.assistant_starts) - 1
            script = self.scripts[question.removesuffix(f"\n{protocol.ANSWER_NOW}")]
            out.append(Generation((script[turn] if turn < len(script) else [])[:limit]))
        return out
