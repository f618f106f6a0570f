"""Owns the list of what is used of other libraries beyond their public interface.

An upgrade may change any of it without notice. tests/test_upstream.py compares each
signature with the installed version, so that an upgrade fails there first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Private:
    """A private name of another library.

    `parameters` are those of a function, in order, or () where they do not matter;
    None stands for an attribute that the class's own code sets or reads.
    """

    owner: str  # module:class
    name: str
    used: str  # overridden, called, replaced or read
    where: str  # our file
    why: str
    parameters: tuple[str, ...] | None = None


GRPO_TRAINER = "trl:GRPOTrainer"
TRAINER = "transformers:Trainer"
VLLM_GENERATION = "trl.generation.vllm_generation:VLLMGeneration"

PRIVATE = (
    Private(
        GRPO_TRAINER,
        "_get_per_token_logps_and_entropies",
        "overridden",
        "trainer/token_budget.py",
        "No public hook surrounds the passes without gradient, which must keep the"
        " token budget too.",
        (
            "self",
            "model",
            "input_ids",
            "attention_mask",
            "logits_to_keep",
            "batch_size",
            "compute_entropy",
            "compute_aux_loss",
            "pixel_values",
            "image_grid_thw",
            "num_images",
            "pixel_attention_mask",
            "spatial_shapes",
            "num_tiles",
            "image_sizes",
            "token_type_ids",
            "mm_token_type_ids",
            "image_position_ids",
        ),
    ),
    Private(
        GRPO_TRAINER,
        "_get_per_token_logps_and_entropies",
        "overridden",
        "trainer/logprobs.py",
        "The loss computes log-probabilities that the log can show, and no public hook"
        " is given them.",
    ),
    Private(
        TRAINER,
        "_run_epoch",
        "overridden",
        "trainer/resume.py",
        "`should_training_stop` is reset before training and looked at only after a"
        " step, so no callback can end a run that has its last step already.",
        (
            "self",
            "model",
            "epoch",
            "train_dataloader",
            "steps_in_epoch",
            "num_update_steps_per_epoch",
            "trial",
            "ignore_keys_for_eval",
            "start_time",
            "resume_from_checkpoint",
            "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
    ),
    Private(
        TRAINER,
        "_save_rng_state",
        "overridden",
        "trainer/resume.py",
        "`on_save` comes after trainer_state.json, which says that a checkpoint is"
        " complete: too late to wait for the other processes.",
        ("self", "output_dir"),
    ),
    Private(
        TRAINER,
        "_save_checkpoint",
        "called",
        "trainer/out_of_memory.py",
        "`should_save` is looked at after a step, and the step that ran out of memory"
        " does not end.",
        ("self", "model", "trial"),
    ),
    Private(
        GRPO_TRAINER,
        "_log_metric",
        "called",
        "trainer/grpo.py",
        "TRL hands it to reward functions as `log_metric`; the rollout has the same to"
        " say, and no reward of its own.",
        ("self", "name", "value"),
    ),
    Private(
        GRPO_TRAINER,
        "_metrics",
        "read",
        "trainer/token_budget.py",
        "TRL logs a value per pass; a batch in parts must log one value.",
    ),
    Private(
        GRPO_TRAINER,
        "_logs",
        "read",
        "trainer/callbacks.py",
        "TRL keeps there what each trajectory earned, and its advantage; callbacks are"
        " told neither.",
    ),
    Private(
        GRPO_TRAINER,
        "_entropy_bonus_enabled",
        "read",
        "trainer/token_budget.py",
        "A batch with an entropy bonus cannot be cut.",
    ),
    Private(
        GRPO_TRAINER,
        "_step",
        "read",
        "alarms.py",
        "It counts passes, and tells whether sampled trajectories wait for training.",
    ),
    Private(
        GRPO_TRAINER,
        "_dist",
        "read",
        "trainer/grpo.py",
        "It tells whether DeepSpeed or FSDP has spread the weights.",
    ),
    Private(
        "accelerate.state:GradientState",
        "_set_sync_gradients",
        "called",
        "trainer/token_budget.py",
        "Gradients are exchanged once per batch, after its last part; transformers"
        " calls it for the same reason.",
        ("self", "sync_gradients"),
    ),
    Private(
        VLLM_GENERATION,
        "_iter_named_params",
        "replaced",
        "trainer/grpo.py",
        "TRL merges an adapter in place and unmerges it again, which drifts in bfloat16"
        " (huggingface/trl #6688).",
        ("self",),
    ),
    Private(
        VLLM_GENERATION,
        "_llm_weights_sleeping",
        "read",
        "engines/vllm.py",
        "It tells whether vLLM's weights must be brought back before a rollout.",
    ),
    Private(
        "transformers.cache_utils:DynamicLayer",
        "lazy_initialization",
        "called",
        "engines/cpu.py",
        "The layer with room for all that will come is filled as the plain one is.",
        ("self", "key_states", "value_states"),
    ),
    Private(
        "transformers:PreTrainedConfig",
        "_attn_implementation",
        "read",
        "engines/transformers.py",
        "The attention that a model had is set again after generation.",
    ),
    Private(
        "transformers:PreTrainedModel",
        "_can_set_attn_implementation",
        "called",
        "engines/transformers.py",
        "A model with an attention of its own, such as Falcon's, warns at every rollout"
        " if another is set.",
    ),
    Private(
        "llvmlite.binding.ffi:_lib_wrapper",
        "_fntab",
        "changed",
        "engines/vllm.py",
        "vLLM's CPU build asks every loaded object for its `__dict__`, and numba's"
        " library takes that for the name of one of its functions.",
    ),
    Private(
        "huggingface_hub:file_download",
        "http_get",
        "called",
        "hub_files.py",
        "`hf_hub_download` removes what a broken-off download has brought; this goes on"
        " from there.",
        (
            "url",
            "temp_file",
            "resume_size",
            "headers",
            "expected_size",
            "displayed_filename",
            "tqdm_class",
            "_nb_retries",
            "_tqdm_bar",
        ),
    ),
    Private(
        GRPO_TRAINER,
        "_generate",
        "called",
        "bench/trl_tools.py",
        "TRL's tool loop is measured without a training step around it.",
        ("self", "prompts"),
    ),
    Private(
        GRPO_TRAINER,
        "_sync_tool_dicts",
        "read",
        "bench/trl_tools.py",
        "A training step sets it before the tool loop.",
    ),
    Private(
        GRPO_TRAINER,
        "_async_tool_dicts",
        "read",
        "bench/trl_tools.py",
        "A training step sets it before the tool loop.",
    ),
    Private(
        "trl.kernels:chunked_logprob",
        "_forward_tile",
        "replaced",
        "memory/simulate.py",
        "A GPU has a Triton kernel in its place, which folds a tile of logits without"
        " copies.",
        (),
    ),
    Private(
        "trl.kernels:chunked_logprob",
        "_backward_tile",
        "replaced",
        "memory/simulate.py",
        "The same, in the backward pass.",
        (),
    ),
    Private(
        "trl.kernels:chunked_logprob",
        "_addmm_fp32",
        "replaced",
        "memory/simulate.py",
        "A GPU adds products of bfloat16 in float32 without copies.",
        (),
    ),
    Private(
        "trl.trainer:utils",
        "_use_triton",
        "replaced",
        "models.py",
        "On a CPU TRL applies the head to prompts and padding too, and no argument says"
        " otherwise.",
        ("device",),
    ),
)
