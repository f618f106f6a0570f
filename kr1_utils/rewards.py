"""Owns what a trajectory earns: Knowledge-R1's two rewards, exact match and format.

Reward functions have TRL's signature: lists in, one number per trajectory out. Beside
the data set's columns (`golden_answers`, …) the trainer gives them `answer`, `turns`,
`searches`, `stop`, `passages` and the whole `trajectory`, each a list with one entry
per trajectory.
"""

from kr1_utils.extras import missing
from kr1_utils.profiles import Profile
from kr1_utils.protocol import Turn
from kr1_utils.scoring import exact_match


def format_score(turns: list[Turn]) -> float:
    """+1.0 if a conversation keeps to the format, else −1.0.

    Every turn must be well formed; all but the last must search, and the last must
    answer.
    """
    wanted = ["search"] * (len(turns) - 1) + ["answer"]
    kinds = [turn.kind for turn in turns]
    well_formed = all(turn.well_formed for turn in turns)
    return 1.0 if kinds == wanted and well_formed else -1.0


def accuracy_reward(
    answer: list[str | None], golden_answers: list[list[str]], **_
) -> list[float]:
    """Exact match, 0 or 1, for each trajectory."""
    return [exact_match(a, g) for a, g in zip(answer, golden_answers, strict=True)]


def format_reward(turns: list[list[Turn]], **_) -> list[float]:
    """Format, +1 or −1, for each trajectory; see `format_score`."""
    return [format_score(conversation) for conversation in turns]


def reward_functions(profile: Profile) -> tuple[list, list[float]]:
    """The profile's reward functions and the weight of each.

    With `overlong_tokens` one more is DAPO's soft overlong punishment (Yu et al., 2025,
    section 3.4, https://arxiv.org/abs/2503.14476). It is 0 as long as a completion
    leaves that many tokens below `max_response_tokens`, and falls to −1 at the limit.

    Raises:
        ImportError: if `overlong_tokens` is set and TRL is not installed.
    """
    functions = [accuracy_reward, format_reward]
    weights = [profile.accuracy_weight, profile.format_weight]
    if profile.overlong_tokens:
        functions.append(_overlong_punishment(profile))
        weights.append(1.0)
    return functions, weights


def _overlong_punishment(profile: Profile):
    # Here, because TRL imports torch, and scoring a trajectory needs neither.
    try:
        from trl.rewards import get_soft_overlong_punishment
    except ImportError:
        get_soft_overlong_punishment = missing("train")
    return get_soft_overlong_punishment(
        profile.limits.max_response_tokens, profile.overlong_tokens
    )
