"""Models of many families, tiny and with random weights, say what transformers says.

What an engine keeps from turn to turn must not change what is sampled, whatever a
model's layers keep: also in rows that outgrow its window.

Left out, as they cannot be compared on a CPU with this version of transformers: Doge,
which attends to later tokens unless a row is padded, and xLSTM, whose plain forward
pass fails at this size.
"""

import copy
import random

import pytest
import torch
import transformers
from helpers import Words, assert_same_up_to_ties
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from kr1_utils.engines import TransformersEngine
from kr1_utils.engines.layers import layers_of

WINDOW = 24
VOCABULARY = 200
PAD = 0
END_OF_TURN = 2
LIMIT = 12

# Tokens of each row at first: shorter and longer than a window and than one part of a
# prompt.
LENGTHS = (5, 140, 40, 23, 70, 9)
TURNS = 3

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": END_OF_TURN,
}
HEADS = {"head_dim": 8}
WINDOWS = {"sliding_window": WINDOW}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# GPT-2's names for SMALL.
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def alternating(other):
    """Four layers: every second one is full attention."""
    return {"num_hidden_layers": 4, "layer_types": [other, "full_attention"] * 2}


SLIDING = WINDOWS | alternating("sliding_attention")
QWEN3_5 = HEADS | DELTA | alternating("linear_attention")
GEMMA3 = HEADS | SLIDING

