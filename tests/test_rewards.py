"""What a trajectory earns, by hand-counted cases."""

import subprocess
import sys

import pytest

from kr1_utils import rewards
from kr1_utils.profiles import resolve
from kr1_utils.protocol import parse_turn
from kr1_utils.rewards import accuracy_reward, format_reward, format_score

SEARCH = "<think> a</think><search> b</search>"
ANSWER = "<think> a</think><answer> b</answer>"


@pytest.mark.parametrize(
    "texts, wanted",
    [
        ([ANSWER], 1.0),
        ([SEARCH, ANSWER], 1.0),
        ([SEARCH, SEARCH, ANSWER], 1.0),
        (["<think>\na\n</think>\n<search>\nb\n</search>", ANSWER], 1.0),
        ([SEARCH], -1.0),
        ([SEARCH, SEARCH], -1.0),
        ([ANSWER, ANSWER], -1.0),
        ([ANSWER, SEARCH], -1.0),
        ([SEARCH, "", ANSWER], -1.0),
        (["no tag", ANSWER], -1.0),
        ([SEARCH, "<answer> b</answer>"], -1.0),
        (["<search> b</search>", ANSWER], -1.0),
        ([SEARCH, ANSWER + " more"], -1.0),
        ([SEARCH, "<think> a</think><answer></answer>"], -1.0),
        ([""], -1.0),
        ([], -1.0),
        ([SEARCH + "<context> x</context>", ANSWER], -1.0),
        (["<think> a</think>" + SEARCH, ANSWER], -1.0),
    ],
)
def test_format_score(texts, wanted):
    assert format_score([parse_turn(t) for t in texts]) == wanted


def test_reward_functions_give_one_number_a_trajectory_and_ignore_other_columns():
    turns = [[parse_turn(ANSWER)], [parse_turn("")]]
    assert accuracy_reward(
        answer=["b", None], golden_answers=[["B."], ["b"]], prompts=["", ""]
    ) == [1.0, 0.0]
    assert format_reward(turns=turns, searches=[0, 0]) == [1.0, -1.0]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        accuracy_reward(answer=["b", "b"], golden_answers=[["b"]])


def test_the_last_tokens_before_the_limit_cost_reward_where_asked():
    profile = resolve("tiny", {"accuracy_weight": 2.0, "search_cost": 0.0})
    functions, weights = rewards.reward_functions(profile)
    assert functions == [accuracy_reward, format_reward]
    assert weights == [2.0, 1.0]
    profile = resolve("tiny", {"overlong_tokens": 200, "search_cost": 0.0})
    functions, weights = rewards.reward_functions(profile)
    assert weights == [1.0, 1.0, 1.0]
    overlong = functions[-1]
    most = profile.limits.max_response_tokens
    lengths = (10, most - 200, most - 100, most)
    assert overlong(completion_ids=[[1] * n for n in lengths]) == [0.0, 0.0, -0.5, -1.0]


def test_scoring_a_trajectory_needs_neither_torch_nor_trl():
    code = (
        "import sys, kr1_utils.rewards;"
        "assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_search_costs_only_where_the_answer_is_right():
    costs = rewards.search_cost(
        answer=["b", "x", None, "b"],
        golden_answers=[["b"]] * 4,
        searches=[2, 2, 1, 0],
        prompts=[""] * 4,
    )
    assert costs == [-2.0, 0.0, 0.0, 0.0]


def test_evidence_is_paid_by_the_share_of_titles_found_once_each():
    def passages(*titles):
        return [[{"title": title, "text": ""}] for title in titles]

    earned = rewards.evidence_reward(
        passages=[passages("A", "C"), passages("A", "A", "B"), [], passages("A")],
        supporting_titles=[["A", "B"], ["A", "B", "A"], ["A"], None],
    )
    assert earned == [0.5, 1.0, 0.0, None]


def test_options_of_the_profile_add_their_reward_with_its_weight():
    profile = resolve("tiny", {"search_cost": 0.1, "evidence_weight": 0.5})
    functions, weights = rewards.reward_functions(profile)
    assert functions[2:] == [rewards.search_cost, rewards.evidence_reward]
    assert weights[2:] == [0.1, 0.5]
    off = resolve("tiny", {"search_cost": 0.0})
    assert rewards.reward_functions(off)[0] == [accuracy_reward, format_reward]
