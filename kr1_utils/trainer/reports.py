"""Owns what dashboards show of a training, besides the numbers that TRL reports.

TensorBoard gets sample trajectories as text, and a folder that outlives the run.
Weights & Biases and Trackio get TRL's own table of completions (see `with_table`).
"""

from pathlib import Path

from kr1_utils.extras import missing

try:
    from transformers import TrainerCallback
    from transformers.integrations import TensorBoardCallback
except ImportError:
    TrainerCallback = TensorBoardCallback = missing("train")

# The dashboards for which TRL makes a table of completions, if asked to.
WITH_TABLES = ("wandb", "trackio")


def with_table(arguments: dict) -> dict:
    """GRPO arguments with which TRL shows its table of completions where it can.

    TRL's `log_completions` would also print every completion; 0 prints none.

    Args:
        arguments: of GRPOConfig; what they set themselves stays.
    """
    report_to = arguments.get("report_to") or ()
    names = [report_to] if isinstance(report_to, str) else report_to
    if not {*WITH_TABLES, "all"} & set(names):
        return arguments
    return {"log_completions": True, "num_completions_to_print": 0, **arguments}


class TensorBoardText(TrainerCallback):
    """Shows TensorBoard two trajectories per step: the best one and the worst.

    It comes before transformers' TensorBoardCallback, and gives it a writer of a folder
    of the run's own: what lies with the checkpoints is removed when training ends.
    """

    def __init__(self, trainer, folder: Path):
        self.trainer = trainer
        self.folder = folder / "tensorboard"

    def _boards(self) -> list:
        callbacks = self.trainer.callback_handler.callbacks
        return [c for c in callbacks if isinstance(c, TensorBoardCallback)]

    def on_train_begin(self, args, state, control, **_):
        for board in self._boards():
            if state.is_world_process_zero and board.tb_writer is None:
                board.tb_writer = _writer(
                    board.logging_dir or self.folder, state.global_step + 1
                )

    def on_step_end(self, args, state, control, **_):
        rows = self.trainer.trajectory_log.latest
        if not rows or rows[0]["step"] != state.global_step:
            return
        by_reward = sorted(rows, key=lambda row: row["reward"] or 0)
        shown = {"trajectory/best": by_reward[-1], "trajectory/worst": by_reward[0]}
        for board in self._boards():
            for name, row in shown.items():
                board.tb_writer.add_text(name, as_markdown(row), state.global_step)


def _writer(folder: str | Path, first_step: int):
    """A writer; what an earlier run wrote from `first_step` on is no longer shown."""
    # It takes a while to import, and few runs use it.
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)


def as_markdown(row: dict) -> str:
    """A row of trajectories.jsonl as Markdown in which nothing is markup."""
    golden = " or ".join(row.get("golden_answers", []))
    lines = [row["question"], f"gold: {golden}" if golden else ""]
    lines.append(f"reward {row['reward']}, advantage {row['advantage']}")
    for number, turn in enumerate(row["turns"]):
        lines += ["", f"model: {turn}"]
        lines += [f"read: {text}" for text in row["observations"][number : number + 1]]
    # Four blanks before a line make it code.
    return "\n".join(f"    {line}" for line in "\n".join(lines).splitlines())
