"""The simulation: equal to what the same step really allocates."""

import copy
import gc
import inspect

import pytest
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from kr1_utils import memory, models
from kr1_utils.memory import GIB, Step, simulate
from kr1_utils.profiles import resolve

LORA = models.lora_config(resolve("tiny"))

# A step as a CPU takes it: in float32, with an allocator that does not round.
ON_A_CPU = {"dtype": torch.float32, "autocast": False, "block": 1, "triton": False}


def really_allocated(model, step: Step) -> int:
    """Peak bytes of the step, by the profiler's own count; weights and optimizer are
    alive before it."""
    model = prepared(model, step)
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(5, 400, (step.rows, step.tokens))
    mask = torch.ones_like(ids)
    if step.padded:
        mask[0, :7] = 0
    # What earlier steps left behind would be counted as freed in this one.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = -log_probabilities(model, ids, mask, step).mean()
        loss.backward()
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    unique = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    states = sum(t.nbytes for t in unique) + 2 * sum(t.nbytes for t in trained)
    return peak + states


def prepared(model, step: Step):
    """The model as the trainer has it."""
    if step.chunked:
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.config.use_cache = False
    if step.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if step.lora:
        model = get_peft_model(model, copy.copy(step.lora))
        if step.checkpointing:
            model.enable_input_require_grads()
    return model.train()


def log_probabilities(model, ids, mask, step: Step) -> torch.Tensor:
    """Of the response, as TRL computes them."""
    response = step.tokens - step.prompt_tokens
    if step.chunked:
        out = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
        return out.log_probs[:, -response:]
    logits = model(
        input_ids=ids, attention_mask=mask, logits_to_keep=response + 1
    ).logits[:, :-1]
    targets = ids[:, -response:, None]
    return torch.log_softmax(logits.float(), -1).gather(-1, targets)


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
def test_tiny_takes_what_is_simulated(
    rows, tokens, lora, checkpointing, chunked, padded
):
    step = Step(
        rows,
        tokens,
        prompt_tokens=40,
        padded=padded,
        lora=LORA if lora else None,
        checkpointing=checkpointing,
        chunked=chunked,
        **ON_A_CPU,
    )
    model, _ = models.load("data/tiny-lm")
    model.requires_grad_(True)
    real = really_allocated(model, step)
    simulated = simulate(memory.config_of("data/tiny-lm"), step).peak
    assert simulated == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    "rows, tokens, lora, checkpointing, chunked",
    [
        (1, 256, True, True, True),
        pytest.param(4, 256, True, False, True, marks=pytest.mark.slow),
        pytest.param(2, 512, True, True, False, marks=pytest.mark.slow),
        pytest.param(2, 256, False, True, True, marks=pytest.mark.slow),
    ],
)
def test_smollm2_takes_what_is_simulated(rows, tokens, lora, checkpointing, chunked):
    step = Step(
        rows,
        tokens,
        prompt_tokens=100,
        padded=rows > 1,
        lora=LORA if lora else None,
        checkpointing=checkpointing,
        chunked=chunked,
        **ON_A_CPU,
    )
    config = memory.config_of(resolve("smol").model)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    real = really_allocated(model, step)
    assert simulate(config, step).peak == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    "tokens, gib, chunked",
    [
        (1024, 15.9, True),
        (8192, 20.5, True),
        (16384, 24.7, True),
        (8192, 30.3, False),
    ],
)
def test_7b_takes_what_other_code_simulated_for_it(tokens, gib, chunked):
    # GiB by tokens of one row, simulated once before with each storage as it is.
    config = memory.config_of(resolve("7b").model)
    step = Step(1, tokens, padded=True, lora=LORA, chunked=chunked, triton=False)
    assert simulate(config, step).peak / GIB == pytest.approx(gib, rel=0.02)


def test_triton_kernels_hold_no_copies_of_a_tile_of_logits():
    """On a GPU TRL folds each tile of 4,096 tokens × 16,384 words in place; its torch
    code holds the tile in float32, more than once."""
    config = memory.config_of(resolve("7b").model)
    peaks = {
        triton: simulate(config, Step(1, 8192, lora=LORA, triton=triton)).peak / GIB
        for triton in (True, False)
    }
    assert 0.5 < peaks[False] - peaks[True] < 2.5
    # The simulation leaves TRL's functions as they were.
    assert "float()" in inspect.getsource(chunked_logprob._forward_tile)


def test_a_budget_keeps_the_peak_where_it_is_while_responses_grow():
    config = memory.config_of("data/tiny-lm")

    def growth(profile):
        short, long = (
            simulate(config, memory.step_of(profile, tokens)).peak
            for tokens in (100, 700)
        )
        return long / short

    assert growth(resolve("tiny", {"tokens_per_micro_batch": 0})) > 1.9
    assert growth(resolve("tiny", {"tokens_per_micro_batch": 4096})) < 1.1


def states_after(step: Step) -> dict:
    """Bytes by label that are alive when the step is over."""
    return simulate(memory.config_of("data/tiny-lm"), step).timeline[-1][1]


def test_states_are_divided_among_gpus():
    alone, stage_2, stage_3 = (
        states_after(Step(1, 300, zero=stage, num_gpus=4, autocast=False))
        for stage in (0, 2, 3)
    )
    assert alone["gradients"] > 0
    assert stage_2["gradients"] == pytest.approx(alone["gradients"] / 4)
    assert stage_2["weights"] == alone["weights"]
    assert stage_3["weights"] == pytest.approx(alone["weights"] / 4)
    assert stage_2["optimizer"] == stage_3["optimizer"] > 0


def test_four_bits_pack_the_weights_and_not_the_head():
    config = memory.config_of(resolve("7b").model)
    packed = simulate(config, Step(1, 512, lora=LORA, four_bit=True)).at_peak
    plain = simulate(config, Step(1, 512, lora=LORA)).at_peak
    # Input and output embeddings; norms and biases beside them are small.
    embeddings = 2 * 2 * config.vocab_size * config.hidden_size
    assert packed["weights"] == pytest.approx(embeddings, rel=0.001)
    layers = plain["weights"] - embeddings
    assert packed["packed"] == pytest.approx(layers / 2 * (1 / 2 + 1 / 64), rel=0.01)


def test_timeline_ends_with_the_states_and_not_with_the_model_being_freed():
    live = simulate(memory.config_of("data/tiny-lm"), Step(4, 300, autocast=False))
    entries = len(live.timeline)
    gc.collect()
    assert len(live.timeline) == entries
    phase, states = live.timeline[-1]
    assert phase == "optimizer"
    weights = states["weights"]
    assert states["gradients"] == pytest.approx(weights, rel=0.001)
    assert states["optimizer"] == pytest.approx(2 * weights, rel=0.001)
    assert states["activations"] < 0.01 * weights


def test_config_that_is_given_stays_as_it_is():
    config = memory.config_of("data/tiny-lm")
    before = config.to_dict()
    simulate(config, Step(1, 128))
    assert config.to_dict() == before
