"""Owns the cold start: what a pretrained model is shown before GRPO trains it."""

import random
from dataclasses import dataclass
from pathlib import Path

from kr1_utils import corpus, expert, mining, miniwiki, protocol
from kr1_utils.agent import ScriptedEngine, Trajectory, rollout
from kr1_utils.mining.without import NamedTitles
from kr1_utils.profiles import Profile
from kr1_utils.retriever import Retriever

# In a fictional world: questions of each type.
MIX = {
    "single": 50,
    "compositional": 70,
    "comparison": 60,
    "inference": 40,
    "bridge_comparison": 60,
}
FIRST_WORLD = 3000


@dataclass(frozen=True)
class Lessons:
    """What a cold start is made of.

    Attributes:
        demonstrations: the expert's conversations, to be imitated.
        to_train_on: questions that GRPO trains on afterwards; none of them is in the
            demonstrations. Empty where the profile has training questions of its own.
        statistics: of what was mined, one row per type and kind.
    """

    demonstrations: list[Trajectory]
    to_train_on: list[dict]
    statistics: list[dict]


def from_corpus(
    where: dict[str, Path | None],
    passages: list[dict],
    retriever,
    tokenizer,
    profile: Profile,
    seed: int,
) -> Lessons:
    """Lessons about the passages of a real corpus, mined by rule.

    Nothing in them names a title that a test question names.

    Args:
        where: the files of a run; `train_extra` holds more questions to train on.

    Raises:
        ValueError: if the rules find too few questions for the cold start.
    """
    test = [q for name in corpus.TEST_SETS for q in corpus.load_split(where, name)]
    mined = mining.mine_questions(passages, test, seed)
    questions = mined.train.copy()
    random.Random(seed).shuffle(questions)
    needed = profile.cold_start_steps * profile.cold_start_batch
    shown: list[Trajectory] = []
    asked = 0
    while len(shown) < needed and asked < len(questions):
        batch = questions[asked : asked + needed - len(shown)]
        asked += len(batch)
        shown += demonstrations(batch, tokenizer, retriever, profile)
    if len(shown) < needed:
        raise ValueError(
            f"The rules found {len(shown)} questions for the cold start, and"
            f" cold_start_steps × cold_start_batch = {needed} are wanted: set fewer"
            " steps, or take a corpus in the style of Wikipedia's first paragraphs."
        )
    return Lessons(
        shown,
        questions[asked:] + _more_questions(where, test, passages),
        mined.statistics,
    )


def _more_questions(
    where: dict[str, Path | None], test: list[dict], passages: list[dict]
) -> list[dict]:
    """Questions beside the mined ones, without those that name what the test names."""
    if not where.get("train_extra"):
        return []
    named = NamedTitles(test, (passage["title"] for passage in passages))
    extra = corpus.load_questions(where["train_extra"])
    return [question for question in extra if not named.in_question(question)]


def from_miniwiki(
    tokenizer, profile: Profile, seed: int, mix: dict[str, int] = MIX
) -> Lessons:
    """Lessons about fictional worlds: the form can be learned from them, not the
    facts.

    Args:
        mix: how many questions of each type are asked about one world.
    """
    needed = profile.cold_start_steps * profile.cold_start_batch
    shown: list[Trajectory] = []
    world_seed = FIRST_WORLD
    while len(shown) < needed:
        world = miniwiki.make_world(world_seed)
        questions = miniwiki.make_questions(
            world, mix, set(world.kind), world_seed, "q"
        )
        retriever = Retriever.build(world.passages)
        shown += demonstrations(questions, tokenizer, retriever, profile)
        world_seed += 1
    random.Random(seed).shuffle(shown)
    return Lessons(shown[:needed], [], [])


def demonstrations(
    questions: list[dict], tokenizer, retriever, profile: Profile
) -> list[Trajectory]:
    """The expert's conversations that found all evidence within the limits."""
    scripts = {
        question["question"]: [
            protocol.render_turn(*turn) for turn in expert.demonstration(question)
        ]
        for question in questions
    }
    made = rollout(
        ScriptedEngine(tokenizer, scripts),
        tokenizer,
        retriever,
        questions,
        profile.limits,
        profile.system_prompt,
    )
    return [t for t in made if t.answer and t.stop == "answer" and _found_all(t)]


def _found_all(trajectory: Trajectory) -> bool:
    titles = {p["title"] for found in trajectory.passages for p in found}
    return set(trajectory.question["supporting_titles"]) <= titles
