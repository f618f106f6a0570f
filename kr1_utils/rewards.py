"""Owns what a trajectory earns: exact match and format, and what profiles may add.

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


def search_cost(
    answer: list[str | None],
    golden_answers: list[list[str]],
    searches: list[int],
    **_,
) -> list[float]:
    """−1 for each search of a right answer, 0 for a wrong one.

    So a right answer earns most when it is frugal, and a wrong one earns nothing by
    searching less; as in IKEA (Huang et al., 2025, https://arxiv.org/abs/2505.07596).
    """
    right = accuracy_reward(answer, golden_answers)
    return [-number * r for number, r in zip(searches, right, strict=True)]


def evidence_reward(
    passages: list[list[list[dict]]],
    supporting_titles: list[list[str] | None],
    **_,
) -> list[float | None]:
    """The share of a question's supporting titles that were found, 0 to 1.

    None, which TRL leaves out of the sum, for a question without titles.
    """
    return [
        _share_found(found, titles)
        for found, titles in zip(passages, supporting_titles, strict=True)
    ]


def _share_found(passages: list[list[dict]], titles: list[str] | None) -> float | None:
    if not titles:
        return None
    found = {passage["title"] for search in passages for passage in search}
    wanted = set(titles)
    return len(wanted & found) / len(wanted)


def reward_functions(profile: Profile) -> tuple[list, list[float]]:
    """The profile's reward functions and the weight of each.

    `search_cost` and `evidence_weight` add the functions above. With `overlong_tokens`
    one more is DAPO's soft overlong punishment (Yu et al., 2025, section 3.4,
    https://arxiv.org/abs/2503.14476). It is 0 as long as a completion leaves that many
    tokens below `max_response_tokens`, and falls to −1 at the limit.

    Raises:
        ImportError: if `overlong_tokens` is set and TRL is not installed.
    """
    functions = [accuracy_reward, format_reward]
    weights = [profile.accuracy_weight, profile.format_weight]
    if profile.search_cost:
        functions.append(search_cost)
        weights.append(profile.search_cost)
    if profile.evidence_weight:
        functions.append(evidence_reward)
        weights.append(profile.evidence_weight)
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
