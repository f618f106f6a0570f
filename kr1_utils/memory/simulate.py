"""Owns the simulation of one training step: the bytes that are alive at every moment.

The real model's forward, backward and optimizer step run on fake tensors, which have
shapes and no storage (torch's FakeTensorMode). A config is enough.
"""

import copy
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer.utils import add_fused_lm_head

GIB = 2**30
PROMPT_TOKENS = 256  # system prompt and question
ATTENTION = "sdpa"  # its fused kernels: the scores of attention are never held
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


def build_model(config, step: Step):
    """The model with its adapter, on the meta device."""
    # Without padding, transformers drops the mask; it can not see that a fake one has
    # only ones.
    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
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
    model = build_model(config, step)
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
            loss = step_loss(model, ids, step)
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


def step_loss(model, ids: torch.Tensor, step: Step) -> torch.Tensor:
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
