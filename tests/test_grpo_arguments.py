"""What a profile may say to TRL, and that TRL is not asked about plain settings."""

import subprocess
import sys
import typing
from typing import Any, Literal

import pytest
from trl import GRPOConfig

from kr1_utils import grpo_arguments
from kr1_utils.profiles import PROFILES, Limits, Profile, resolve

HINTS = typing.get_type_hints(GRPOConfig)


@pytest.mark.parametrize(
    "value, annotation, is_fit",
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (True, bool, True),
        (1, bool, False),
        (1, float, False),
        (0.5, float, True),
        (None, float | None, True),
        (None, float, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (0, Literal[False], False),
        (False, Literal[False], True),
        (["a"], str | list[str] | None, True),
        (["a", 1], list[str], False),
        ([], list[str], True),
        ({"a": [1]}, dict[str, Any], True),
        ({"a": 1}, dict[str, bool], False),
        ({1: True}, dict[str, bool], False),
        ({"a": 1}, dict | str, True),
        ("a", dict | str, True),
    ],
)
def test_a_value_fits_its_annotation_as_json_has_it(value, annotation, is_fit):
    assert grpo_arguments.fits(value, annotation) == is_fit


@pytest.mark.parametrize("annotation", [float, float | None, str | float])
def test_a_whole_number_becomes_a_decimal_one_where_one_is_wanted(annotation):
    value = grpo_arguments.converted(1, annotation, "x")
    assert value == 1.0 and isinstance(value, float)


def test_a_whole_number_stays_whole_where_both_will_do():
    assert isinstance(grpo_arguments.converted(1, int | float, "x"), int)


@pytest.mark.parametrize("annotation", [int, int | None, int | float])
def test_a_negative_whole_number_is_refused(annotation):
    with pytest.raises(ValueError, match="x=-1 must not be negative"):
        grpo_arguments.converted(-1, annotation, "x")


@pytest.mark.parametrize(
    "annotation, words",
    [
        (float | None, "float or None"),
        (str | list[str] | None, "str or list[str] or None"),
        (dict[str, Any], "dict[str, Any]"),
        (Literal["a", "b"] | bool, "'a' or 'b' or bool"),
    ],
)
def test_an_annotation_is_described_in_words(annotation, words):
    assert grpo_arguments.describe(annotation) == words


# --- the tables ---


def test_every_name_in_the_tables_is_an_argument_of_trl():
    tables = (grpo_arguments.PLAIN, grpo_arguments.NARROWER, grpo_arguments.OWNED)
    for table in tables:
        assert set(table) <= set(HINTS)


def test_plain_values_are_values_that_trl_takes():
    examples = {int: 3, float: 0.5, bool: True, str: "x"}
    for name, annotation in grpo_arguments.PLAIN.items():
        values = typing.get_args(annotation) or [examples[annotation]]
        for value in values:
            assert grpo_arguments.fits(value, HINTS[name]) or HINTS[name] is float


def test_shipped_profiles_need_no_trl():
    for profile in PROFILES.values():
        assert set(profile.grpo) <= set(grpo_arguments.PLAIN)


def test_one_name_alone_is_both_the_profiles_and_trls():
    own = {*Profile.__dataclass_fields__, *Limits.__dataclass_fields__}
    assert own & set(HINTS) == {"top_k"}


# --- when TRL is asked ---


def printed_by(code):
    """What a new Python prints that runs this code."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


PLAIN_OVERRIDES = {"max_steps": 4, "temperature": 1, "loss_type": "dapo", "top_k": 3}


def test_plain_settings_do_not_load_trl():
    code = f"""
import sys
from kr1_utils.profiles import resolve
resolve("tiny", {PLAIN_OVERRIDES | {"save_steps": 2}})
print("trl" in sys.modules, "torch" in sys.modules)
"""
    assert printed_by(code) == ["False", "False"]


@pytest.fixture
def without_trl(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)


def test_without_trl_plain_settings_are_taken(without_trl):
    assert resolve("tiny", PLAIN_OVERRIDES).grpo["max_steps"] == 4


def test_without_trl_the_kits_own_settings_are_refused_as_ever(without_trl):
    with pytest.raises(ValueError, match="use SEED"):
        resolve("tiny", {"seed": 3})


def test_without_trl_a_misspelled_name_is_compared_with_the_plain_ones(without_trl):
    with pytest.raises(ValueError, match="did you mean 'max_steps'"):
        resolve("tiny", {"max_step": 3})


def test_without_trl_an_argument_that_only_trl_knows_names_the_extra(without_trl):
    with pytest.raises(ValueError, match=r"need the extra \[train\]"):
        resolve("tiny", {"num_completions_to_print": 3})


def test_without_trl_a_value_that_only_trl_can_judge_names_the_extra(without_trl):
    with pytest.raises(ImportError, match=r"\[train\]"):
        resolve("tiny", {"loss_type": "grpo"})


def test_asking_trl_takes_no_device_and_joins_no_processes():
    code = """
from kr1_utils.profiles import resolve
resolve("tiny", {"epsilon_high": 0.28})
from accelerate.state import AcceleratorState, PartialState
print(PartialState._shared_state, AcceleratorState._shared_state)
"""
    assert printed_by(code) == ["{}", "{}"]


def test_a_launched_process_does_not_ask_again(monkeypatch):
    """The one that launched it has asked, and a rest is TRL's to refuse in training."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = {"lr_scheduler_type": "cosin"}
    assert resolve("tiny", refused).grpo["lr_scheduler_type"] == "cosin"
