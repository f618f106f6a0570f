"""Owns figures, drawn from tables and CSVs."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from kr1_utils.files import REPO, atomic_write

BLUE, ORANGE, GREY = "#1f5f99", "#d9822b", "#8a8a8a"


def use_style() -> None:
    """One look for all figures: thin axes, readable in grey."""
    plt.rcParams.update(
        {
            "figure.dpi": 72,
            "savefig.dpi": 120,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.titlesize": 11,
            "legend.frameon": False,
            "axes.prop_cycle": plt.cycler(
                color=[BLUE, ORANGE, GREY, "#4d9a57", "#8b5a9b"],
                linestyle=["-", "--", "-.", ":", "-"],
            ),
        }
    )


def save_fig(figure, folder: str | Path, name: str) -> Path:
    """Write `figure` as PNG into `folder`/figures (of several processes, the first
    does) and return where."""
    file = Path(folder) / "figures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":
        atomic_write(file, lambda out: figure.savefig(out, format="png"))
    return file


def curve(
    axes, x, y, label: str = "", color: str = BLUE, style: str = "-", window: int = 0
) -> None:
    """The raw curve faint, its running mean bold."""
    y = pd.Series(list(y), dtype=float)
    window = window or max(1, len(y) // 12)
    axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(
        x,
        y.rolling(window, min_periods=1, center=True).mean(),
        color=color,
        linewidth=2,
        linestyle=style,
        label=label or None,
    )


REFERENCE = REPO / "data" / "reference"

# the six panels of the original figure: column of train_log.csv -> label of its axis
PANELS = {
    "format_reward": "format reward (−1 to 1)",
    "accuracy_reward": "accuracy reward (0 to 1)",
    "reward": "reward (sum)",
    "loss": "loss",
    "learning_rate": "learning rate",
    "completion_length": "sampled tokens a trajectory",
}


def bench_agent(rows: pd.DataFrame):
    """How fast each way of running the loop is, and how much it computes; one group of
    bars a profile."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    names = {
        "one_by_one": "one at a time",
        "batched": "batched",
        "trl_tools": "TRL's tools",
        "vllm": "vLLM",
    }
    profiles = list(dict.fromkeys(rows["profile"]))
    for n, (way, name) in enumerate(names.items()):
        part = rows[rows["way"] == way].set_index("profile")
        slowest = rows[rows["way"] == "one_by_one"].set_index("profile")[
            "questions_per_second"
        ]
        x = [i + (n - 1.5) * 0.2 for i, p in enumerate(profiles) if p in part.index]
        axes[0].bar(
            x, part["questions_per_second"] / slowest[part.index], 0.19, label=name
        )
        axes[1].bar(x, part["floor_ratio"], 0.19, label=name)
    axes[0].set(title="questions a second", ylabel="one at a time = 1")
    axes[1].set(title="tokens computed", ylabel="each token once = 1")
    axes[1].axhline(1, color=GREY, linewidth=1)
    counts = rows.groupby("profile")["questions"].first()
    for ax in axes:
        ax.set_xticks(
            range(len(profiles)), [f"{p}\n{counts[p]} questions" for p in profiles]
        )
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return figure


