"""The forecast: quick for models that do not fit here, with advice where it is due."""

import importlib
import json
import math
import subprocess
import sys

import pytest
from transformers import AutoConfig

from kr1_utils import cli, files, memory
from kr1_utils.engines.layers import Memory
from kr1_utils.memory import GIB, OVERHEAD_GIB, forecast, simulate
from kr1_utils.memory.forecast import (
    SAMPLED_ROWS,
    cache_gib,
    longest_in_cache,
    longest_that_fits,
)
from kr1_utils.profiles import resolve


@pytest.mark.parametrize(
    "profile, count",
    [
        ("smol", 134_515_008),
        ("1.5b", 1_543_714_304),
        ("3b", 3_085_938_688),
        ("7b", 7_615_616_512),
    ],
)
def test_config_that_is_shipped_has_the_shapes_of_its_model(profile, count):
    assert memory.count_parameters(resolve(profile).model) == count


def test_a_model_that_is_nowhere_is_refused_in_one_sentence():
    with pytest.raises(FileNotFoundError, match="repository.*hub") as refused:
        memory.config_of("nobody/no-such-model")
    assert "\n" not in str(refused.value)


def test_model_with_an_encoder_is_refused_in_one_sentence(tmp_path):
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="t5.*encoder and a decoder") as refused:
        forecast(resolve("tiny", {"model": str(tmp_path)}))
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


@pytest.mark.slow
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
        pytest.param("1.5b", 4096, 24, 6.9, 15.4, 32_512, marks=pytest.mark.slow),
        pytest.param("3b", 4096, 24, 10.8, 18.4, 32_512, marks=pytest.mark.slow),
        ("7b", 8192, 80, 20.8, 52.1, 32_512),
        pytest.param("7b", 16384, 40, 25.3, 34.1, 32_512, marks=pytest.mark.slow),
        pytest.param("7b-4bit", 8192, 24, 11.9, 22.6, 9_030, marks=pytest.mark.slow),
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


@pytest.mark.slow
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


WHOLE_BATCHES = {"tokens_per_micro_batch": 0}


@pytest.mark.parametrize(
    "profile, overrides, gpu_gib, advice",
    [
        pytest.param(
            "smol", WHOLE_BATCHES, 16, "max_response_tokens to", marks=pytest.mark.slow
        ),
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


# --- caches of other kinds than keys and values of all tokens ---

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "vocab_size": 1200,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Bytes of a token's keys and values in one layer: two heads, eight wide, in float32.
ONE_LAYER = 2 * 2 * 8 * 4
TOKENS = 1000
WINDOW = 24
HALF_SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
}


def sampled_cache(config):
    """Bytes that `tiny` keeps of one row, as it would sample from this model."""
    profile = resolve("tiny")
    batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
    rows = min(SAMPLED_ROWS, math.prod(profile.grpo[name] for name in batch))
    parts, _ = memory.sampling(config, profile, {}, TOKENS, gpu_gib=24)
    return parts["KV cache"] * GIB / rows


@pytest.mark.parametrize(
    "kind, changes, wanted",
    [
        ("llama", {}, 4 * ONE_LAYER * TOKENS),
        ("mistral", {"sliding_window": WINDOW}, 4 * ONE_LAYER * WINDOW),
        ("gemma3_text", HALF_SLIDING, 2 * ONE_LAYER * (WINDOW + TOKENS)),
        # Latents of 16 numbers and rotated keys of 4, for all heads together.
        ("deepseek_v3", LATENT, 4 * (16 + 4) * 4 * TOKENS),
        # A layer of convolution keeps three columns, as wide as the model.
        (
            "lfm2",
            {"layer_types": ["conv", "full_attention"] * 2},
            2 * ONE_LAYER * TOKENS + 2 * 3 * 32 * 4,
        ),
    ],
)
def test_cache_has_the_size_of_what_the_layers_keep(kind, changes, wanted):
    config = AutoConfig.for_model(kind, **SMALL | changes)
    assert sampled_cache(config) == pytest.approx(wanted)


def gemma3_with_images():
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return AutoConfig.for_model(
        "gemma3", text_config=SMALL | HALF_SLIDING, vision_config=vision
    )


def test_model_that_sees_images_is_forecast_by_its_text_model(tmp_path):
    gemma3_with_images().save_pretrained(tmp_path)
    config = memory.config_of(str(tmp_path))
    assert sampled_cache(config) == sampled_cache(config.get_text_config())
    profile = resolve("tiny", {"model": str(tmp_path)})
    result = forecast(profile, response_tokens=256, gpu_gib=24)
    assert result["fits"]
    with pytest.raises(ValueError, match=f"at most {4096 - memory.PROMPT_TOKENS}"):
        forecast(profile, response_tokens=5000, gpu_gib=24)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("room", [0.001, 0.01, 0.1, 1.0])
def test_longest_row_in_the_cache_is_where_it_is_full(room, rows):
    kinds = (
        Memory(2**12, None, 0),
        Memory(2**14, 4096, 0),
        Memory(2**13, 512, 0),
        Memory(0, None, 2**16),
    )
    longest = longest_in_cache(kinds, room, rows)
    assert rows * cache_gib(kinds, longest) <= room
    assert rows * cache_gib(kinds, longest + 1) > room


def test_rows_of_windows_alone_have_no_longest():
    windows = (Memory(2**14, 4096, 0),)
    assert longest_in_cache(windows, 0.1, 1) > 10**9
    assert longest_in_cache(windows, 0.01, 1) == 655
