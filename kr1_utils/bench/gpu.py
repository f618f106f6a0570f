"""Owns what waits for a GPU: memory beside its forecast, and the time of long steps.

It needs torch, transformers, peft and accelerate alone. Where TRL is missing, a pass
computes the logits of all its tokens at once, and so does the forecast beside it.
"""

import copy
import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pandas as pd

from kr1_utils.bench.machine import machine_name
from kr1_utils.engines.cpu import starting_cache
from kr1_utils.engines.layers import layers_of
from kr1_utils.engines.recorded import (
    RecordableLayer,
    register_folded_attention,
    write_turns,
)
from kr1_utils.extras import missing
from kr1_utils.files import write_text
from kr1_utils.memory.forecast import cache_gib, config_of
from kr1_utils.memory.simulate import (
    GIB,
    HAS_TRL,
    PROMPT_TOKENS,
    Step,
    build_model,
    simulate,
    step_loss,
)
from kr1_utils.models import lora_config
from kr1_utils.profiles import resolve

try:
    import torch
    from transformers import AutoModelForCausalLM
except ImportError:
    torch = missing("train")
    AutoModelForCausalLM = missing("train")

MODELS = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
SMALL_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
LENGTHS = (1024, 2048, 4096, 8192, 16384)

# The original's limit of one turn, near which its run ended.
LONG = 8192

# A batch of the small model: trajectories of 1,536 tokens, each with its prompt.
SMALL_ROWS = 8
SMALL_TOKENS = PROMPT_TOKENS + 1536

# A generation that is slow ends here, shorter than it was to be.
GENERATION_SECONDS = 600

