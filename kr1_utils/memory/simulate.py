"""Owns the simulation of one training step: the bytes that are alive at every moment.

The real model's forward, backward and optimizer step run on fake tensors, which have
shapes and no storage (torch's FakeTensorMode). A config is enough.
"""

import copy
import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from kr1_utils.extras import missing

try:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
except ImportError:
    torch = missing("train")
    LoraConfig = get_peft_model = missing("train")
    FakeTensorMode = TorchDispatchMode = tree_map_only = missing("train")
    AttentionInterface = AutoModelForCausalLM = missing("train")
    sdpa_attention_forward = missing("train")
# A step whose log-probabilities are not `chunked` needs no TRL.
try:
    from trl.kernels import chunked_logprob
    from trl.trainer.utils import add_fused_lm_head

    HAS_TRL = True
except ImportError:
    chunked_logprob = add_fused_lm_head = missing("train")
    HAS_TRL = False

GIB = 2**30

# Room for the system prompt and a question.
PROMPT_TOKENS = 256

# PyTorch's fused kernels: they never hold the scores of attention.
ATTENTION = "sdpa"
ATTENTION_WITHOUT_MASK = "sdpa_without_mask"

# Labels of what stays alive between steps; the rest belongs to one pass.
STATES = ("weights", "packed", "adapter", "gradients", "optimizer")

# bitsandbytes' NF4 with double quantization: half a byte for each weight, a byte for
# each block of 64, and a float for each 256 blocks.
PACKED_BYTES_PER_WEIGHT = 1 / 2 + 1 / 64 + 4 / 16_384

# How many times smaller that is than bfloat16.
PACKED = 2 / PACKED_BYTES_PER_WEIGHT

# DeepSpeed's defaults: parameters that ZeRO-3 gathers at a time, and elements of a
# communication bucket.
ZERO_LIVE = 10**9
ZERO_BUCKET = 5 * 10**8

# Which states each stage of ZeRO divides among the GPUs.
ZERO_DIVIDES = {0: (), 2: ("gradients", "optimizer"), 3: STATES}


@dataclass(frozen=True)
class Step:
    """One forward and backward pass, and the optimizer's step after it.

    Attributes:
        rows: trajectories in the pass.
        tokens: of each row, its prompt included.
        prompt_tokens: of each row; the rest is the response.
        padded: whether rows differ in length. Then transformers makes a mask of
            rows × tokens × tokens.
        lora: None trains all weights.
        four_bit: whether the base weights are packed as NF4.
        checkpointing: whether activations are computed again in the backward pass.
        chunked: whether TRL computes log-probabilities part by part, without the logits
            of all tokens at once.
        dtype: of the base weights, and what autocast computes in.
        autocast: whether the pass runs under autocast.
        zero: DeepSpeed's stage: 2 divides gradients and optimizer, 3 the weights too.
        num_gpus: that share what the stage divides.
        block: bytes that an allocation is rounded up to: 512 for CUDA's allocator, 1 on
            a CPU.
        triton: whether TRL's Triton kernels fold the logits, as on a GPU; else its
            torch code does, as on a CPU, and holds copies of a tile meanwhile.
    """

    rows: int
    tokens: int
    prompt_tokens: int = PROMPT_TOKENS
    padded: bool = False
    lora: LoraConfig | None = None
    four_bit: bool = False
    checkpointing: bool = True
    chunked: bool = True
    dtype: torch.dtype = torch.bfloat16
    autocast: bool = True
    zero: int = 0
    num_gpus: int = 1
    block: int = 512
    triton: bool = True


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive while it is entered.

    Args:
        shares: by label, how many times smaller one GPU's part is: for states that are
            spread over GPUs or packed.
        block: bytes that every storage is rounded up to.

    Attributes:
        phase: "load", "forward", "backward", "optimizer" or "done".
        label: what the next storages are counted as.
        live: bytes by label, now.
        peak: the most bytes after loading.
        at_peak: bytes by label at that moment.
        timeline: [(phase, bytes by label)], one entry for each change of at least 1 %
            of the peak.
    """

    def __init__(self, shares: dict[str, float], block: int):
        super().__init__()
        self.shares = shares
        self.block = block
        self.phase = "load"
        self.label = "weights"
        self.live: Counter = Counter()
        self.peak = 0.0
        self.at_peak: dict[str, float] = {}
        self.timeline: list[tuple[str, dict[str, float]]] = []
        self._last_total = 0.0
        # By a storage's id, its label and its bytes.
        self._storages: dict[int, tuple[str, float]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage, unless it is known."""
        storage = tensor.untyped_storage()
        if id(storage) in self._storages:
            return
        blocks = (storage.nbytes() + self.block - 1) // self.block
        size = blocks * self.block / self.shares.get(self.label, 1)
        self._storages[id(storage)] = (self.label, size)
        weakref.finalize(storage, self._forget, id(storage))
        self._add(self.label, size)

    def _forget(self, key: int) -> None:
        """A storage was freed."""
        label, size = self._storages.pop(key)
        if self.phase != "done":
            self._add(label, -size)

    def _add(self, label: str, size: float) -> None:
        self.live[label] += size
        total = self.live.total()
        if self.phase != "load" and total > self.peak:
            self.peak = total
            self.at_peak = dict(self.live)
        if abs(total - self._last_total) > 0.01 * self.peak:
            self._last_total = total
            self.timeline.append((self.phase, dict(self.live)))

    def relabel(self, tensor: torch.Tensor, label: str) -> None:
        """Count a storage under another label: an activation became a gradient."""
        key = id(tensor.untyped_storage())
        old_label, old_size = self._storages[key]
        whole = old_size * self.shares.get(old_label, 1)
        size = whole / self.shares.get(label, 1)
        self._storages[key] = (label, size)
        self.live[old_label] -= old_size
        self._add(label, size)

    def finish(self) -> None:
        """The step is over: note what is alive.

        The model is freed later, and that is not part of the step.
        """
        self.timeline.append((self.phase, dict(self.live)))
        self.phase = "done"


