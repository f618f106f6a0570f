"""Owns the forecast: the GPU memory that a run will need, before anything is rented.

The real model's forward, backward and optimizer step run on fake tensors, which have
shapes and no storage (torch's FakeTensorMode), and the bytes that would be alive are
added up at every moment. A config is enough: `python -m kr1_utils.memory --profile 7b
--response-tokens 8192 --gpu-gib 80`."""

import copy
import functools
import resource
import runpy
import sys
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer.utils import add_fused_lm_head

from kr1_utils.engines import PREFILL
from kr1_utils.models import locate, lora_config
from kr1_utils.profiles import REPO, Profile

GIB = 2**30
GPU_SIZES = (
    8,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
    64,
    80,
    94,
    96,
    141,
    180,
    192,
    288,
)  # GiB, of GPUs one can rent
PROMPT_TOKENS = 256  # system prompt and question
# CUDA's context and libraries, fragmentation, what vLLM keeps while it sleeps: an
# allowance, not simulated.
OVERHEAD_GIB = 1.5
ATTENTION = "sdpa"  # its fused kernels: the scores of attention are never held
# Without padding, transformers drops the mask; it can not see that a fake one has only
# ones.
AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
STATES = ("weights", "packed", "adapter", "gradients", "optimizer")
# bitsandbytes' NF4 with double quantization: half a byte a weight, a byte for 64 and a
# float for 16,384.
PACKED = 2 / (1 / 2 + 1 / 64 + 4 / 16_384)  # times smaller than bfloat16
# DeepSpeed's defaults: parameters gathered at a time (ZeRO-3), elements of a
# communication bucket.
ZERO_LIVE, ZERO_BUCKET = 10**9, 5 * 10**8


@dataclass(frozen=True)
class Step:
    """One forward and backward pass, and the optimizer's step after it."""

    rows: int
    tokens: int  # of a row, its prompt among them
    prompt_tokens: int = PROMPT_TOKENS
    # rows of several lengths: transformers then makes a mask of rows × tokens × tokens
    padded: bool = False
    lora: LoraConfig | None = None  # None trains all weights
    four_bit: bool = False  # base weights packed as NF4
    checkpointing: bool = True
    chunked: bool = (
        True  # TRL's log-probabilities, without the logits of all tokens at once
    )
    dtype: torch.dtype = (
        torch.bfloat16
    )  # of the base weights; also what autocast computes in
    autocast: bool = True
    zero: int = (
        0  # DeepSpeed's stage: 2 divides gradients and optimizer, 3 the weights too
    )
    num_gpus: int = 1
    block: int = 512  # CUDA's allocator rounds up to this many bytes; a CPU's does not


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive, by the label under which they
    were made; `shares` divides labels, for states that are spread over GPUs."""

    def __init__(self, shares: dict[str, float], block: int):
        super().__init__()
        self.shares, self.block = shares, block
        self.phase, self.label, self.live = "load", "weights", Counter()
        self.peak, self.at_peak, self.last, self.timeline = 0.0, {}, 0.0, []
        self.storages: dict[int, list] = {}  # id -> [label, bytes]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self.storages:
            size = (
                -(-storage.nbytes() // self.block)
                * self.block
                / self.shares.get(self.label, 1)
            )
            self.storages[id(storage)] = [self.label, size]
            weakref.finalize(storage, self._forget, id(storage))
            self._add(self.label, size)

    def _forget(self, key: int) -> None:
        label, size = self.storages.pop(key)
        self._add(label, -size)

    def _add(self, label: str, size: float) -> None:
        self.live[label] += size
        total = self.live.total()
        if self.phase != "load" and total > self.peak:
            self.peak, self.at_peak = total, dict(self.live)
        if abs(total - self.last) > 0.01 * self.peak:
            self.last = total
            self.timeline.append((self.phase, dict(self.live)))

    def relabel(self, tensor: torch.Tensor, label: str) -> None:
        """What was made as an activation turned out to be a gradient."""
        entry = self.storages[id(tensor.untyped_storage())]
        old, size = entry
        entry[:] = label, size * self.shares.get(old, 1) / self.shares.get(label, 1)
        self.live[old] -= size
        self._add(label, entry[1])


def _model(config, step: Step):
    """The model with its adapter, on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=step.dtype,
            attn_implementation=ATTENTION if step.padded else "sdpa_without_mask",
        )
        if step.chunked:
            add_fused_lm_head(
                model, outputs=("log_probs", "entropy")
            )  # as GRPOTrainer does
        if step.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if step.lora:
            model = get_peft_model(model, copy.copy(step.lora))
            if step.checkpointing:
                model.enable_input_require_grads()
    return model.train()


