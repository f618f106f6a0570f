"""Owns a made-up run for tests: its files, with conversations as long as real ones."""

import random

from kr1_utils.bench import made_up
from kr1_utils.evaluation import OUTCOMES
from kr1_utils.files import write_jsonl
from kr1_utils.protocol import render_context, render_turn

TYPES = ("compositional", "comparison", "inference", "bridge_comparison")
GROUP = 8
TOP_K = 3
THOUGHT_WORDS = 25


def write_run(folder, steps, questions, seed=0):
    """Write the files that 03 and 04 leave: a group per step, and two evaluations.

    Args:
        steps: of the training; each leaves 8 trajectories.
        questions: evaluated before training and after it.

    Returns:
        how many trajectories there are.
    """
    chance = random.Random(seed)
    passages = list(made_up.passages(12 + 5 * (steps + questions), seed))
    training = []
    for step in range(1, steps + 1):
        question = f"Step {step}: who wrote {chance.choice(passages)['title']}?"
        near = chance.sample(passages, 12)
        kind = chance.choice(TYPES)
        for _ in range(GROUP):
            row = {"step": step, "id": f"train-{step}", "type": kind}
            row |= conversation(chance, question, near)
            row |= {"answer": near[0]["title"], "stop": "answer", "advantage": 0.25}
            row |= {"sampled": 90, "retrieved": 900, "reward": chance.randint(-1, 2)}
            row |= {"rewards": {"accuracy_reward": 1.0, "format_reward": 1.0}}
            training.append(row | {"outcome": chance.choice(OUTCOMES)})
    write_jsonl(folder / "trajectories.jsonl", training)
    for name in ("predictions_before", "predictions"):
        rows = []
        for number in range(questions):
            near = chance.sample(passages, 12)
            question = f"Question {number}: where lies {near[0]['title']}?"
            row = conversation(chance, question, near)
            row |= {"id": f"test-{number}", "type": TYPES[number % len(TYPES)]}
            row |= {"prediction": near[0]["title"], "em": 1.0, "f1": 1.0}
            row |= {"outcome": chance.choice(OUTCOMES), "stop": "answer"}
            row |= {"sampled_length": 90, "retrieved_length": 900}
            rows.append(row | {"searches": len(row["turns"]) - 1})
        write_jsonl(folder / f"{name}.jsonl", rows)
    return len(training) + 2 * questions


def conversation(chance, question, near):
    """A conversation over the passages `near`, with each token's log-probability."""
    searches = chance.randint(1, 3)
    turns = []
    observations = []
    for search in range(searches + 1):
        words = chance.choice(near)["text"].split() * THOUGHT_WORDS
        thought = " ".join(words[:THOUGHT_WORDS])
        last = search == searches
        turns.append(
            render_turn(thought, "answer" if last else "search", near[0]["title"])
        )
        if not last:
            # The first query is the same for most of a group.
            found = near[:TOP_K] if not search else chance.sample(near, TOP_K)
            observations.append(f"<context>\n{render_context(found)}\n</context>")
    pieces = [[word + " " for word in turn.split(" ")] for turn in turns]
    return {
        "question": question,
        "golden_answers": [near[0]["title"]],
        "turns": turns,
        "observations": observations,
        "token_lengths": [[*map(len, p[:-1]), len(p[-1]) - 1, 0] for p in pieces],
        "logprobs": [
            [round(-(chance.random() ** 6), 3) for _ in range(len(p) + 1)]
            for p in pieces
        ],
    }