KEYS = ["what", "model", "rows", "tokens", "log_probabilities", "machine"]
COLUMNS = [
    "what",
    "model",
    "rows",
    "tokens",
    "log_probabilities",
    "measured_gib",
    "simulated_gib",
    "seconds",
    "tokens_per_second",
    "note",
    "torch",
    "machine",
]
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        what: "memory" is one training step, and "train" is three;
            "small" is the same for the small model; "generate" writes one long text.
        model: whose shapes; its weights are random, so that nothing is downloaded.
        tokens: of a row, prompt included.
        rows: in one pass.
        most_seconds: after which a generation ends.
    """

    what: str
    model: str
    tokens: int
    rows: int = 1
    most_seconds: float = GENERATION_SECONDS

    @property
    def steps(self) -> int:
        """Training steps that are measured, after one that warms up."""
        return 1 if self.what == "memory" else 3

    @property
    def step(self) -> Step:
        """The training step, as the profiles for a GPU take it."""
        return Step(
            rows=self.rows,
            tokens=self.tokens,
            prompt_tokens=min(PROMPT_TOKENS, self.tokens // 2),
            lora=lora_config(resolve("7b")),
            chunked=HAS_TRL,
        )

    @property
    def key(self) -> tuple:
        """What tells its row from others, as in `KEYS`."""
        way = ""
        if self.what != "generate":
            way = "chunked" if HAS_TRL else "full"
        return (self.what, self.model, self.rows, self.tokens, way, machine_name())


def run(arguments) -> int:
    """Measure what `arguments.csv` does not have yet, print the table, and keep it.

    Every row is kept as soon as it is measured. Forecasts, which need no GPU, come
    last.

    Args:
        arguments: of the command line: `model`, `tokens`, `minutes`, `forecasts`,
            `csv`, `json`.

    Raises:
        ValueError: if there is no GPU, and no small model was named either, or if the
            CSV is another benchmark's.
        OSError: if the CSV cannot be read or written.
    """
    rows = read_rows(arguments.csv)
    end = time.monotonic() + 60 * arguments.minutes
    if not arguments.forecasts:
        measure_all(tasks(arguments.model, arguments.tokens), rows, arguments.csv, end)
    elif not arguments.csv:
        raise ValueError("--forecasts fills in a table: name it with --csv FILE.")
    add_forecasts(rows, arguments.csv, end)
    table = pd.DataFrame(rows, columns=COLUMNS).round(3)
    if arguments.json:
        # NaN is no JSON.
        plain = table.astype(object).where(table.notna(), None)
        print(json.dumps({"rows": plain.to_dict("records")}))
    else:
        print(table.drop(columns=["torch"]).to_string(index=False))
    return 0


def tasks(model: str | None, lengths: list[int] | None) -> list[Task]:
    """What is measured, the short tasks first.

    Args:
        model: the one model to measure instead of three sizes of Qwen2.5.
        lengths: tokens of a row; None is 1,024 to 16,384. Without a model the long
            tasks stay at 8,192.

    Raises:
        ValueError: if there is no GPU, and no model was named.
    """
    if model is None and not torch.cuda.is_available():
        raise ValueError(
            "There is no GPU to measure: to run all of it alone, on this CPU, name a"
            " small model and length, as in --model data/tiny-lm --tokens 128."
        )
    models = [model] if model else MODELS
    lengths = lengths or LENGTHS
    large = models[-1]
    long = max(lengths) if model else LONG
    return [
        Task("small", model or SMALL_MODEL, min(SMALL_TOKENS, long), SMALL_ROWS),
        *(Task("memory", name, length) for name in models for length in lengths),
        Task("train", large, long),
        Task("generate", large, long),
    ]


# --- the table ---


def read_rows(file: Path | None) -> list[dict]:
    """The rows of earlier calls.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the file is another table.
    """
    if file is None:
        return []
    if not file.parent.is_dir():
        raise FileNotFoundError(f"--csv {file}: there is no folder {file.parent}.")
    if not file.is_file():
        return []
    table = pd.read_csv(file, keep_default_na=False, na_values={"measured_gib": ""})
    absent = [name for name in COLUMNS if name not in table]
    if absent:
        raise ValueError(
            f"--csv {file} is the table of another benchmark: it has no column"
            f" {', '.join(absent)}."
        )
    for name in ("measured_gib", "simulated_gib", "seconds", "tokens_per_second"):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table[COLUMNS].to_dict("records")


def keep(rows: list[dict], file: Path | None) -> None:
    """Write the table, whole or not at all."""
    if file is not None:
        table = pd.DataFrame(rows, columns=COLUMNS).round(3)
        write_text(file, table.to_csv(index=False))


def measure_all(
    wanted: list[Task], rows: list[dict], file: Path | None, end: float
) -> None:
    """Add the rows that are not there, each kept at once.

    Args:
        end: when no task begins any more, on `time.monotonic`'s clock.
    """
    there = {tuple(row[key] for key in KEYS) for row in rows}
    for task in wanted:
        if task.key in there:
            continue
        if _is_over(end):
            return
        most_seconds = min(GENERATION_SECONDS, end - time.monotonic())
        row = measure(replace(task, most_seconds=most_seconds))
        rows.append(row)
        keep(rows, file)
        print(_shown(row), file=sys.stderr, flush=True)


def add_forecasts(rows: list[dict], file: Path | None, end: float) -> None:
    """Put the forecast beside each row that has none, until `end`."""
    for row in rows:
        if math.isnan(row["simulated_gib"]):
            if _is_over(end):
                return
            row["simulated_gib"] = forecast(row)
            keep(rows, file)


def _is_over(end: float) -> bool:
    """Whether the time is over; then it says so."""
    is_over = time.monotonic() > end
    if is_over:
        print("Time is up: the same command continues.", file=sys.stderr)
    return is_over


def _shown(row: dict) -> str:
    numbers = []
    if not math.isnan(row["measured_gib"]):
        numbers.append(f"{row['measured_gib']:.1f} GiB")
    if not math.isnan(row["seconds"]):
        numbers.append(f"{row['seconds']:.2f} s")
    said = ", ".join([*numbers, row["note"]] if row["note"] else numbers)
    return f"{row['what']}, {row['model']}, {row['rows']} × {row['tokens']}: {said}"


def forecast(row: dict) -> float:
    """GiB that a row should take, simulated or, for a generation, added up."""
    config = config_of(row["model"])
    if row["what"] == "generate":
        return _generation_gib(config, row["tokens"])
    task = Task(row["what"], row["model"], row["tokens"], row["rows"])
    # As it was measured, perhaps elsewhere.
    step = replace(task.step, chunked=row["log_probabilities"] == "chunked")
    return simulate(config, step).peak / GIB


def _generation_gib(config, tokens: int) -> float:
    """The weights, and keys and values of one row."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )
    weights = sum(weight.nbytes for weight in model.parameters()) / GIB
    return weights + cache_gib(layers_of(model.eval()).memory, tokens)