def build_model(config, step: Step):
    """The model with its adapter, on the meta device, in training mode."""
    # Without padding, transformers drops the mask. It cannot see that a fake mask has
    # only ones, so an attention that is given none does it here.
    AttentionInterface.register(ATTENTION_WITHOUT_MASK, sdpa_attention_forward)
    attention = ATTENTION if step.padded else ATTENTION_WITHOUT_MASK
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=step.dtype, attn_implementation=attention
        )
        if step.chunked:
            # As GRPOTrainer does.
            add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if step.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if step.lora:
            model = get_peft_model(model, copy.copy(step.lora))
            if step.checkpointing:
                model.enable_input_require_grads()
    return model.train()


def simulate(config, step: Step) -> LiveBytes:
    """Memory of one training step in its steady state, with the optimizer's moments.

    Args:
        config: of the model, as transformers has it; it stays as it is.

    Returns:
        bytes on each GPU: `peak`, `at_peak` and `timeline` are what one looks at.
    """
    shares = dict.fromkeys(ZERO_DIVIDES[step.zero], step.num_gpus)
    live = LiveBytes(shares | {"packed": PACKED}, step.block)
    config = copy.deepcopy(config)
    config.use_cache = False
    model = build_model(config, step)
    kernels = folded_in_place() if step.triton and step.chunked else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), live, kernels:
        _give_storage(model, live, step)
        live.label = "optimizer"
        moments = _optimizer_states(model, step)
        live.label = "activations"
        buffers = _buffers(config, model, step)
        _watch_gradients(model, live)
        _watch_the_head(model, live, step)
        live.phase = "forward"
        ids = torch.zeros(step.rows, step.tokens, dtype=torch.long)
        with _precision(step):
            loss = step_loss(model, ids, step)
        live.phase = "backward"
        loss.backward()
        live.phase = "optimizer"
        del loss
        live.finish()
        # They had to live until here.
        del moments, buffers, ids
    return live


def _give_storage(model, live: LiveBytes, step: Step) -> None:
    """Replace each parameter and buffer on the meta device by a fake tensor, which has
    a storage; what two modules share stays shared."""
    packed_layers = _packed_layers(model, step)
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        packed = module in packed_layers
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    live.label = _state_label(tensor, packed, step)
                    made[id(tensor)] = _fake(tensor)
                table[name] = made[id(tensor)]