def _give_storage(model, live: LiveBytes, step: Step) -> None:
    """Replace each parameter and buffer on the meta device by a fake one with a
    storage."""
    made: dict[int, torch.Tensor] = {}
    for module, table in (
        (m, t) for m in model.modules() for t in (m._parameters, m._buffers)
    ):
        linear = (
            isinstance(module, torch.nn.Linear)
            and module is not model.get_output_embeddings()
        )
        for name, t in ((name, t) for name, t in table.items() if t is not None):
            if id(t) not in made:
                live.label = (
                    "adapter"
                    if step.lora and t.requires_grad
                    else "packed"
                    if step.four_bit and linear and t.dim() == 2
                    else "weights"
                )
                fake = torch.empty(t.shape, dtype=t.dtype)
                made[id(t)] = (
                    torch.nn.Parameter(fake, t.requires_grad)
                    if isinstance(t, torch.nn.Parameter)
                    else fake
                )
            table[name] = made[id(t)]


def simulate(config, step: Step) -> LiveBytes:
    """Memory of one training step in its steady state: the optimizer has its moments
    already."""
    divided = {0: (), 2: ("gradients", "optimizer"), 3: STATES}[step.zero]
    live = LiveBytes(
        dict.fromkeys(divided, step.num_gpus) | {"packed": PACKED}, step.block
    )
    config = copy.deepcopy(config)
    config.use_cache = False
    model = _model(config, step)
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        _give_storage(model, live, step)
        trained = [p for p in model.parameters() if p.requires_grad]
        # AdamW's two moments; DeepSpeed has them, and a copy of the weights, in
        # float32.
        live.label = "optimizer"
        kept = [
            torch.empty(p.shape, dtype=torch.float32 if step.zero else p.dtype)
            for p in trained
            for _ in range(3 if step.zero else 2)
        ]
        live.label = "activations"
        if step.four_bit:  # the largest of them, unpacked
            kept += [
                torch.empty(
                    config.intermediate_size * config.hidden_size, dtype=step.dtype
                )
            ]
        if step.zero:
            kept += [torch.empty(ZERO_BUCKET, dtype=step.dtype)]
        if step.zero == 3:
            kept += [
                torch.empty(min(ZERO_LIVE, model.num_parameters()), dtype=step.dtype)
            ]
        for p in trained:
            p.register_post_accumulate_grad_hook(
                lambda p: live.relabel(p.grad, "gradients")
            )
        body = model.get_base_model().base_model if step.lora else model.base_model
        body.register_forward_hook(
            lambda module, args, out: _at_the_head(live, out.last_hidden_state)
        )
        live.phase, live.label = "forward", "activations"
        ids = torch.zeros(step.rows, step.tokens, dtype=torch.long)
        with torch.autocast("cpu", step.dtype) if step.autocast else nullcontext():
            loss = _loss(model, ids, step)
        live.phase = "backward"
        loss.backward()
        live.phase, live.label = "optimizer", "activations"
        del loss
        live.timeline.append((live.phase, dict(live.live)))
        del kept
    return live


def _at_the_head(live: LiveBytes, hidden: torch.Tensor) -> None:
    """What is made after the last layer is for log-probabilities, until backward is
    back there."""

    def back(grad):
        live.label = "activations"

    live.label = "log-probabilities"
    if hidden.requires_grad:
        hidden.register_hook(back)


def _loss(model, ids: torch.Tensor, step: Step) -> torch.Tensor:
    mask = torch.ones_like(ids)  # as TRL passes it
    response = step.tokens - step.prompt_tokens
    if step.chunked:
        out = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
        return -out.log_probs[:, -response:].mean()
    logits = model(
        input_ids=ids, attention_mask=mask, logits_to_keep=response + 1
    ).logits[:, :-1]
    return (
        -torch.log_softmax(logits.float(), -1)
        .gather(-1, ids[:, -response:, None])
        .mean()
    )


