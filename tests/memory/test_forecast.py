"""The forecast: quick for models that do not fit here, with advice where it is due."""

import importlib
import json
import subprocess
import sys

import pytest

from kr1_utils import cli, files, memory
from kr1_utils.memory import GIB, OVERHEAD_GIB, forecast, simulate
from kr1_utils.memory.forecast import longest_that_fits
from kr1_utils.profiles import resolve


@pytest.mark.parametrize(
    "profile, count",
    [("smol", 134_515_008), ("1.5b", 1_543_714_304), ("7b", 7_615_616_512)],
)
def test_config_that_is_shipped_has_the_shapes_of_its_model(profile, count):
    assert memory.count_parameters(resolve(profile).model) == count


def test_a_model_that_is_nowhere_is_refused_in_one_sentence():
    with pytest.raises(FileNotFoundError, match="repository.*hub") as refused:
        memory.config_of("nobody/no-such-model")
    assert "\n" not in str(refused.value)


def test_without_the_repository_its_models_are_refused_in_one_sentence(
    monkeypatch, tmp_path
):
    # The face of the package has a function of the same name.
    module = importlib.import_module("kr1_utils.memory.forecast")
    monkeypatch.setattr(module, "CONFIGS", tmp_path)
    with pytest.raises(FileNotFoundError, match="repository.*hub") as refused:
        memory.config_of(resolve("7b").model)
    assert "\n" not in str(refused.value)


def test_7b_is_forecast_in_little_memory():
    code = """
from kr1_utils import cli
cli.main(["memory", "--profile", "7b", "--response-tokens", "8192", "--json"])
print(open("/proc/self/status").read())
"""
    lines = subprocess.run(
        [sys.executable, "-c", code],
        cwd=files.REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    result = json.loads(lines[0])
    assert {"peak_gib", "fits", "longest_response_tokens", "breakdown"} <= set(result)
    assert result["fits"] and result["longest_response_tokens"] >= 8192
    # 7.6 billion numbers in bfloat16.
    assert 14.1 < result["breakdown"]["weights"] < 14.3
    held = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    assert int(held[0]) / 2**20 < 4


@pytest.mark.parametrize(
    "profile, tokens, gpu_gib, training, sampling, longest",
    [
        ("1.5b", 4096, 24, 9.3, 15.4, 32_512),
        ("7b", 8192, 80, 21.9, 52.1, 32_512),
        ("7b", 16384, 40, 25.3, 34.1, 32_512),
        ("7b-4bit", 8192, 24, 13.0, 22.6, 9_030),
    ],
)
def test_forecast_that_was_published_still_holds(
    profile, tokens, gpu_gib, training, sampling, longest
):
    result = forecast(resolve(profile), tokens, gpu_gib)
    assert result["fits"]
    assert round(sum(result["breakdown"].values()), 1) == training
    assert round(sum(result["sampling"].values()), 1) == sampling
    assert result["longest_response_tokens"] == longest


def test_longest_response_is_where_it_stops_fitting():
    profile = resolve("smol", {"use_lora": False, "tokens_per_micro_batch": 0})
    longest = forecast(profile, gpu_gib=16)["longest_response_tokens"]
    room = (16 - OVERHEAD_GIB) * GIB
    config = memory.config_of(profile.model)

    def peak(tokens):
        return simulate(config, memory.step_of(profile, tokens)).peak

    assert peak(longest) <= room < peak(int(1.1 * longest))


BAD_INPUT = [
    (["--gpu-gib", "23"], "Unknown GPU size 23"),
    (["--response-tokens", "100"], "must hold one turn"),
    (["--zero", "1"], "stage is 0, 2 or 3"),
    (["--num-gpus", "0"], "at least one GPU"),
    (["--profile", "8b"], "Unknown profile"),
    (["--response-tokens", "40000"], "at most 32512"),
]


@pytest.mark.parametrize("words, sentence", BAD_INPUT)
def test_bad_input_is_refused_with_a_sentence(words, sentence, capsys):
    assert cli.main(["memory", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_forecast_as_text(capsys):
    words = ["--profile", "tiny", "--gpu-gib", "8", "--response-tokens", "700"]
    assert cli.main(["memory", *words]) == 0
    text = capsys.readouterr().out
    for part in ("700 tokens", "attention sdpa", "training:", "sampling:"):
        assert part in text
    assert "Longest response that fits" in text


@pytest.mark.parametrize(
    "profile, overrides, gpu_gib, advice",
    [
        ("smol", {"tokens_per_micro_batch": 0}, 16, "max_response_tokens to"),
        ("7b", {"use_lora": False}, 48, "use LoRA"),
        ("7b", {}, 24, "vllm_gpu_memory_utilization"),
    ],
)
def test_what_does_not_fit_says_what_to_change(profile, overrides, gpu_gib, advice):
    result = forecast(resolve(profile, overrides), gpu_gib=gpu_gib)
    assert not result["fits"]
    assert advice in result["advice"]


def test_timeline_goes_through_all_phases_and_ends_below_the_peak():
    timeline = forecast(resolve("tiny"), gpu_gib=8)["timeline"]
    phases = [phase for phase, _ in timeline]
    assert list(dict.fromkeys(phases)) == ["load", "forward", "backward", "optimizer"]
    totals = [sum(live.values()) for _, live in timeline]
    assert max(totals) > totals[-1]


@pytest.mark.parametrize(
    "peak, longest",
    [
        (lambda tokens: 10 * tokens, 1000),
        (lambda tokens: 500 + 0.001 * tokens**2, 3082),
        (lambda tokens: 20_000, 0),
        (lambda tokens: 100, 5000),
    ],
    ids=["a line", "a parabola", "nothing fits", "everything fits"],
)
def test_longest_that_fits_is_found_for(peak, longest):
    found = longest_that_fits(peak, 800, 10_000, 5000)
    assert found == pytest.approx(longest, rel=0.02)
    assert found == 0 or peak(found) <= 10_000
