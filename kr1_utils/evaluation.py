"""Owns evaluation: answers scored, evidence found, ways to fail, recall, summaries."""

import numpy as np

from kr1_utils import profiles
from kr1_utils.agent import CUT_OFF, Trajectory, rollout
from kr1_utils.decisions import DecisionPoint, weigh
from kr1_utils.decisions import by_type as by_type_of_decision
from kr1_utils.notebook import progress
from kr1_utils.profiles import Limits
from kr1_utils.records import conversation
from kr1_utils.rewards import format_score
from kr1_utils.scoring import CLOSED_ANSWERS, exact_match, f1_score, normalize_answer

# Normalized answers that say that no answer was found.
SURRENDERS = {
    "no answer",
    "noanswer",
    "unknown",
    "none",
    "not found",
    "i do not know",
    "i dont know",
}

# How a conversation can end, see `outcome`.
OUTCOMES = (
    "right",
    "misread",
    "not retrieved",
    "gave up",
    "in circles",
    "format",
    "budget",
)


def evidence(trajectory: Trajectory) -> list[int]:
    """Whether each piece of evidence was among the passages found, 1 or 0.

    Returns:
        One number per title of the question's `supporting_titles`. Where these are not
        known, one number: whether a gold answer is in a passage, as whole words.
    """
    found = [passage for passages in trajectory.passages for passage in passages]
    supporting_titles = trajectory.question.get("supporting_titles")
    if supporting_titles:
        titles = {passage["title"] for passage in found}
        return [int(title in titles) for title in supporting_titles]
    rank = answer_rank(found, trajectory.question["golden_answers"])
    return [int(rank is not None)]


def outcome(trajectory: Trajectory) -> str:
    """How a conversation ended: the first of these that applies.

    - right: the answer is an exact match.
    - budget: a limit cut it off, or it still searched in its last turn.
    - format: no answer can be read.
    - misread: all evidence was found, so the answer is wrong for another reason.
    - in circles: it made a query twice.
    - gave up: it made fewer searches than there are pieces of evidence, or says that
      there is no answer.
    - not retrieved: the searches brought other passages.
    """
    answer = trajectory.answer
    found = evidence(trajectory)
    if exact_match(answer, trajectory.question["golden_answers"]):
        return "right"
    if trajectory.stop in CUT_OFF or _wanted_to_search_on(trajectory):
        return "budget"
    if answer is None:
        return "format"
    if all(found):
        return "misread"
    if _made_a_query_twice(trajectory):
        return "in circles"
    searched_too_little = trajectory.searches < len(found)
    surrendered = normalize_answer(answer) in SURRENDERS
    if searched_too_little or surrendered:
        return "gave up"
    return "not retrieved"


def _wanted_to_search_on(trajectory: Trajectory) -> bool:
    if trajectory.stop != "no_answer":
        return False
    return trajectory.turns[-1].kind == "search"


def _made_a_query_twice(trajectory: Trajectory) -> bool:
    searches = [turn for turn in trajectory.turns if turn.kind == "search"]
    queries = [normalize_answer(turn.content) for turn in searches]
    return len(set(queries)) < len(queries)


def score(trajectory: Trajectory) -> dict:
    """The answer, its scores, its cost, and its outcome."""
    question = trajectory.question
    answer = trajectory.answer
    golden_answers = question["golden_answers"]
    return {
        "id": question["id"],
        "type": question.get("type", ""),
        "prediction": answer,
        "outcome": outcome(trajectory),
        "evidence": evidence(trajectory),
        "golden_answers": golden_answers,
        "em": exact_match(answer, golden_answers),
        "f1": f1_score(answer, golden_answers),
        "format": float(format_score(trajectory.turns) > 0),
        "searches": trajectory.searches,
        "sampled_length": trajectory.sampled_length,
        "retrieved_length": trajectory.retrieved_length,
        "stop": trajectory.stop,
        "passage_ids": [[p["id"] for p in found] for found in trajectory.passages],
    }


def evaluate(
    engine,
    tokenizer,
    retriever,
    questions: list[dict],
    limits: Limits,
    system_prompt: str = profiles.SYSTEM_PROMPT,
) -> list[dict]:
    """Answer questions through the agent loop and score each answer.

    Args:
        engine: anything with `generate(prompt_ids, max_new_tokens)`.
        tokenizer: the engine's.
        retriever: anything with `search(queries, k)`.
        questions: `{"id", "question", "golden_answers"}` and, where known, `type` and
            `supporting_titles`.
        limits: of one conversation.
        system_prompt: what the conversation starts with.

    Returns:
        One line of predictions.jsonl per question, in their order: its `score`, and its
        `conversation`.
    """
    bar = progress(
        len(questions) * (limits.max_turns + 1), "answering", " turns", leave=False
    )
    with bar:
        # The bar counts turns and moves after each batch of them. A conversation that
        # ends early adds the turns that it did not need.
        engine.on_batch = bar.update

        def show_progress(turn: int, unfinished: list) -> None:
            over = len(questions) - len(unfinished)
            bar.n = over * (limits.max_turns + 1) + len(unfinished) * turn
            bar.refresh()

        trajectories = rollout(
            engine,
            tokenizer,
            retriever,
            questions,
            limits,
            system_prompt,
            show_progress,
        )
        engine.on_batch = None
        return [score(t) | conversation(t, tokenizer) for t in trajectories]