def peak_gib() -> float:
    """The most that this process has held so far: of the GPU's memory where there is
    one, else of RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def this_gpu() -> int:
    """The size in GiB, as one rents it, of this machine's GPU; 80 where there is
    none."""
    if not torch.cuda.is_available():
        return 80
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    return min(GPU_SIZES, key=lambda size: abs(size - total))


def micro_batches(lengths: list[tuple[int, int]], budget: int) -> list[list[int]]:
    """Rows in parts of at most `budget` padded tokens, longest first; a longer row goes
    alone.

    Args:
        lengths: of the prompt, padded on the left, and of the completion, padded on the
            right, of each row.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -sum(lengths[i])):
        together = [lengths[j] for j in [*parts[-1], i]] if parts else []
        if together and len(together) * sum(map(max, zip(*together))) <= budget:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def rows_of(batch: dict, rows: list[int]) -> dict:
    """These rows of TRL's batch, without the padding that only the others need."""
    prompt = batch["prompt_mask"][rows].sum(1).max()
    completion = batch["completion_mask"][rows].sum(1).max().clamp(min=1)
    out = dict(batch)
    for name, value in batch.items():
        if (
            torch.is_tensor(value)
            and value.dim()
            and len(value) == len(batch["prompt_mask"])
        ):
            out[name] = value[rows]
            if value.dim() == 2:
                out[name] = (
                    out[name][:, -prompt:]
                    if name.startswith("prompt")
                    else out[name][:, :completion]
                )
    return out


def config_of(model: str):
    """The config of a folder, of a model whose config lies in data/reference/configs,
    or from the hub."""
    shipped = (
        REPO / "data" / "reference" / "configs" / f"{model.rsplit('/', 1)[-1]}.json"
    )
    return AutoConfig.from_pretrained(
        shipped if shipped.exists() else locate(model), trust_remote_code=False
    )


