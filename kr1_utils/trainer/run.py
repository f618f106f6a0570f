"""Owns what a whole training run needs around `grpo.train`: resume, report, watch."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from kr1_utils import alarms, decisions, memory
from kr1_utils.corpus import some_of_each_type
from kr1_utils.extras import missing
from kr1_utils.files import display_path, in_repository
from kr1_utils.notebook import progress
from kr1_utils.profiles import Profile
from kr1_utils.retriever.build import fingerprint
from kr1_utils.trainer.decision_log import DecisionLog
from kr1_utils.trainer.grpo import KnowledgeGRPOTrainer
from kr1_utils.trainer.resume import resume_point

try:
    import transformers
except ImportError:
    transformers = missing("train")

# Steps between two lines of the report, beside the first and the last step.
REPORT_EVERY = 10
# Questions of each type whose decisions are looked at.
QUESTIONS_PER_TYPE = 8


@contextmanager
def run(
    grpo: KnowledgeGRPOTrainer,
    profile: Profile,
    seed: int,
    where: dict[str, Path | None],
    questions: list[dict],
) -> Iterator[str | None]:
    """Prepare a trainer for a run that reports, is watched, and goes on if cut off.

    A run that was cut off goes on from its last complete checkpoint, if its settings,
    files and rewards are the same; with others it starts anew. Where the questions have
    evidence, the model's decisions are logged every `decision_steps`.

    Args:
        grpo: the trainer; its folder is that of the run.
        profile: whose settings it has.
        seed: of the run.
        where: the files of the run, from `corpus.locate_files`.
        questions: that it trains on.

    Yields:
        The checkpoint to go on from, for `grpo.train`; None to start anew.
    """
    settings = _settings(grpo, profile, seed, where)
    checkpoint = resume_point(grpo.folder / "training", settings)
    if checkpoint:
        print("goes on from", display_path(Path(checkpoint)))
    if grpo.args.log_completions:
        # TRL made it with the trainer; it went if the folder was cleared since.
        Path(grpo.args.output_dir, "completions").mkdir(parents=True, exist_ok=True)
    grpo.on_out_of_memory = lambda tokens: _advice(profile, tokens)
    alarms.watch(grpo, grpo.folder, profile.stop_on_alarm)
    _log_decisions(grpo, profile, questions)
    if grpo.args.use_vllm:
        # vLLM has set a seed of its own.
        transformers.set_seed(seed, device_specific=True)
    steps = grpo.args.max_steps
    is_first = grpo.args.process_index == 0
    with progress(steps, "GRPO", "step", disable=not is_first) as bar:
        grpo.on_step = lambda row: _report(bar, row, steps)
        yield checkpoint


def _settings(
    grpo: KnowledgeGRPOTrainer,
    profile: Profile,
    seed: int,
    where: dict[str, Path | None],
) -> dict:
    """All that the run depends on, as plain values."""
    files = [file for file in (where["passages"], where["train"]) if file]
    model = in_repository(profile.model)
    if model.is_dir():
        files += sorted(model.glob("*.*"))
    own = [
        function
        for function in grpo.reward_funcs
        if inspect.isfunction(function) and not function.__module__.startswith("trl.")
    ]
    return {
        "profile": asdict(profile),
        "seed": seed,
        "processes": grpo.args.world_size,
        "files": [fingerprint(file) for file in files],
        "rewards": [inspect.getsource(function) for function in own],
        "weights": grpo.args.reward_weights[: len(own)],
    }


def _advice(profile: Profile, tokens: int) -> str:
    """What to change, if memory runs out at responses of that many tokens."""
    # The forecast's model is whole, also where the training's was spread.
    transformers.integrations.unset_hf_deepspeed_config()
    return memory.show(memory.forecast(profile, tokens, memory.this_gpu()))


def _log_decisions(
    grpo: KnowledgeGRPOTrainer, profile: Profile, questions: list[dict]
) -> None:
    known = [question for question in questions if "evidence" in question]
    # Of several processes none has the whole model.
    if not known or not profile.decision_steps or grpo.args.world_size > 1:
        return
    points = decisions.decision_points(
        grpo.processing_class,
        grpo.retriever,
        some_of_each_type(known, QUESTIONS_PER_TYPE),
        profile.limits,
        profile.system_prompt,
    )
    grpo.add_callback(DecisionLog(grpo.folder, points, profile.decision_steps))


def _report(bar, row: dict, steps: int) -> None:
    """One line every few steps: what it earns, how often it searches, its seconds."""
    bar.update(row["step"] - bar.n)
    if row["step"] % REPORT_EVERY == 0 or row["step"] in (1, steps):
        print(
            f"step {row['step']:3}: accuracy {row['accuracy_reward']:.2f}, "
            f"format {row['format_reward']:+.2f}, searches {row['searches']:.2f}, "
            f"{row['step_time']:.1f} s",
            flush=True,
        )


def gathered_weights(grpo: KnowledgeGRPOTrainer) -> dict:
    """The trained weights, whole; ends all processes of the run but the first.

    Raises:
        SystemExit: in each process but the first.
    """
    weights = grpo.accelerator.get_state_dict(grpo.model_wrapped)
    grpo.accelerator.end_training()
    # What is loaded from now on is whole.
    transformers.integrations.unset_hf_deepspeed_config()
    if not grpo.accelerator.is_main_process:
        raise SystemExit
    return weights
