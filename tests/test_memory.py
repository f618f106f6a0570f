"""The forecast: equal to what the same step really allocates, and quick for models that
do not fit here."""

import copy
import gc
import json
import re
import runpy
import subprocess
import sys

import pandas as pd
import pytest
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from trl.trainer.utils import add_fused_lm_head

from kr1_utils import files, memory, models
from kr1_utils.memory import GIB, PROMPT_TOKENS, Step, forecast, simulate
from kr1_utils.profiles import resolve

LORA = models.lora_config(resolve("tiny"))


def really_allocated(model, step: Step) -> int:
    """Peak bytes of the step, by the profiler's own count; weights and optimizer are
    alive before it."""
    if step.chunked:
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.config.use_cache = False
    if step.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if step.lora:
        model = get_peft_model(model, copy.copy(step.lora))
        if step.checkpointing:
            model.enable_input_require_grads()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(5, 400, (step.rows, step.tokens))
    mask, response = torch.ones_like(ids), step.tokens - step.prompt_tokens
    mask[: step.padded, :7] = 0  # True is 1: the first row
    gc.collect()  # what earlier steps left behind would be counted as freed in this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        if step.chunked:
            out = model(
                input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True
            )
            logps = out.log_probs[:, -response:]
            del out
        else:
            logits = model(
                input_ids=ids, attention_mask=mask, logits_to_keep=response + 1
            ).logits[:, :-1]
            logps = torch.log_softmax(logits.float(), -1).gather(
                -1, ids[:, -response:, None]
            )
            del logits
        loss = -logps.mean()
        loss.backward()
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    unique = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return peak + sum(t.nbytes for t in unique) + 2 * sum(t.nbytes for t in trained)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "rows, tokens, lora, checkpointing, chunked",
    [
        (1, 128, True, True, True),
        (16, 128, True, True, True),
        (4, 512, True, True, True),
        (4, 512, True, False, True),
        (4, 512, True, True, False),
        (4, 512, True, False, False),
        (4, 512, False, True, True),
        (4, 512, False, False, True),
        (4, 512, False, False, False),
        (1, 1000, True, False, True),
        (48, 100, False, True, False),
    ],
)
def test_tiny_takes_what_is_forecast(
    rows, tokens, lora, checkpointing, chunked, padded
):
    step = Step(
        rows,
        tokens,
        40,
        padded,
        LORA if lora else None,
        checkpointing=checkpointing,
        chunked=chunked,
        dtype=torch.float32,
        autocast=False,
        block=1,
    )
    model, _ = models.load("data/tiny-lm")
    model.requires_grad_(True)
    real, told = (
        really_allocated(model, step),
        simulate(memory.config_of("data/tiny-lm"), step).peak,
    )
    assert told == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    "rows, tokens, lora, checkpointing, chunked",
    [
        (1, 256, True, True, True),
        (4, 256, True, False, True),
        (2, 512, True, True, False),
        (2, 256, False, True, True),
    ],
)
def test_smollm2_takes_what_is_forecast(rows, tokens, lora, checkpointing, chunked):
    step = Step(
        rows,
        tokens,
        100,
        rows > 1,
        LORA if lora else None,
        checkpointing=checkpointing,
        chunked=chunked,
        dtype=torch.float32,
        autocast=False,
        block=1,
    )
    config = memory.config_of(resolve("smol").model)
    model = memory.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert simulate(config, step).peak == pytest.approx(
        really_allocated(model, step), rel=0.1
    )


def test_configs_that_are_shipped_have_the_shapes_of_their_models():
    for name, count in (
        ("smol", 134_515_008),
        ("1.5b", 1_543_714_304),
        ("7b", 7_615_616_512),
    ):
        with torch.device("meta"):
            model = memory.AutoModelForCausalLM.from_config(
                memory.config_of(resolve(name).model)
            )
        assert model.num_parameters() == count