def count_parameters(model: str) -> int:
    """How many weights a model has, given its config (see `config_of`)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(model)).num_parameters()


def step_of(
    profile: Profile, response_tokens: int, zero: int = 0, num_gpus: int = 1
) -> Step:
    """The largest forward and backward pass of a profile whose responses all have this
    length."""
    rows, half = (
        profile.grpo["per_device_train_batch_size"],
        profile.grpo.get("bf16", True),
    )
    if profile.tokens_per_micro_batch:
        rows = min(
            rows,
            max(1, profile.tokens_per_micro_batch // (PROMPT_TOKENS + response_tokens)),
        )
    return Step(
        rows,
        PROMPT_TOKENS + response_tokens,
        padded=rows > 1,
        lora=lora_config(profile),
        four_bit=profile.four_bit,
        zero=zero,
        num_gpus=num_gpus,
        checkpointing=profile.grpo.get("gradient_checkpointing", True),
        dtype=torch.bfloat16 if half else torch.float32,
        autocast=half,
    )


def sampling(
    config, profile: Profile, states: dict, tokens: int, gpu_gib: float
) -> tuple[dict, int]:
    """GiB by label while trajectories of `tokens` are sampled, and the longest that
    could be.

    The training model stays on the GPU. vLLM takes a share of it and must hold its own
    weights and one trajectory; transformers keeps keys and values of a whole batch, and
    computes `PREFILL` tokens of each."""
    parts = {
        k: states.get(k, 0) / GIB for k in ("weights", "packed", "adapter", "optimizer")
    }
    width = (
        getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )
    a_token = (
        2 * config.num_hidden_layers * config.num_key_value_heads * width / GIB
    )  # keys and values
    a_token *= 2 if profile.grpo.get("bf16", True) else 4
    if profile.grpo.get("use_vllm"):
        parts["vLLM"] = profile.grpo["vllm_gpu_memory_utilization"] * gpu_gib
        weights = 2 * count_parameters(profile.model) / GIB
        free = parts["vLLM"] - weights - 1  # a GiB to compute in
        return parts, int(free / a_token) if sum(
            parts.values()
        ) + OVERHEAD_GIB <= gpu_gib else 0
    rows = min(
        64,
        profile.grpo["per_device_train_batch_size"]
        * profile.grpo["gradient_accumulation_steps"],
    )
    parts["prompts"] = (
        rows * PREFILL * 14 * config.intermediate_size / GIB
    )  # seven halves as wide as its MLP
    longest = int((gpu_gib - OVERHEAD_GIB - sum(parts.values())) / a_token / rows)
    return parts | {"KV cache": tokens * a_token * rows}, longest


def forecast(
    profile: Profile,
    response_tokens: int = 0,
    gpu_gib: float = 80,
    num_gpus: int = 1,
    zero: int = 0,
) -> dict:
    """What training and sampling of a profile need on each GPU, in GiB.

    Args:
        response_tokens: of a whole trajectory; 0 is the profile's
            `max_response_tokens`.

    Returns:
        `peak_gib` and `fits` of the larger; `longest_response_tokens` that fits; by
        label, `breakdown` at the peak of training, and `sampling`; `timeline` of
        training: [(phase, {label: bytes})]; `advice`.

    Raises:
        ValueError: for an unknown size of GPU, or a response shorter than one turn or
            too long for the model.
    """
    tokens = response_tokens or profile.limits.max_response_tokens
    config = config_of(profile.model)
    window = config.max_position_embeddings - PROMPT_TOKENS
    if gpu_gib not in GPU_SIZES:
        raise ValueError(
            f"Unknown GPU size {gpu_gib} GiB: choose one of"
            f" {', '.join(map(str, GPU_SIZES))}."
        )
    if not profile.limits.max_turn_tokens <= tokens <= window:
        raise ValueError(
            f"A response of {tokens} tokens must hold one turn of max_turn_tokens="
            f"{profile.limits.max_turn_tokens}, and fit the model: at most {window}."
        )
    if zero not in (0, 2, 3) or num_gpus < 1:
        raise ValueError(
            f"ZeRO's stage is 0, 2 or 3, not {zero}, on at least one GPU, not"
            f" {num_gpus}."
        )
    lived = functools.cache(
        lambda length: simulate(config, step_of(profile, length, zero, num_gpus))
    )
    live = lived(tokens)
    sampled, longest_sampled = sampling(
        config, profile, live.at_peak, PROMPT_TOKENS + tokens, gpu_gib
    )
    longest = min(
        longest_sampled - PROMPT_TOKENS,
        _longest(
            lambda length: lived(length).peak,
            tokens,
            (gpu_gib - OVERHEAD_GIB) * GIB,
            window,
        ),
    )
    sampled["overhead"], total = OVERHEAD_GIB, live.peak / GIB + OVERHEAD_GIB
    states = sum(live.at_peak.get(k, 0) for k in STATES) / GIB
    if longest >= tokens:
        advice = "It fits."
    elif states + OVERHEAD_GIB > gpu_gib:
        advice = (
            f"Weights and what trains them take {states:.1f} GiB: use LoRA, 4 bits, or"
            " more GPUs."
        )
    elif longest_sampled < tokens and "vLLM" in sampled:
        advice = (
            "Sampling does not fit: change vllm_gpu_memory_utilization, or take a"
            " larger GPU."
        )
    elif longest >= profile.limits.max_turn_tokens:
        advice = f"It does not fit: lower max_response_tokens to {longest}."
    else:
        advice = (
            "It does not fit: turn on gradient_checkpointing, and lower"
            " per_device_train_batch_size."
        )
    return {
        "profile": profile.name,
        "response_tokens": tokens,
        "rows": step_of(profile, tokens).rows,
        "gpu_gib": gpu_gib,
        "attention": ATTENTION,
        "fits": longest >= tokens,
        "advice": advice,
        "longest_response_tokens": max(0, longest),
        "peak_gib": max(total, sum(sampled.values())),
        "breakdown": {k: v / GIB for k, v in live.at_peak.items()}
        | {"overhead": OVERHEAD_GIB},
        "sampling": sampled,
        "timeline": live.timeline,
    }


def _longest(peak, tokens: int, room: float, window: int) -> int:
    """The longest response whose step fits: interpolated from two lengths, checked at a
    third. A mask grows with the square; then the line lies above, what it says is too
    short, and it is drawn again there."""
    short = (
        tokens
        if peak(tokens) <= room and 2 * tokens <= window
        else max(1, tokens // 16)
    )
    if peak(short) > room:
        return 0
    long = min(2 * tokens, window) if short == tokens else tokens
    while True:
        slope = (peak(long) - peak(short)) / (long - short)
        guess = (
            int(min(window, short + (room - peak(short)) / slope))
            if slope > 0
            else window
        )
        if peak(guess) > room:
            long = guess
        elif peak(long) <= room or guess <= 1.01 * short:
            return guess
        else:
            short = guess


def show(result: dict) -> str:
    """A forecast as text."""
    training, sampled = (
        f"{sum(parts.values()):.1f} GiB = "
        + " + ".join(f"{k} {v:.1f}" for k, v in parts.items() if v > 0.05)
        for parts in (result["breakdown"], result["sampling"])
    )
    return (
        "{profile}, simulated: responses of {response_tokens} tokens, {rows} in a pass,"
        " attention {attention}, {gpu_gib} GiB a GPU\n  training: {0}\n  sampling:"
        " {1}\n  {advice} Longest response that fits: {longest_response_tokens} tokens."
    ).format(training, sampled, **result)


def main(argv: list[str] | None = None) -> int:
    """The command line, which data/reference/forecast.py holds."""
    return runpy.run_path(str(REPO / "data" / "reference" / "forecast.py"))["main"](
        argv
    )


if __name__ == "__main__":
    sys.exit(main())
