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


def weigh(model, points: list[DecisionPoint], batch_size: int = 32) -> list[dict]:
    """The model's probability of each choice at each point.

    Args:
        model: a causal language model of transformers, with a cache of keys and values.
        points: from `decision_points`.
        batch_size: points in one forward pass.

    Returns:
        One row per point, in order: `type`, `searches`, and a probability, summed over
        its phrases, for each of `CHOICES`. They need not sum to 1: the model may go on
        in some other way.
    """
    rows = [
        {"type": p.type, "searches": p.searches, **dict.fromkeys(CHOICES, 0.0)}
        for p in points
    ]
    # Of about one length, so that little is padding.
    order = sorted(range(len(points)), key=lambda number: len(points[number].context))
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        # Which row each phrase belongs to, and what it decides.
        decided = [
            (number, choice) for number in batch for choice, _ in points[number].phrases
        ]
        with torch.no_grad():
            found = _phrase_probabilities(model, [points[number] for number in batch])
        for (number, choice), probability in zip(decided, found):
            rows[number][choice] += probability
    model.train(was_training)
    return rows


def _phrase_probabilities(model, points: list[DecisionPoint]) -> list[float]:
    """Of each phrase of each point, given the point's context.

    A context is read once: its phrases share the keys and values.
    """
    contexts, seen = _padded([p.context for p in points], model.device, on_left=True)
    read = model(
        input_ids=contexts,
        attention_mask=seen,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    # The row of the context that each phrase goes on from.
    origin = [row for row, p in enumerate(points) for _ in p.phrases]
    origin = torch.tensor(origin, device=model.device)
    read.past_key_values.batch_select_indices(origin)
    phrases, wanted = _padded(
        [ids for p in points for _, ids in p.phrases], model.device
    )
    length = seen.sum(1)[origin]
    gone_on = model(
        input_ids=phrases,
        attention_mask=torch.cat([seen[origin], wanted], 1),
        position_ids=length[:, None] + torch.arange(phrases.shape[1]).to(length),
        past_key_values=read.past_key_values,
    )
    # (phrases, ids, vocabulary): what was expected before each of a phrase's ids.
    logits = torch.cat([read.logits[origin], gone_on.logits[:, :-1]], 1).float()
    log_probabilities = logits.log_softmax(-1).gather(-1, phrases[..., None])[..., 0]
    return (log_probabilities * wanted).sum(1).exp().tolist()


def _padded(rows: list[tuple[int, ...]], device, on_left: bool = False):
    """Rows of ids as one tensor, and a mask that is 1 where an id is one of theirs."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), None) if on_left else slice(len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids.to(device), mask.to(device)


def by_type(rows: list[dict]) -> list[dict]:
    """Mean probabilities for each type of question and number of searches made."""
    places = sorted({(row["type"], row["searches"]) for row in rows})
    return [_means(kind, searches, rows) for kind, searches in places]


def _means(kind: str, searches: int, rows: list[dict]) -> dict:
    here = [r for r in rows if (r["type"], r["searches"]) == (kind, searches)]
    means = {c: sum(r[c] for r in here) / len(here) for c in CHOICES}
    return {"type": kind, "searches": searches, "points": len(here), **means}