def test_7b_is_forecast_in_little_time_and_memory():
    code = (
        "from kr1_utils import memory; memory.main(['--profile', '7b',"
        " '--response-tokens', '8192','--gpu-gib', '80', '--json']);"
        " print(open('/proc/self/status').read())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=files.REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    result = json.loads(out[0])
    peak_gib = (
        int(next(line for line in out if line.startswith("VmHWM")).split()[1]) / 2**20
    )
    assert {"peak_gib", "fits", "longest_response_tokens", "breakdown"} <= set(result)
    assert result["fits"] and result["longest_response_tokens"] >= 8192
    assert 14.1 < result["breakdown"]["weights"] < 14.3  # 7.6 billion bfloat16 numbers
    assert peak_gib < 4  # of this machine's memory, not the GPU's


def test_the_table_in_readme_is_what_is_forecast():
    text = (files.REPO / "README.md").read_text(encoding="utf-8")
    row = (
        r"^\| `([^`]+)` \| [^|]* \| ([\d,]+) \| (\d+) GiB \| ([\d.]+) GiB \| ([\d.]+)"
        r" GiB.* ([\d,]+)"
    )
    rows = re.findall(row, text, re.MULTILINE)
    must = {("7b", "8,192", "80"), ("7b", "16,384", "40"), ("7b-4bit", "8,192", "24")}
    assert must <= {r[:3] for r in rows}
    for name, tokens, gpu, training, sampled, longest in rows:
        result = forecast(resolve(name), int(tokens.replace(",", "")), int(gpu))
        assert result["fits"]
        assert f"{sum(result['breakdown'].values()):.1f}" == training
        assert f"{sum(result['sampling'].values()):.1f}" == sampled
        assert name == "7b" or result["longest_response_tokens"] == int(
            longest.replace(",", "")
        )


def test_shipped_forecasts_are_what_is_simulated():
    made = runpy.run_path(str(files.REPO / "data" / "reference" / "forecasts.py"))
    table = pd.read_csv(files.REPO / "data" / "reference" / "forecasts.csv")
    for run, simulated in (
        ("original", made["original"]),
        ("eight rows", made["eight_rows"]),
    ):
        shipped = table[table["run"] == run].set_index("response_tokens")[
            "training_gib"
        ]
        assert simulated(1024) == pytest.approx(shipped[1024], abs=0.01)
    for run, rows in (("original", 1), ("original, two a GPU", 2)):
        theirs = table[table["run"] == run].set_index("response_tokens")["training_gib"]
        assert (
            made["original"](600, rows) == pytest.approx(theirs[600], abs=0.01)
            and theirs[270] < 40
        )
        fits = theirs.index[theirs <= 40].max()
        assert f"{fits:,}" in (files.REPO / "README.md").read_text(encoding="utf-8")
    ours = table[table["run"].isin(["7b", "7b-4bit"])]
    needs = ours[["training_gib", "sampling_gib"]].max(axis=1)
    assert (needs <= ours["gpu_gib"])[
        (ours["run"] == "7b") | (ours["response_tokens"] <= 8192)
    ].all()


def test_a_budget_keeps_the_peak_where_it_is_while_responses_grow():
    config, profile = (
        memory.config_of("data/tiny-lm"),
        resolve("tiny", {"tokens_per_micro_batch": 4096}),
    )
    whole = resolve("tiny")
    peaks = {
        n: [simulate(config, memory.step_of(p, n)).peak for p in (whole, profile)]
        for n in (100, 700)
    }
    assert peaks[700][0] > 1.9 * peaks[100][0] and peaks[700][1] < 1.1 * peaks[100][1]


def test_known_figures_of_7b():
    """Simulated once before by other code, with each storage as it is: GiB by tokens of
    one row."""
    config = memory.config_of(resolve("7b").model)
    for tokens, gib, chunked in (
        (1024, 15.9, True),
        (8192, 20.5, True),
        (16384, 24.7, True),
        (8192, 30.3, False),
    ):
        step = Step(1, tokens, padded=True, lora=LORA, chunked=chunked)
        assert simulate(config, step).peak / GIB == pytest.approx(gib, rel=0.02)


def test_longest_response_is_where_it_stops_fitting():
    profile = resolve("smol", {"use_lora": False, "tokens_per_micro_batch": 0})
    longest = forecast(profile, gpu_gib=16)["longest_response_tokens"]
    limit = (16 - memory.OVERHEAD_GIB) * GIB
    config = memory.config_of(profile.model)
    assert simulate(config, memory.step_of(profile, longest)).peak <= limit
    assert simulate(config, memory.step_of(profile, int(1.1 * longest))).peak > limit


def test_states_are_divided_among_gpus():
    config = memory.config_of("data/tiny-lm")
    one, two, three = (
        simulate(config, Step(1, 300, zero=z, num_gpus=4, autocast=False)).live
        for z in (0, 2, 3)
    )
    assert two["gradients"] == pytest.approx(one["gradients"] / 4)
    assert (
        three["weights"] == pytest.approx(one["weights"] / 4)
        and two["weights"] == one["weights"]
    )
    assert two["optimizer"] == three["optimizer"]


def test_four_bits_pack_the_weights_and_not_the_head():
    config = memory.config_of(resolve("7b").model)
    at_peak = simulate(config, Step(1, 512, lora=LORA, four_bit=True)).at_peak
    head = 2 * 2 * config.vocab_size * config.hidden_size
    rest = simulate(config, Step(1, 512, lora=LORA)).at_peak["weights"] - head
    assert at_peak["weights"] == pytest.approx(
        head, rel=0.001
    )  # norms and biases beside it
    assert at_peak["packed"] == pytest.approx(rest / 2 * (1 / 2 + 1 / 64), rel=0.01)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--gpu-gib", "23"], "Unknown GPU size 23"),
        (["--response-tokens", "100"], "must hold one turn"),
        (["--zero", "1"], "stage is 0, 2 or 3"),
        (["--profile", "8b"], "Unknown profile"),
        (["--response-tokens", "40000"], "at most 32512"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(arguments, words, capsys):
    assert memory.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_forecast_as_text(capsys):
    assert (
        memory.main(["--profile", "tiny", "--gpu-gib", "8", "--response-tokens", "700"])
        == 0
    )
    text = capsys.readouterr().out
    assert all(
        words in text
        for words in ("Longest response that fits", "attention sdpa", "simulated")
    )


def test_what_does_not_fit_says_what_to_change():
    whole = resolve("smol", {"tokens_per_micro_batch": 0})
    assert "max_response_tokens to" in forecast(whole, gpu_gib=16)["advice"]
    assert (
        "use LoRA" in forecast(resolve("7b", {"use_lora": False}), gpu_gib=48)["advice"]
    )
    assert (
        "vllm_gpu_memory_utilization" in forecast(resolve("7b"), gpu_gib=24)["advice"]
    )


def test_timeline_ends_with_the_states_alone():
    timeline = forecast(resolve("tiny"), gpu_gib=8)["timeline"]
    assert [phase for phase, _ in timeline][-1] == "optimizer"
    assert {"load", "forward", "backward"} <= {phase for phase, _ in timeline}
    assert PROMPT_TOKENS and max(sum(live.values()) for _, live in timeline) > sum(
        timeline[-1][1].values()
    )
