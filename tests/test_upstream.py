"""What is used of other libraries beyond their public interface is as it was."""

import importlib
import inspect
import re
from typing import get_args

import numpy as np
import pytest
import torch
import trl
from bm25s.numba.selection import heap_push, sift_up
from llvmlite.binding.ffi import lib
from transformers import Trainer
from transformers.cache_utils import DynamicLayer
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head

from kr1_utils.files import REPO
from kr1_utils.grpo_arguments import NARROWER
from kr1_utils.trainer import KnowledgeGRPOTrainer
from kr1_utils.trainer.out_of_memory import SavesWhenOutOfMemory
from kr1_utils.trainer.resume import DurableCheckpoints, StopsAtTheLastStep
from kr1_utils.trainer.token_budget import TokenBudget
from kr1_utils.upstream import PRIVATE

OURS = (
    KnowledgeGRPOTrainer,
    TokenBudget,
    SavesWhenOutOfMemory,
    StopsAtTheLastStep,
    DurableCheckpoints,
)


def class_of(owner):
    module, _, name = owner.partition(":")
    return getattr(importlib.import_module(module), name)


def parameters_of(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("private", PRIVATE, ids=lambda p: p.name)
def test_private_name_is_as_we_use_it(private):
    owner = class_of(private.owner)
    if private.parameters is None:
        assert f"self.{private.name}" in inspect.getsource(owner)
        return
    function = getattr(owner, private.name)
    assert callable(function)
    if private.parameters:
        assert parameters_of(function) == list(private.parameters)


@pytest.mark.parametrize("private", PRIVATE, ids=lambda p: p.name)
def test_private_name_is_used_where_the_list_says(private):
    assert private.name in (REPO / "kr1_utils" / private.where).read_text()


def test_every_private_method_of_trl_that_is_overridden_stands_in_the_list():
    own = {name for kind in OURS for name in vars(kind) if not name.startswith("__")}
    overridden = {name for name in own & set(dir(GRPOTrainer)) if name[0] == "_"}
    listed = {p.name for p in PRIVATE if p.used == "overridden"}
    assert overridden == listed


def test_public_methods_that_are_overridden_take_what_they_took():
    for name in ("compute_loss", "training_step"):
        theirs = inspect.signature(getattr(GRPOTrainer, name))
        ours = inspect.signature(getattr(KnowledgeGRPOTrainer, name))
        ours.bind(*range(3))  # self, model, inputs: as transformers calls it
        theirs.bind(*range(3 + (name == "training_step")))
    assert parameters_of(TokenBudget.compute_loss) == parameters_of(
        GRPOTrainer.compute_loss
    )


def test_trl_takes_a_rollout_function_and_calls_it_as_ours_is_made():
    assert "rollout_func" in parameters_of(GRPOTrainer.__init__)
    assert parameters_of(KnowledgeGRPOTrainer.run_agent) == ["prompts", "trainer"]
    source = inspect.getsource(GRPOTrainer._generate)
    assert "self.rollout_func(prompts, self)" in source and 'pop("env_mask"' in source


def test_trl_unwraps_a_model_as_we_ask():
    assert parameters_of(unwrap_model_for_generation)[:2] == ["model", "accelerator"]


def test_trl_passes_the_loss_as_the_tests_ask_for_it():
    assert parameters_of(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    method = GRPOTrainer._generate_and_score_completions
    assert parameters_of(method) == ["self", "inputs"]


def test_transformers_completes_a_checkpoint_after_all_saved_their_random_states():
    source = inspect.getsource(Trainer._save_checkpoint)
    saved = source.index("self._save_rng_state(output_dir)")
    assert saved < source.index("save_to_json(")


def test_trl_pushes_weights_to_vllm_before_the_rollout():
    assert parameters_of(VLLMGeneration.sync_weights) == ["self"]
    source = inspect.getsource(VLLMGeneration)
    assert "for name, param in self._iter_named_params():" in source
    assert "self._llm_weights_sleeping = self.enable_sleep_mode" in source
    push = inspect.getsource(GRPOTrainer._generate)
    rollout = push.index("self.rollout_func(prompts, self)")
    assert push.index("self.vllm_generation.sync_weights()") < rollout


def test_trl_is_the_pinned_version():
    requirements = (REPO / "requirements.txt").read_text().replace(" ", "")
    assert f"trl=={trl.__version__}" in requirements


def test_heap_of_bm25s_keeps_the_least_score_first():
    # `retriever.kernels.best_passages` calls its two functions.
    assert parameters_of(heap_push.py_func) == [
        "values",
        "indices",
        "value",
        "index",
        "length",
    ]
    assert parameters_of(sift_up.py_func) == ["values", "indices", "pos", "length"]
    scores = np.zeros(3, np.float32)
    rows = np.zeros(3, np.int64)
    for length, score in enumerate([5, 3, 4]):
        heap_push(scores, rows, score, length, length)
    assert (scores[0], rows[0]) == (3, 1)
    # The least makes room for a better one.
    scores[0] = 6
    rows[0] = 9
    sift_up(scores, rows, 0, 3)
    assert (scores[0], rows[0]) == (4, 2)
    assert sorted(zip(scores.tolist(), rows.tolist())) == [(4, 2), (5, 0), (6, 9)]


def test_attention_of_transformers_is_called_as_we_call_it():
    # `engines.cpu.grouped_attention` goes before it and hands over what it is given.
    wanted = ["module", "query", "key", "value", "attention_mask"]
    assert parameters_of(sdpa_attention_forward)[:5] == wanted
    assert "scaling" in parameters_of(sdpa_attention_forward)


def test_attention_of_a_model_is_read_and_set_as_the_engine_does(tiny):
    model = tiny[0]
    before = model.config._attn_implementation
    assert before == "sdpa"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation(before)


def test_cache_layer_of_transformers_reads_keys_and_values_that_we_set():
    layer = DynamicLayer()
    assert not layer.is_initialized
    new = torch.zeros(1, 2, 3, 4)
    layer.lazy_initialization(new, new)
    assert layer.is_initialized
    layer.keys = new
    assert layer.get_seq_length() == 3


def test_compiled_code_of_numba_knows_its_functions_by_name():
    # `engines.vllm.configure_vllm_cpu` adds one name to this table.
    assert isinstance(lib._fntab, dict)


def test_trl_computes_log_probabilities_in_parts_as_the_simulation_asks():
    # `memory.simulate` adds TRL's head as its trainer does.
    assert {"model", "outputs"} <= set(parameters_of(add_fused_lm_head))
    source = inspect.getsource(GRPOTrainer)
    assert "add_fused_lm_head(" in source and "fused_lm_head=True" in source
    assert "log_probs" in source and "entropy" in source


def test_parameters_of_a_module_can_be_replaced_as_the_simulation_does():
    layer = torch.nn.Linear(2, 2)
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    layer._parameters["weight"] = weight
    assert layer.weight is weight
    norm = torch.nn.BatchNorm1d(2)
    norm._buffers["running_mean"] = torch.ones(2)
    assert norm.running_mean.sum() == 2


def test_trl_reads_the_words_that_a_profile_may_say():
    # `grpo_arguments.NARROWER` has them, for TRL refuses another word only at a step.
    source = inspect.getsource(GRPOTrainer)
    branches = re.findall(r'self\.loss_type (?:==|in) (\[.+?\]|"\w+")', source)
    losses = set(re.findall(r'"(\w+)"', " ".join(branches)))
    assert losses == set(get_args(NARROWER["loss_type"]))
    for name in ("importance_sampling_level", "multi_objective_aggregation"):
        for word in get_args(NARROWER[name]):
            assert f'self.{name} == "{word}"' in source
    for word in get_args(NARROWER["vllm_importance_sampling_mode"]):
        assert f"'{word}'" in source or f'"{word}"' in source
    scales = inspect.getsource(GRPOTrainer).partition("Invalid value for scale_rewards")
    assert "Must be one of 'batch', 'group', or 'none'" in scales[2]


def test_trl_rounds_the_adapter_of_a_quantized_model_before_there_is_an_optimizer():
    # `models.train_in_float32` makes it exact again, after the trainer's __init__.
    source = inspect.getsource(GRPOTrainer.__init__)
    assert "param.data = param.data.to(torch.bfloat16)" in source
    assert "create_optimizer(" not in source


def test_transformers_reads_the_words_of_a_gguf_file_as_we_ask():
    wanted = ["gguf_path", "string_arrays"]
    assert parameters_of(read_gguf_metadata) == wanted