def by_type(predictions: list[dict]) -> list[dict]:
    """Mean scores of each question type, in the order of names, and of "all" last."""
    types = sorted({p["type"] for p in predictions})
    rows = []
    for name in types:
        part = [p for p in predictions if p["type"] == name]
        rows.append(_row_of_means(name, part))
    rows.append(_row_of_means("all", predictions))
    return rows


def _row_of_means(name: str, predictions: list[dict]) -> dict:
    row = {"type": name, "questions": len(predictions)}
    for key in ("em", "f1", "format", "searches", "sampled_length", "retrieved_length"):
        row[key] = mean(predictions, key)
    row["truncated"], _ = truncation(predictions)
    return row


def truncation(predictions: list[dict]) -> tuple[float, float]:
    """Share of conversations that a limit cut off, and the exact match of the others.

    A limit that is too tight looks like a model that is wrong; these two numbers tell
    them apart. NaN where there are no conversations.
    """
    if not predictions:
        return float("nan"), float("nan")
    whole = [p for p in predictions if p["stop"] not in CUT_OFF]
    share_cut_off = 1 - len(whole) / len(predictions)
    return share_cut_off, mean(whole, "em")


def mean(predictions: list[dict], key: str) -> float:
    """Mean of `key` over predictions; NaN if there are none."""
    if not predictions:
        return float("nan")
    return float(np.mean([p[key] for p in predictions]))


def decisions(model, points: list[DecisionPoint]) -> list[dict]:
    """What a model would do where it may answer, search or give up.

    Args:
        model: a causal language model of transformers.
        points: from `decisions.decision_points`.

    Returns:
        One row per type of question and number of searches made: `type`, `searches`,
        `points`, and the mean probability of each choice; see `decisions.weigh`.
    """
    return by_type_of_decision(weigh(model, points))


def answer_rank(passages: list[dict], golden_answers: list[str]) -> int | None:
    """Rank, from 1, of the first passage in which a gold answer stands as whole words.

    Both are normalized; "Ann" is not found in "Hannah". An answer that normalizing
    makes empty, such as "The The", is found nowhere. None if no passage has one.
    """
    golden = [_as_words(g) for g in golden_answers if normalize_answer(g)]
    for rank, passage in enumerate(passages, 1):
        text = _as_words(f"{passage['title']} {passage['text']}")
        if any(g in text for g in golden):
            return rank
    return None


def _as_words(text: str) -> str:
    """Normalized, with a blank at either end, so that "no" is not found in "north"."""
    return f" {normalize_answer(text)} "


def answer_recall(
    found: list[list[dict]], questions: list[dict], ks=(1, 3, 5, 10)
) -> dict[int, float]:
    """Share of questions with a gold answer, as whole words, in the first k passages.

    Questions whose answer is yes or no are left out: these words are in any text.

    Args:
        found: one list of passages per question, the best first.
        questions: as many, with `golden_answers`.
        ks: the numbers of passages to look at.

    Returns:
        k -> share; NaN if no question is left.

    Raises:
        ValueError: if `found` and `questions` differ in length.
    """
    ranks = [
        answer_rank(passages, question["golden_answers"])
        for passages, question in zip(found, questions, strict=True)
        if not _is_closed(question)
    ]
    return {k: _share_within(ranks, k) for k in ks}


def _is_closed(question: dict) -> bool:
    golden = {normalize_answer(g) for g in question["golden_answers"]}
    return bool(golden & CLOSED_ANSWERS)


def _share_within(ranks: list[int | None], k: int) -> float:
    if not ranks:
        return float("nan")
    return float(np.mean([rank is not None and rank <= k for rank in ranks]))


# Name in summary.json -> column of the predictions.
SUMMARY_KEYS = {
    "em": "em",
    "f1": "f1",
    "searches": "searches",
    "response_length": "sampled_length",
    "retrieved_length": "retrieved_length",
    "format": "format",
}


def before_and_after(
    before: dict[str, list[dict]], after: dict[str, list[dict]]
) -> dict:
    """The numbers of summary.json.

    Args:
        before: predictions before training on "test", and, where there are any, on
            "test_single" and "test_known".
        after: those after it.

    Returns:
        name_before and name_after: for `SUMMARY_KEYS`, truncation and exact match
        without it over "test"; `em_single`, `searches_single` over "test_single" (None
        if that is empty); `by_type` over all.
    """
    summary: dict = {}
    for when, sets in (("before", before), ("after", after)):
        summary.update(_summary_of(sets, when))
    return summary


def _summary_of(sets: dict[str, list[dict]], when: str) -> dict:
    test, single = sets["test"], sets.get("test_single", [])
    summary = {f"{name}_{when}": mean(test, key) for name, key in SUMMARY_KEYS.items()}
    for key in ("em", "searches"):
        # None, because JSON has no NaN.
        summary[f"{key}_single_{when}"] = mean(single, key) if single else None
    share_cut_off, em_of_others = truncation(test)
    summary[f"truncated_{when}"] = share_cut_off
    summary[f"em_not_truncated_{when}"] = em_of_others
    everything = [p for predictions in sets.values() for p in predictions]
    summary[f"by_type_{when}"] = by_type(everything)
    return summary


# `python -m kr1_utils.evaluation` is the same as `kr1 score`.
if __name__ == "__main__":
    import sys

    from kr1_utils.cli import main

    sys.exit(main(["score", *sys.argv[1:]]))
