"""Owns decisions: how likely a model is to answer, to search or to give up.

The rule-following expert of miniwiki leads a conversation. Before its first search and
after each one it stops. The model gets the expert's notes up to there, and its own
probabilities say which phrase is likely to follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kr1_utils import expert, protocol
from kr1_utils.agent import ScriptedEngine, Trajectory, rollout
from kr1_utils.extras import missing
from kr1_utils.profiles import Limits

try:
    import torch
except ImportError:
    torch = missing("train")

CHOICES = ("answer", "search", "give up")

# How a turn may go on, and what that decides: before the first search …
OPENINGS = (
    ("answer", f" {expert.KNOWS}"),
    ("search", f" {expert.READS}"),
    ("give up", f" {expert.GIVES_UP}"),
)
# … and after a search, behind the note of what was read.
CONTINUATIONS = (
    ("answer", "</think><answer>"),
    ("search", "</think><search>"),
    ("search", f" {expert.CHECKS}"),
    ("give up", f" {expert.GIVES_UP}"),
)


@dataclass(frozen=True)
class DecisionPoint:
    """One place in the expert's conversation about one question.

    `phrases` holds what each phrase decides and its token ids, behind those that all
    phrases have in common: these end `context`.
    """

    type: str
    # Made so far.
    searches: int
    # (C,) token ids.
    context: tuple[int, ...]
    phrases: tuple[tuple[str, tuple[int, ...]], ...]


def decision_points(
    tokenizer,
    retriever,
    questions: list[dict],
    limits: Limits,
    system_prompt: str,
) -> list[DecisionPoint]:
    """The places where something is to be decided, in the order of the questions.

    Args:
        retriever: anything with `search(queries, k)`.
        questions: of miniwiki, whose expert speaks (see `expert.demonstration`).
        limits: of one conversation.
        system_prompt: what it starts with.
    """
    scripts = {
        question["question"]: [
            protocol.render_turn(*turn) for turn in expert.demonstration(question)
        ]
        for question in questions
    }
    engine = ScriptedEngine(tokenizer, scripts)
    made = rollout(engine, tokenizer, retriever, questions, limits, system_prompt)
    return [point for t in made for point in _points_of(t, tokenizer)]


def _points_of(trajectory: Trajectory, tokenizer) -> Iterator[DecisionPoint]:
    question = trajectory.question
    thoughts = [thought for thought, _, _ in expert.demonstration(question)]
    opened = protocol.ChatFormat.from_tokenizer(tokenizer).opened
    for number, start in enumerate(_starts_of_turns(trajectory.loss_mask)):
        begun = "<think>" if number == 0 else f"<think> {thoughts[number]}"
        choices = OPENINGS if number == 0 else CONTINUATIONS
        texts = [(begun + phrase).removeprefix(opened) for _, phrase in choices]
        ids = [protocol.encode(tokenizer, text) for text in texts]
        common = _length_of_common_start(ids)
        before = trajectory.prompt_ids + trajectory.completion_ids[:start]
        yield DecisionPoint(
            question["type"],
            number,
            tuple(before + ids[0][:common]),
            tuple(
                (choice, tuple(row[common:])) for (choice, _), row in zip(choices, ids)
            ),
        )


def _starts_of_turns(loss_mask: list[int]) -> list[int]:
    """Where the mask goes from 0 to 1: `[1, 1, 0, 0, 1]` has turns at 0 and 4."""
    before = [0, *loss_mask]
    return [i for i, mask in enumerate(loss_mask) if mask and not before[i]]


def _length_of_common_start(rows: list[list[int]]) -> int:
    length = 0
    for column in zip(*rows):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def weigh(model, points: list[DecisionPoint], batch_size: int = 64) -> list[dict]:
    """The model's probability of each choice at each point.

    Args:
        model: a causal language model of transformers.
        points: from `decision_points`.
        batch_size: phrases in one forward pass.

    Returns:
        One row per point, in order: `type`, `searches`, and a probability, summed over
        its phrases, for each of `CHOICES`. They need not sum to 1: the model may go on
        in some other way.
    """
    rows = [
        {"type": p.type, "searches": p.searches, **dict.fromkeys(CHOICES, 0.0)}
        for p in points
    ]
    phrases = [
        (number, choice, point.context, ids)
        for number, point in enumerate(points)
        for choice, ids in point.phrases
    ]
    # Of about one length, so that little is padding.
    phrases.sort(key=lambda phrase: len(phrase[2]))
    was_training = model.training
    model.eval()
    for start in range(0, len(phrases), batch_size):
        batch = phrases[start : start + batch_size]
        found = _probabilities(model, [(context, ids) for _, _, context, ids in batch])
        for (number, choice, _, _), probability in zip(batch, found):
            rows[number][choice] += probability
    model.train(was_training)
    return rows


def _probabilities(model, batch: list[tuple[tuple, tuple]]) -> list[float]:
    """Of each row's last ids, given the context before them."""
    width = max(len(context) + len(ids) for context, ids in batch)
    longest = max(len(ids) for _, ids in batch)
    input_ids = torch.zeros(len(batch), width, dtype=torch.long)
    seen = torch.zeros_like(input_ids)
    wanted = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (context, ids) in enumerate(batch):
        whole = torch.tensor(context + ids)
        input_ids[row, -len(whole) :] = whole
        seen[row, -len(whole) :] = 1
        wanted[row, -len(ids) :] = True
    input_ids, seen, wanted = (x.to(model.device) for x in (input_ids, seen, wanted))
    with torch.no_grad():
        logits = model(
            input_ids=input_ids,
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
    targets = input_ids[:, -longest:, None]
    log_probabilities = logits.float().log_softmax(-1).gather(-1, targets)[..., 0]
    return (log_probabilities * wanted).sum(1).exp().tolist()


def by_type(rows: list[dict]) -> list[dict]:
    """Mean probabilities for each type of question and number of searches made."""
    places = sorted({(row["type"], row["searches"]) for row in rows})
    return [_means(kind, searches, rows) for kind, searches in places]


def _means(kind: str, searches: int, rows: list[dict]) -> dict:
    here = [r for r in rows if (r["type"], r["searches"]) == (kind, searches)]
    means = {c: sum(r[c] for r in here) / len(here) for c in CHOICES}
    return {"type": kind, "searches": searches, "points": len(here), **means}
