"""Owns the model card of a trained agent: what it is, its scores, how to load it."""

import math
from dataclasses import dataclass
from pathlib import Path

from kr1_utils.evaluation import SUMMARY_KEYS
from kr1_utils.extras import missing
from kr1_utils.files import display_path
from kr1_utils.rows import read_rows
from kr1_utils.runs import Run
from kr1_utils.scoring import bootstrap
from kr1_utils.tables import markdown

try:
    from huggingface_hub import EvalResult, ModelCardData
except ImportError:
    EvalResult = ModelCardData = missing("train")

# Name in summary.json -> what a reader is told.
SCORES = {
    "em": "exact match",
    "f1": "F1",
    "em_single": "exact match, single-hop questions beside them",
    "format": "conversations in the right format",
    "searches": "searches per question",
    "response_length": "sampled tokens per question",
}

# Files of a run with a line for each answer.
PREDICTIONS = {"before": "predictions_before.jsonl", "after": "predictions.jsonl"}

# Settings of a training that its reader wants to know.
SETTINGS = ("learning_rate", "num_generations", "temperature", "beta", "loss_type")


@dataclass(frozen=True)
class Base:
    """The model that was trained.

    Attributes:
        hub_id: its name on the hub; "" if it was loaded from a folder.
        folder: that folder, or GGUF file; "" if it was loaded from the hub.
    """

    hub_id: str
    folder: str = ""

    @property
    def name(self) -> str:
        """What a reader is told."""
        return self.hub_id or Path(self.folder).name


# Types of questions that are asked beside multi-hop and single-hop ones.
COMMON_KNOWLEDGE = ("known", "look_alike")


@dataclass(frozen=True)
class Score:
    """One score, before or after training.

    Attributes:
        interval: of 95 %; None where single answers are not there, or all alike.
    """

    name: str
    when: str
    mean: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.3f}"
        low, high = self.interval
        return f"{self.mean:.3f} ({low:.3f} to {high:.3f})"


def model_card(run: Run, summary: dict, name: str, base: Base, licence: str) -> str:
    """README.md of a model on the hub.

    Args:
        summary: the run's summary.json.
        name: USER/NAME.
        base: what was trained. Where it is not on the hub, the model is whole.
        licence: its id, such as "apache-2.0".

    Raises:
        ValueError: if predictions and summary are of different evaluations.
    """
    scores = read_scores(run, summary)
    title = name.split("/")[1]
    metadata = ModelCardData(
        base_model=base.hub_id or None,
        library_name="peft" if goes_alone(run, base) else "transformers",
        license=licence,
        pipeline_tag="text-generation",
        tags=["knowledge-r1", "grpo", "search"],
        model_name=title,
        eval_results=_eval_results(run, scores),
    )
    sections = (
        f"---\n{metadata.to_yaml()}\n---",
        f"# {title}",
        _description(base),
        "## Scores",
        _score_table(summary, scores),
        "## Training",
        _training(run, summary, base),
        "## Use",
        _use(run, name, base),
        "## Licence",
        f"`{licence}`",
    )
    return "\n\n".join(sections) + "\n"


def goes_alone(run: Run, base: Base) -> bool:
    """Whether an adapter is published without its base model."""
    return run.has_adapter and bool(base.hub_id)


# --- scores ---


def read_scores(run: Run, summary: dict) -> list[Score]:
    """The scores of summary.json, with intervals from the run's predictions.

    Raises:
        ValueError: if predictions and summary are of different evaluations.
    """
    scores = []
    for when, file in PREDICTIONS.items():
        predictions = []
        if (run.folder / file).is_file():
            predictions = list(read_rows(run.folder / file))
        for name in SCORES:
            value = summary.get(f"{name}_{when}")
            if value is None or math.isnan(value):
                # There were no such questions.
                continue
            points = _points(name, summary, predictions)
            if points and not math.isclose(
                sum(points) / len(points), value, abs_tol=1e-6
            ):
                raise ValueError(
                    f"{display_path(run.folder)}: summary.json and {file} are of"
                    f" different evaluations ({name}_{when}): run 04_evaluate again."
                )
            interval = _interval(points, run, summary)
            scores.append(Score(name, when, value, interval))
    return scores