def _packed_layers(model, step: Step) -> set:
    """What bitsandbytes keeps in 4 bits: all linear layers but the head."""
    if not step.four_bit:
        return set()
    head = model.get_output_embeddings()
    linear = {m for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return linear - {head}


def _state_label(tensor: torch.Tensor, packed: bool, step: Step) -> str:
    """What a parameter or buffer is counted as; `packed`: whether its layer is."""
    if step.lora and tensor.requires_grad:
        return "adapter"
    if packed and tensor.dim() == 2:
        return "packed"
    return "weights"


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same shape, dtype and kind."""
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(fake, tensor.requires_grad)
    return fake


def _trained(model) -> list[torch.Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _optimizer_states(model, step: Step) -> list[torch.Tensor]:
    """AdamW's two moments of each trained weight.

    DeepSpeed has them in float32, and a float32 copy of the weights beside them.
    """
    copies = 3 if step.zero else 2
    states = []
    for weight in _trained(model):
        dtype = torch.float32 if step.zero else weight.dtype
        for _ in range(copies):
            states.append(torch.empty(weight.shape, dtype=dtype))
    return states


def _buffers(config, model, step: Step) -> list[torch.Tensor]:
    """What 4 bits and DeepSpeed hold beside the states while a pass runs."""
    sizes = []
    if step.four_bit:
        # The largest layer, unpacked.
        sizes.append(config.intermediate_size * config.hidden_size)
    if step.zero:
        sizes.append(ZERO_BUCKET)
    if step.zero == 3:
        sizes.append(min(ZERO_LIVE, model.num_parameters()))
    return [torch.empty(size, dtype=step.dtype) for size in sizes]


def _watch_gradients(model, live: LiveBytes) -> None:
    """What was made as an activation is a gradient once it has been accumulated."""

    def count_as_gradient(weight: torch.Tensor) -> None:
        live.relabel(weight.grad, "gradients")

    for weight in _trained(model):
        weight.register_post_accumulate_grad_hook(count_as_gradient)


def _watch_the_head(model, live: LiveBytes, step: Step) -> None:
    """What is made after the last layer is for log-probabilities, until the backward
    pass is back there."""

    def back_at_the_layers(grad) -> None:
        live.label = "activations"

    def behind_the_layers(module, args, out) -> None:
        live.label = "log-probabilities"
        if out.last_hidden_state.requires_grad:
            out.last_hidden_state.register_hook(back_at_the_layers)

    model = model.get_base_model() if step.lora else model
    model.base_model.register_forward_hook(behind_the_layers)


@contextmanager
def folded_in_place():
    """While it is entered, TRL's code for log-probabilities allocates as on a GPU.

    On a GPU, Triton kernels fold a tile of logits in place, and products of bfloat16
    are added in float32 without copies. On a CPU trl/kernels/chunked_logprob.py uses
    torch functions instead. Fake tensors need the results of neither.
    """
    names = ("_forward_tile", "_backward_tile", "_addmm_fp32")
    before = {name: getattr(chunked_logprob, name) for name in names}
    for name in names:
        setattr(chunked_logprob, name, _allocate_nothing)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(chunked_logprob, name, function)


def _allocate_nothing(*args, **kwargs) -> None:
    pass


def _precision(step: Step):
    """The context in which the step's forward pass runs."""
    if step.autocast:
        return torch.autocast("cpu", step.dtype)
    return nullcontext()


def step_loss(model, ids: torch.Tensor, step: Step) -> torch.Tensor:
    """A loss over the response's log-probabilities, computed as TRL computes them.

    Args:
        ids: (rows, tokens), prompt and response.
    """
    # As TRL passes it.
    mask = torch.ones_like(ids)
    response = step.tokens - step.prompt_tokens
    if step.chunked:
        out = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
        return -out.log_probs[:, -response:].mean()
    logits = model(
        input_ids=ids, attention_mask=mask, logits_to_keep=response + 1
    ).logits[:, :-1]
    targets = ids[:, -response:, None]
    # One expression: a name would keep the logits in float32 alive, and be counted.
    return -torch.log_softmax(logits.float(), -1).gather(-1, targets).mean()