def micro_batches(forecasts: pd.DataFrame, bench: pd.DataFrame):
    """A batch in one pass beside parts of at most `tokens_per_micro_batch`: memory, and
    time."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3))
    whole = forecasts[forecasts["run"] == "eight rows"]
    parts = forecasts[(forecasts["run"] == "7b") & (forecasts["gpu_gib"] == 80)]
    for rows, label, style in (
        (whole, "8 rows in one pass", "-o"),
        (parts, "parts of 8,704 tokens", "--s"),
    ):
        axes[0].plot(
            rows["response_tokens"],
            rows["training_gib"],
            style,
            markersize=3,
            label=label,
        )
    axes[0].set_xscale("log", base=2)
    axes[0].set(
        title="7B, simulated",
        xlabel="tokens of a response",
        ylabel="GiB",
        ylim=(0, None),
    )
    for (way, rows), style in zip(bench.groupby("way", sort=False), ("-o", "--s")):
        rows = rows[rows["lengths"] == "mixed"]
        axes[1].plot(
            rows["mean_tokens"],
            rows["peak_mib"],
            style,
            markersize=3,
            label="one pass" if way == "trl" else "in parts of 4,096 tokens",
        )
    axes[1].set(
        title="tiny, mixed lengths, measured",
        xlabel="mean tokens of a response",
        ylabel="MiB",
        ylim=(0, None),
    )
    seconds = bench.pivot(
        index=["lengths", "mean_tokens"], columns="way", values="seconds"
    )
    ratio = seconds["parts"] / seconds["trl"]
    for n, kind in enumerate(("equal", "mixed")):
        axes[2].bar(
            [i + 0.4 * n - 0.2 for i in range(3)],
            ratio[kind],
            0.38,
            label=f"{kind} lengths",
        )
    axes[2].axhline(1, color=GREY, linewidth=1)
    axes[2].set_xticks(range(3), ratio["equal"].index)
    axes[2].set(
        title="tiny, time, measured",
        xlabel="mean tokens of a response",
        ylabel="one pass = 1",
        ylim=(0, 1.4),
    )
    for ax, where in zip(axes, ("upper left", "upper left", "upper right")):
        ax.legend(fontsize=8, loc=where)
    return figure


def memory_over_length(forecasts: pd.DataFrame):
    """GPU memory over the length of a response: the original's run, and ours, each
    below its GPU's size.

    Args:
        forecasts: columns `run`, `gpu_gib`, `response_tokens`, `training_gib`,
            `sampling_gib`.
    """
    shown = [("original", 40), ("7b-4bit", 24), ("7b", 40), ("7b", 80)]
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.6), sharex=True, sharey=True)
    for ax, (run, gpu) in zip(axes, shown):
        part = forecasts[(forecasts["run"] == run) & (forecasts["gpu_gib"] == gpu)]
        tokens = part["response_tokens"]
        ax.plot(tokens, part["training_gib"], color=BLUE, label="a training step")
        ax.plot(
            tokens,
            part["sampling_gib"],
            ":",
            color=ORANGE,
            lw=2,
            label="sampling",
        )
        ax.axhline(gpu, color="black", linewidth=0.8, linestyle="--", label="the GPU")
        ax.set_xscale("log", base=2)
        ax.set_xticks([512, 2048, 8192], ["512", "2k", "8k"])
        ax.set(title=f"{run}, {gpu} GiB", ylim=(0, 85))
    figure.supxlabel("tokens of one response", fontsize=9)
    axes[0].set_ylabel("GiB (simulated)")
    axes[1].legend(fontsize=8)
    return figure


def before_after(rows: pd.DataFrame, label: str = "exact match"):
    """Grouped bars with 95 % intervals.

    Args:
        rows: columns `type`, `when`, `mean`, `low`, `high`; `when` is "before" or
            "after".
    """
    figure, ax = plt.subplots(figsize=(8, 3.6))
    types = list(dict.fromkeys(rows["type"]))
    for when, shift, color, hatch in (
        ("before", -0.2, "#c9d6e3", "//"),
        ("after", 0.2, BLUE, ""),
    ):
        part = rows[rows["when"] == when].set_index("type").loc[types]
        x = [i + shift for i in range(len(types))]
        error = [part["mean"] - part["low"], part["high"] - part["mean"]]
        ax.bar(
            x,
            part["mean"],
            0.38,
            label=when,
            color=color,
            hatch=hatch,
            edgecolor="white",
            yerr=error,
            error_kw={"elinewidth": 1, "capsize": 2},
        )
    ax.set_xticks(range(len(types)), [t.replace("_", "\n") for t in types])
    ax.set(ylabel=label, ylim=(0, 1))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def six_panels(logs: dict[str, pd.DataFrame], columns: dict[str, str] = PANELS):
    """The panels of the original figure, one curve a run.

    Args:
        logs: label -> train_log.csv as a table.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8, 4), sharex=True)
    styles = [
        (BLUE, "-"),
        (ORANGE, "--"),
        (GREY, "-."),
        ("#4d9a57", ":"),
    ]
    for ax, (column, label) in zip(axes.flat, columns.items()):
        for (name, log), (color, style) in zip(logs.items(), styles):
            window = int(column == "learning_rate")  # a schedule has no noise to smooth
            curve(ax, log["step"], log[column], name, color, style, window)
        ax.set_ylabel(label, fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("GRPO step")
    if len(logs) > 1:
        axes.flat[0].legend(fontsize=8)
    return figure


def lengths(log: pd.DataFrame):
    """Response length over training, split into what was sampled and what was
    retrieved."""
    figure, ax = plt.subplots(figsize=(7, 3.5))
    ax.stackplot(
        log["step"],
        log["completion_length"],
        log["retrieved_length"],
        labels=["sampled by the model (mask 1)", "retrieved and headers (mask 0)"],
        colors=[BLUE, "#c9d6e3"],
    )
    ax.set(xlabel="GRPO step", ylabel="tokens a trajectory", ylim=(0, None))
    ax.legend(loc="upper left", fontsize=9)
    return figure


def stages(scores: pd.DataFrame):
    """One panel a metric, one bar a stage of training, with 95 % intervals.

    Args:
        scores: columns `stage`, `metric`, `mean`, `low`, `high`.
    """
    groups = scores.groupby("metric", sort=False)
    figure, axes = plt.subplots(1, len(groups), figsize=(11, 2.6))
    for ax, (metric, part) in zip(axes, groups):
        ax.bar(
            part["stage"].str.replace(" ", "\n"),
            part["mean"],
            width=0.7,
            color=[GREY, ORANGE, BLUE],
            error_kw={"capsize": 3},
            yerr=[part["mean"] - part["low"], part["high"] - part["mean"]],
        )
        ax.set_title(metric)
        ax.tick_params(axis="x", labelsize=8)
    return figure


def draw_figures() -> list[Path]:
    """Draw the README's figures from data/reference into figures/."""
    use_style()
    runs = sorted((REFERENCE / "tiny").glob("seed*"))
    logs = {r.name: pd.read_csv(r / "train_log.csv") for r in runs}
    scores = pd.concat(pd.read_csv(r / "scores.csv") for r in runs)
    # The mean over seeds, with the widest interval that any seed gave.
    rows = (
        scores[scores["metric"] == "em"]
        .groupby(["type", "when"], sort=False, as_index=False)
        .agg({"mean": "mean", "low": "min", "high": "max"})
    )
    drawn = {
        "before_after": before_after(rows),
        "six_panels": six_panels(logs),
        "lengths": lengths(next(iter(logs.values()))),
        "bench_agent": bench_agent(pd.read_csv(REFERENCE / "bench_agent.csv")),
        "memory_7b": memory_over_length(pd.read_csv(REFERENCE / "forecasts.csv")),
        "micro_batches": micro_batches(
            pd.read_csv(REFERENCE / "forecasts.csv"),
            pd.read_csv(REFERENCE / "bench_training.csv"),
        ),
        "smol_2wiki": stages(pd.read_csv(REFERENCE / "smol_2wiki_scores.csv")),
    }
    return [save_fig(figure, REPO, name) for name, figure in drawn.items()]