# Every layer sees all earlier tokens: (model type, what differs from SMALL).
KEPT = {
    "Llama": ("llama", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", HEADS),
    "Qwen3-MoE": ("qwen3_moe", HEADS | EXPERTS),
    "Mixtral": ("mixtral", EXPERTS | {"sliding_window": None}),
    "Gemma 1": ("gemma", HEADS),
    "Phi-2": ("phi", {}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMoE": ("olmoe", EXPERTS),
    "Granite": ("granite", {}),
    "Granite-MoE": ("granitemoe", EXPERTS),
    "GPT-2": ("gpt2", GPT),
    "GPT-J": ("gptj", GPT | {"rotary_dim": 4}),
    "GPT-NeoX": ("gpt_neox", {}),
    "Falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon with ALiBi": ("falcon", {"alibi": True}),
    "OPT": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "StableLM": ("stablelm", {}),
    "Cohere": ("cohere", {}),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "GLM-4": ("glm4", HEADS),
    "GLM-4.5": ("glm4_moe", HEADS | EXPERTS),
    "Nemotron": ("nemotron", {}),
    "Seed-OSS": ("seed_oss", HEADS),
    "ERNIE 4.5": ("ernie4_5", HEADS),
    "Hunyuan": ("hunyuan_v1_dense", HEADS),
    "MiniMax-M2": ("minimax_m2", HEADS | EXPERTS | {"rotary_dim": 4}),
}

# Windows, states, keys and values of two widths, or positions that are counted in
# columns.
COMPUTED_AGAIN = {
    "Mistral": ("mistral", WINDOWS),
    "Ministral": ("ministral", HEADS | SLIDING),
    "Qwen2 with a window": (
        "qwen2",
        WINDOWS | {"use_sliding_window": True, "max_window_layers": 1},
    ),
    "Gemma 2": ("gemma2", HEADS | WINDOWS),
    "Gemma 3": ("gemma3_text", GEMMA3),
    "Gemma 3n": (
        "gemma3n_text",
        GEMMA3
        | {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": None,
        },
    ),
    "Gemma 4": (
        "gemma4_text",
        GEMMA3
        | {
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 16,
        },
    ),
    "Phi-3": ("phi3", WINDOWS),
    "OLMo 3": ("olmo3", SLIDING),
    "EXAONE 4": ("exaone4", HEADS | SLIDING),
    "Cohere 2": ("cohere2", HEADS | SLIDING),
    "Starcoder2": ("starcoder2", WINDOWS),
    "GPT-OSS": ("gpt_oss", HEADS | EXPERTS | SLIDING),
    "Llama 4": (
        "llama4_text",
        HEADS
        | EXPERTS
        | {
            "num_hidden_layers": 4,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 64,
        },
    ),
    "GPT-Neo": (
        "gpt_neo",
        {
            "attention_types": [[["global", "local"], 1]],
            "num_layers": 2,
            "num_heads": 4,
            "window_size": WINDOW,
        },
    ),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4}),
    "MPT": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 1024}),
    "LFM2": ("lfm2", alternating("conv") | {"block_auto_adjust_ff_dim": False}),
    "Qwen3-Next": ("qwen3_next", EXPERTS | QWEN3_5),
    "Qwen3.5": ("qwen3_5_text", QWEN3_5),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", EXPERTS | QWEN3_5),
    "OLMo hybrid": ("olmo_hybrid", alternating("linear_attention")),
    "Kimi Linear": (
        "kimi_linear",
        HEADS
        | EXPERTS
        | LATENT
        | {"q_lora_rank": None, "linear_head_dim": 8, "linear_num_heads": 4}
        | alternating("linear_attention"),
    ),
    "Falcon-H1": ("falcon_h1", HEADS | MAMBA | {"mamba_d_ssm": 64}),
    "Granite hybrid": (
        "granitemoehybrid",
        EXPERTS
        | MAMBA
        | {
            "num_hidden_layers": 4,
            "layer_types": ["mamba", "attention"] * 2,
            "shared_intermediate_size": 64,
        },
    ),
    "Bamba": ("bamba", MAMBA | {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]}),
    "Jamba": (
        "jamba",
        EXPERTS
        | {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Nemotron-H": (
        "nemotron_h",
        HEADS
        | EXPERTS
        | {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "attention", "mlp", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "Zamba2": (
        "zamba2",
        HEADS
        | {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 16,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
        },
    ),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba 2": (
        "mamba2",
        {
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "DeepSeek-V2": ("deepseek_v2", EXPERTS | LATENT),
    "DeepSeek-V3": ("deepseek_v3", EXPERTS | LATENT),
    "MiniCPM3": ("minicpm3", LATENT),
}

# A text model within another.
COMPOSITE = {
    "Gemma 3 with images": (
        "gemma3",
        {
            "text_config": SMALL | GEMMA3,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "image_token_id": 190,
            "boi_token_id": 191,
            "eoi_token_id": 192,
        },
    ),
    "Qwen3.5 with images": (
        "qwen3_5",
        {
            "text_config": SMALL | QWEN3_5,
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "intermediate_size": 16,
                "out_hidden_size": 32,
            },
            "image_token_id": 190,
            "video_token_id": 191,
            "vision_start_token_id": 192,
            "vision_end_token_id": 193,
        },
    ),
}

FAMILIES = KEPT | COMPUTED_AGAIN | COMPOSITE
# The others take half a minute together on one core.
QUICK = ("Llama", "Mistral", "Gemma 2", "LFM2", "DeepSeek-V3", "Gemma 3 with images")


def families():
    for name in FAMILIES:
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, marks=marks)


def config_of(name):
    kind, changes = FAMILIES[name]
    if name in COMPOSITE:
        return AutoConfig.for_model(kind, **changes)
    return AutoConfig.for_model(kind, **SMALL | changes)


def make_model(name):
    """Random weights, large enough that attention tells its tokens apart."""
    config = config_of(name)
    kind = AutoModelForImageTextToText if name in COMPOSITE else AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(config).eval()
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            of_state = "conv" in weight_name or "A_log" in weight_name
            if weight.dim() >= 2 and not of_state:
                weight.normal_(std=1.5 / weight.shape[-1] ** 0.5)
    return model


class Numbers(Words):
    """A tokenizer of which no token closes a tag."""

    pad_token_id = PAD

    def __init__(self):
        super().__init__(["x"] * VOCABULARY)


def engine_of(model, temperature=0.0, keep_cache=None):
    return TransformersEngine(
        model, Numbers(), END_OF_TURN, temperature, keep_cache=keep_cache
    )


def talk(engine):
    """Yield each turn's prompts, what was sampled, and the logits that it was sampled
    from; from turn to turn the prompts grow, and one conversation ends."""
    chance = random.Random(0)

    def words(length):
        return [chance.randrange(3, 190) for _ in range(length)]

    prompts = [words(length) for length in LENGTHS]
    for turn in range(TURNS):
        torch.manual_seed(turn)
        limits = [LIMIT - number % 4 for number in range(len(prompts))]
        sampled, logits = watch(engine, prompts, limits)
        yield prompts, sampled, logits
        observed = [words(chance.randrange(3, 40)) for _ in prompts]
        prompts = [
            prompt + ids + new for prompt, ids, new in zip(prompts, sampled, observed)
        ]
        prompts.pop(turn)


def watch(engine, prompts, limits):
    """The ids of each turn, and the logits (T, V) of its tokens."""
    seen = []

    def look(module, args, out):
        seen.append(out.logits[:, -1])

    model = engine.model
    network = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = network.register_forward_hook(look)
    made = engine.generate(prompts, limits)
    hook.remove()
    ids = [generation.ids for generation in made]
    steps = max(len(row) for row in ids)
    # A prompt may take several passes, and the last one gives the first token.
    logits = torch.stack(seen[-steps:], dim=1)
    return ids, [logits[row, : len(ids[row])] for row in range(len(ids))]


def plain_turn(model, prompt, limit):
    """What transformers' own `generate` says after the whole conversation."""
    ids = torch.tensor([prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        pad_token_id=PAD,
        eos_token_id=END_OF_TURN,
        use_cache=True,
    )
    return made[0, len(prompt) :].tolist()


def assert_greedy_is_plain(engine, model):
    longest = 0
    for prompts, sampled, _ in talk(engine):
        plain = [
            plain_turn(model, prompt, LIMIT - number % 4)
            for number, prompt in enumerate(prompts)
        ]
        assert_same_up_to_ties(model, prompts, sampled, plain)
        longest = max(longest, *map(len, prompts))
    assert longest > 5 * WINDOW


def assert_logprobs_are_those_of_a_full_pass(engine, model):
    for prompts, sampled, logits in talk(engine):
        for prompt, ids, row in zip(prompts, sampled, logits):
            whole = torch.tensor([prompt + ids])
            with torch.no_grad():
                full = model(whole).logits[0, len(prompt) - 1 : -1]
            chosen = torch.tensor(ids)[:, None]
            wanted = full.log_softmax(-1).gather(1, chosen)
            got = row.log_softmax(-1).gather(1, chosen)
            assert torch.allclose(got, wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", families())
def test_engine_says_what_the_model_says(name):
    model = make_model(name)
    engine = engine_of(model)
    assert_greedy_is_plain(engine, model)
    assert bool(engine.kept) is (name in KEPT)
    assert_logprobs_are_those_of_a_full_pass(engine_of(model, temperature=1.0), model)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "LFM2", "DeepSeek-V3"])
def test_engine_that_keeps_nothing_says_what_the_model_says(name):
    model = make_model(name)
    engine = engine_of(model, temperature=1.0, keep_cache=False)
    assert_logprobs_are_those_of_a_full_pass(engine, model)
    assert not engine.kept


@pytest.mark.parametrize("name", ["Mistral", "LFM2"])
def test_nothing_is_kept_of_such_a_model_even_when_asked(name):
    engine = engine_of(make_model(name), keep_cache=True)
    engine.generate([[3, 4, 5]], [2])
    assert not engine.kept


def test_model_that_training_told_to_use_no_cache_is_sampled_with_one():
    model = make_model("Mistral")
    model.config.use_cache = False
    model.generation_config.use_cache = False
    assert_logprobs_are_those_of_a_full_pass(engine_of(model, temperature=1.0), model)


def test_an_adapter_changes_nothing_of_what_is_kept():
    for name in ("Llama", "Mistral"):
        model = make_model(name)
        lora = LoraConfig(
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        )
        adapted = get_peft_model(model, lora).eval()
        engine = engine_of(adapted, temperature=1.0)
        assert_logprobs_are_those_of_a_full_pass(engine, adapted)
        assert bool(engine.kept) is (name in KEPT)


@pytest.mark.parametrize("name", COMPOSITE)
def test_model_that_sees_images_has_the_window_of_its_text_model(name):
    model = make_model(name)
    before = copy.deepcopy(model.config)
    engine = engine_of(model)
    assert engine.window == SMALL["max_position_embeddings"]
    engine.generate([[3, 4, 5]], [2])
    for part in ("text_config", "vision_config"):
        of_part = getattr(model.config, part)._attn_implementation
        assert of_part == getattr(before, part)._attn_implementation


def test_what_layers_keep_is_seen():
    assert layers_of(make_model("Llama")).see_all
    windows = layers_of(make_model("Mistral"))
    assert windows.only_attention and not windows.see_all
    states = layers_of(make_model("LFM2"))
    assert not states.only_attention and len(states.memory) == 4


def t5():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=VOCABULARY
    )
    return transformers.T5ForConditionalGeneration(config)


def bert():
    config = AutoConfig.for_model("bert", **SMALL)
    return transformers.BertModel(config)


def rwkv():
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("rwkv", **SMALL))


def recurrent_gemma():
    config = AutoConfig.for_model(
        "recurrent_gemma",
        **SMALL | HEADS | {"num_hidden_layers": 3, "lru_width": 32},
    )
    return AutoModelForCausalLM.from_config(config)


def minimax():
    layers = HEADS | EXPERTS | alternating("linear_attention")
    config = AutoConfig.for_model("minimax", **SMALL | layers)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (t5, "T5ForConditionalGeneration.*encoder and a decoder"),
        (bert, "BertModel.*cannot generate"),
        (rwkv, "RwkvForCausalLM.*outside transformers' cache"),
        (recurrent_gemma, "RecurrentGemmaForCausalLM.*outside transformers' cache"),
        (minimax, "MiniMaxForCausalLM.*outside transformers' cache"),
    ],
)
def test_model_that_cannot_serve_is_refused_with_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        engine_of(make()).generate([[3, 4, 5]], [2])
    assert "\n" not in str(refused.value)
