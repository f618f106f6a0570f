"""Owns what a trajectory earns: Knowledge-R1's two rewards, exact match and format.

Reward functions have TRL's signature: lists in, one number per trajectory out. Beside
the data set's columns (`golden_answers`, …) they are given `answer`, `turns`,
`searches`, `stop`, `passages` and the whole `trajectory`, one of each per completion
(see `trainer.FIELDS`).
"""

from trl.rewards import get_soft_overlong_punishment

from kr1_utils.profiles import Profile
from kr1_utils.protocol import Turn
from kr1_utils.scoring import exact_match


def format_score(turns: list[Turn]) -> float:
    """+1 if every turn but the last is one <think> and one <search>, the last one
    <think> and one <answer>, and nothing stands beside them; else −1."""
    wanted = ["search"] * (len(turns) - 1) + ["answer"]
    good = [t.kind for t in turns] == wanted and all(t.well_formed for t in turns)
    return 1.0 if good else -1.0


def accuracy_reward(
    answer: list[str | None], golden_answers: list[list[str]], **_
) -> list[float]:
    """Exact match, 0 or 1, for each trajectory."""
    return [exact_match(a, g) for a, g in zip(answer, golden_answers, strict=True)]


def format_reward(turns: list[list[Turn]], **_) -> list[float]:
    """Format, +1 or −1, for each trajectory."""
    return [format_score(t) for t in turns]


def reward_functions(profile: Profile) -> tuple[list, list[float]]:
    """The profile's reward functions and their weights.

    With `overlong_tokens`, also DAPO's soft overlong punishment (Yu et al., 2025,
    section 3.4, https:// arxiv.org/abs/2503.14476): 0 until so few tokens are left to
    `max_response_tokens`, falling to −1 there."""
    functions, weights = (
        [accuracy_reward, format_reward],
        [profile.accuracy_weight, profile.format_weight],
    )
    if profile.overlong_tokens:
        most = profile.limits.max_response_tokens
        return [
            *functions,
            get_soft_overlong_punishment(most, profile.overlong_tokens),
        ], [*weights, 1.0]
    return functions, weights