# --- what is measured ---


def measure(task: Task) -> dict:
    """One row; what does not fit the GPU has a note instead of numbers."""
    row = dict(zip(KEYS, task.key)) | {
        "measured_gib": math.nan,
        "simulated_gib": math.nan,
        "seconds": math.nan,
        "tokens_per_second": math.nan,
        "note": "",
        "torch": torch.__version__,
    }
    run_task = generate if task.what == "generate" else train
    try:
        return row | run_task(task)
    except torch.OutOfMemoryError:
        return row | {"note": OUT_OF_MEMORY}
    finally:
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


def train(task: Task) -> dict:
    """Peak and time of training steps; the first one, which makes AdamW's moments, is
    not among them."""
    step = task.step
    model = random_model(config_of(task.model), step)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.zeros(step.rows, step.tokens, dtype=torch.long, device=_device())
    losses = []

    def one_step() -> None:
        with torch.autocast(_device(), step.dtype, enabled=step.autocast):
            loss = step_loss(model, ids, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    one_step()
    _forget_the_peak()
    seconds = median(_seconds(one_step) for _ in range(task.steps))
    finite = all(map(math.isfinite, losses))
    return {
        "measured_gib": _peak_gib(),
        "seconds": seconds,
        "tokens_per_second": step.rows * step.tokens / seconds,
        "note": "" if finite else "the loss is not finite",
    }


def generate(task: Task) -> dict:
    """Peak and time of writing one text to its full length, with keys and values."""
    config = config_of(task.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    model = _with_random_weights(model).eval()
    model.set_attn_implementation(register_folded_attention())
    prompt = min(PROMPT_TOKENS, task.tokens // 2)
    ids = torch.ones(1, prompt, dtype=torch.long, device=_device())
    wanted = task.tokens - prompt
    layers = config.num_hidden_layers
    cache = starting_cache(layers, task.tokens, [None], 0, RecordableLayer)
    end = time.monotonic() + task.most_seconds
    written = []

    def is_finished(sequences: torch.Tensor, _) -> torch.Tensor:
        count = sequences.shape[1] - prompt
        return torch.tensor([count == wanted or time.monotonic() > end])

    def write() -> None:
        made = write_turns(
            model, ids, torch.ones_like(ids), cache, wanted, _most_probable, is_finished
        )
        written.append(made.shape[1] - prompt)

    _forget_the_peak()
    with torch.no_grad():
        seconds = _seconds(write)
    [count] = written
    return {
        "measured_gib": _peak_gib(),
        "seconds": seconds,
        "tokens_per_second": count / seconds,
        "note": "" if count == wanted else f"ended by time after {count} tokens",
    }


def _most_probable(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def random_model(config, step: Step):
    """The step's model with random weights, on the GPU or the CPU."""
    config = copy.deepcopy(config)
    config.use_cache = False
    return _with_random_weights(build_model(config, step))


def _with_random_weights(model):
    """A model of the meta device, made real."""
    model = model.to_empty(device=_device())
    # `to_empty` made two of what was shared.
    model.tie_weights()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.normal_(0, 0.02)
    return model


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _seconds(call: Callable[[], None]) -> float:
    """How long a call takes, with what it left the GPU to do."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _forget_the_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_gib() -> float:
    """The most that was allocated on the GPU; NaN where there is none."""
    if not torch.cuda.is_available():
        return math.nan
    return torch.cuda.max_memory_allocated() / GIB