def _points(name: str, summary: dict, predictions: list[dict]) -> list[float]:
    """This score of each single answer.

    The answers to multi-hop questions come first, then those to single-hop ones, then
    those to questions of common knowledge.
    """
    multi_hop = summary.get("questions", len(predictions))
    if name.endswith("_single"):
        beside = predictions[multi_hop:]
        part = [p for p in beside if p.get("type") not in COMMON_KNOWLEDGE]
    else:
        part = predictions[:multi_hop]
    column = SUMMARY_KEYS[name.removesuffix("_single")]
    return [float(prediction[column]) for prediction in part]


def _interval(
    points: list[float], run: Run, summary: dict
) -> tuple[float, float] | None:
    if len(set(points)) < 2:
        # None are known, or all are the same: an interval would claim too much.
        return None
    samples = run.profile.bootstrap_samples
    _, low, high = bootstrap(points, samples, summary.get("seed", 0))
    return low, high


def _score_table(summary: dict, scores: list[Score]) -> str:
    rows = []
    for name, label in SCORES.items():
        told = {score.when: str(score) for score in scores if score.name == name}
        if told:
            rows.append([label, told.get("before", "–"), told.get("after", "–")])
    table = markdown(["", "before training", "after"], rows)
    questions = summary.get("questions")
    about = f"{questions} held-out questions" if questions else "Held-out questions"
    return (
        f"{about}, greedy decoding; in brackets 95 % intervals over the questions.\n\n"
        f"{table}"
    )


def _eval_results(run: Run, scores: list[Score]) -> list:
    """Exact match and F1 after training, as the hub lists them."""
    return [
        EvalResult(
            task_type="question-answering",
            dataset_type=data_name(run),
            dataset_name=data_name(run),
            metric_type={"em": "exact_match", "f1": "f1"}[score.name],
            metric_value=round(score.mean, 4),
        )
        for score in scores
        if score.when == "after" and score.name in ("em", "f1")
    ]


# --- the other sections ---


def data_name(run: Run) -> str:
    """The name of the folder with a run's passages and questions, without its path."""
    if run.data:
        return Path(run.data).name
    return Path(run.profile.corpus).parent.name or "a corpus"


def _description(base: Base) -> str:
    return (
        f"{base.name}, trained to answer questions with the help of a search engine. In"
        " each turn it writes a thought between `<think>` and `</think>`, then a query"
        " between `<search>` and `</search>` or its answer between `<answer>` and"
        " `</answer>`. What a query finds comes back between `<context>` and"
        " `</context>`. The method is that of"
        " [Knowledge-R1](https://github.com/hzy312/knowledge-r1): GRPO with a reward"
        " for the right answer and one for the format."
    )


def _training(run: Run, summary: dict, base: Base) -> str:
    profile = run.profile
    weights = "all weights"
    if run.has_adapter:
        weights = f"LoRA (r {profile.lora_r}) on every linear layer"
        if not goes_alone(run, base):
            weights += ", merged into the weights"
    steps = summary.get("train_steps", profile.grpo["max_steps"])
    settings = [f"{key} {profile.grpo[key]}" for key in SETTINGS if key in profile.grpo]
    limits = [f"{key} {value}" for key, value in vars(profile.limits).items()]
    return (
        f"{steps} steps of GRPO on the training questions of `{data_name(run)}`, BM25"
        f" over its passages; {weights}; {', '.join(settings)}; seed"
        f" {summary.get('seed', 'unknown')}. Limits of a conversation:"
        f" {', '.join(limits)}."
    )


def _use(run: Run, name: str, base: Base) -> str:
    """How to load it: with the libraries alone, and with this kit."""
    profile = run.profile.name
    folder = name.split("/")[1]
    if goes_alone(run, base):
        load = (
            "from peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")\n'
        )
        which = f"--model {base.hub_id} --adapter {folder}"
    else:
        load = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        )
        which = f"--model {folder}"
    load += f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    ask = (
        f"hf download {name} --local-dir {folder}\n"
        f'kr1 ask --profile {profile} {which} --data passages.jsonl "Who …?"'
    )
    return (
        f"```python\n{load}\n```\n\n"
        "It was trained with this system prompt:\n\n"
        f"```\n{run.profile.system_prompt}\n```\n\n"
        "The loop that searches for it is `agent.rollout` of Knowledge-R1 in notebooks;"
        f" over passages of your own:\n\n```bash\n{ask}\n```"
    )
