"""Owns figures, drawn from tables and CSVs."""

import os
from pathlib import Path

import pandas as pd

from kr1_utils.extras import missing
from kr1_utils.files import REPO, atomic_write

try:
    import matplotlib.pyplot as plt
except ImportError:
    plt = missing("notebooks")

REFERENCE = REPO / "data" / "reference"

# One convention in all figures: blue is healthy or after, grey before, orange broken.
BLUE = "#1f5f99"
ORANGE = "#d9822b"
GREY = "#8a8a8a"
GREEN = "#4d9a57"
VIOLET = "#8b5a9b"
PALE_BLUE = "#c9d6e3"

# The six panels of the original figure: column of train_log.csv -> label of its axis.
PANELS = {
    "format_reward": "format reward (−1 to 1)",
    "accuracy_reward": "accuracy reward (0 to 1)",
    "reward": "reward (sum)",
    "loss": "loss",
    "learning_rate": "learning rate",
    "completion_length": "sampled tokens a trajectory",
}

# What a model may decide -> how it is drawn, in all figures of decisions.
CHOICES = {
    "answer": {"color": BLUE, "hatch": ""},
    "search": {"color": PALE_BLUE, "hatch": "//"},
    "give up": {"color": ORANGE, "hatch": "xx"},
}


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
                color=[BLUE, ORANGE, GREY, GREEN, VIOLET],
                linestyle=["-", "--", "-.", ":", "-"],
            ),
        }
    )


def save_fig(figure, folder: str | Path, name: str) -> Path:
    """Write a figure as FOLDER/figures/NAME.png and return where.

    Of several processes only the first writes.

    Raises:
        OSError: if it cannot be written.
    """
    file = Path(folder) / "figures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":
        atomic_write(file, lambda out: figure.savefig(out, format="png"))
    return file


def curve(
    axes, x, y, label: str = "", color: str = BLUE, style: str = "-", window: int = 0
) -> None:
    """Draw the raw curve faint and its running mean bold.

    Args:
        axes: of matplotlib.
        x: (N,) numbers.
        y: (N,) numbers.
        label: in the legend.
        color: of both lines.
        style: of the bold line.
        window: points in a mean; 0 takes a twelfth of all.
    """
    y = pd.Series(list(y), dtype=float)
    window = window or max(1, len(y) // 12)
    running_mean = y.rolling(window, min_periods=1, center=True).mean()
    axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(
        x,
        running_mean,
        color=color,
        linewidth=2,
        linestyle=style,
        label=label or None,
    )


def before_after(rows: pd.DataFrame, label: str = "exact match"):
    """Grouped bars with 95 % intervals, one group per type of question.

    Args:
        rows: columns `type`, `when`, `mean`, `low`, `high`; `when` is "before" or
            "after".
        label: of the vertical axis, from 0 to 1.
    """
    figure, ax = plt.subplots(figsize=(8, 3.6))
    types = list(dict.fromkeys(rows["type"]))
    looks = {
        "before": {"color": PALE_BLUE, "hatch": "//"},
        "after": {"color": BLUE, "hatch": ""},
    }
    for when, shift in (("before", -0.2), ("after", 0.2)):
        part = rows[rows["when"] == when].set_index("type").loc[types]
        ax.bar(
            [i + shift for i in range(len(types))],
            part["mean"],
            width=0.38,
            label=when,
            edgecolor="white",
            yerr=_whiskers(part),
            error_kw={"elinewidth": 1, "capsize": 2},
            **looks[when],
        )
    ax.set_xticks(range(len(types)), [t.replace("_", "\n") for t in types])
    ax.set(ylabel=label, ylim=(0, 1))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def decisions(rows: pd.DataFrame):
    """What the model would do at every fork, before training and after it.

    Args:
        rows: columns `type`, `searches` (made so far), `when` ("before" or "after") and
            a mean probability for each of `CHOICES`.
    """
    types = list(dict.fromkeys(rows["type"]))
    columns = min(4, len(types))
    lines = -(-len(types) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(10, 2.5 * lines), sharey=True, squeeze=False
    )
    for ax in axes.flat[len(types) :]:
        ax.set_visible(False)
    for ax, kind in zip(axes.flat, types):
        _forks(ax, rows[rows["type"] == kind])
        ax.set_title(kind.replace("_", " "))
    for ax in axes[:, 0]:
        ax.set_ylabel("probability")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(CHOICES))
    return figure


def _forks(ax, rows: pd.DataFrame) -> None:
    """Stacked bars: for each number of searches made, before beside after."""
    places = sorted(rows["searches"].unique())
    for when, shift in (("before", -0.21), ("after", 0.21)):
        part = rows[rows["when"] == when].set_index("searches").loc[places]
        bottom = pd.Series(0.0, index=part.index)
        for choice, look in CHOICES.items():
            ax.bar(
                [place + shift for place in places],
                part[choice],
                width=0.38,
                bottom=bottom,
                edgecolor="white",
                label=choice if when == "before" else None,
                **look,
            )
            bottom = bottom + part[choice]
    labels = [f"{place}\nbefore  after" for place in places]
    ax.set_xticks(places, labels, fontsize=8)
    ax.set(ylim=(0, 1), xlabel="searches made")
    ax.grid(visible=False)


# The three decisions of tiny-lm: title, choice, label -> (type, searches made).
CURVES = (
    (
        "to know: answer at once",
        "answer",
        {"known": ("known", 0), "look-alike": ("look_alike", 0)},
    ),
    (
        "to stop: answer after one search",
        "answer",
        {"single-hop": ("single", 1), "two-hop": ("compositional", 1)},
    ),
    (
        "to go on: search again",
        "search",
        {
            "two-hop, after 1": ("compositional", 1),
            "comparison, after 1": ("comparison", 1),
            "bridge, after 3": ("bridge_comparison", 3),
        },
    ),
)


def decision_curves(decisions_log: pd.DataFrame, train_log: pd.DataFrame):
    """The reward over the steps of training, and beside it the decisions that earn it.

    Args:
        decisions_log: the rows of decisions.jsonl.
        train_log: that of the same training.
    """
    figure, axes = plt.subplots(1, 4, figsize=(12, 3), sharex=True)
    curve(axes[0], train_log["step"], train_log["accuracy_reward"])
    axes[0].set_title("accuracy reward")
    places = decisions_log.set_index(["type", "searches"])
    for ax, (title, choice, lines) in zip(axes[1:], CURVES):
        for label, place in lines.items():
            if place in places.index:
                line = places.loc[[place]]
                ax.plot(line["step"], line[choice], linewidth=2, label=label)
        ax.set_title(title)
        ax.set_ylabel("probability")
        ax.legend(fontsize=9)
    for ax in axes:
        ax.set(xlabel="GRPO step", ylim=(0, 1.02))
    return figure


def _whiskers(rows: pd.DataFrame) -> list[pd.Series]:
    """How far an interval reaches below its mean, and above it."""
    return [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]


def six_panels(logs: dict[str, pd.DataFrame], columns: dict[str, str] = PANELS):
    """The panels of the original figure, one curve per run.

    Args:
        logs: label -> train_log.csv as a table; at most four runs.
        columns: column -> label of its axis; six of them.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8, 4), sharex=True)
    looks = [(BLUE, "-"), (ORANGE, "--"), (GREY, "-."), (GREEN, ":")]
    for ax, (column, label) in zip(axes.flat, columns.items()):
        # A schedule has no noise to smooth.
        window = 1 if column == "learning_rate" else 0
        for (name, log), (color, style) in zip(logs.items(), looks):
            curve(ax, log["step"], log[column], name, color, style, window)
        ax.set_ylabel(label, fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("GRPO step")
    if len(logs) > 1:
        axes.flat[0].legend(fontsize=8)
    return figure


def lengths(log: pd.DataFrame):
    """Response length over training: what was sampled, and on it what was retrieved.

    Args:
        log: columns `step`, `completion_length`, `retrieved_length` of train_log.csv.
    """
    figure, ax = plt.subplots(figsize=(7, 3.5))
    ax.stackplot(
        log["step"],
        log["completion_length"],
        log["retrieved_length"],
        labels=["sampled by the model (mask 1)", "retrieved and headers (mask 0)"],
        colors=[BLUE, PALE_BLUE],
    )
    ax.set(xlabel="GRPO step", ylabel="tokens a trajectory", ylim=(0, None))
    ax.legend(loc="upper left", fontsize=9)
    return figure


def stages(scores: pd.DataFrame):
    """One panel per metric, one bar per stage of training, with 95 % intervals.

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
            yerr=_whiskers(part),
            error_kw={"capsize": 3},
        )
        ax.set_title(metric)
        ax.tick_params(axis="x", labelsize=8)
    return figure


def bench_agent(rows: pd.DataFrame):
    """How fast each way of running the loop is, and how much it computes.

    Args:
        rows: bench_agent.csv; one group of bars per profile.
    """
    figure, (speed, work) = plt.subplots(1, 2, figsize=(9, 3.2))
    names = {
        "one_by_one": "one at a time",
        "batched": "batched",
        "trl_tools": "TRL's tools",
        "vllm": "vLLM",
    }
    profiles = list(dict.fromkeys(rows["profile"]))
    slowest = rows[rows["way"] == "one_by_one"].set_index("profile")
    for n, (way, name) in enumerate(names.items()):
        part = rows[rows["way"] == way].set_index("profile")
        shift = (n - 1.5) * 0.2
        x = [i + shift for i, p in enumerate(profiles) if p in part.index]
        one_by_one = slowest["questions_per_second"][part.index]
        speed.bar(x, part["questions_per_second"] / one_by_one, 0.19, label=name)
        work.bar(x, part["floor_ratio"], 0.19, label=name)
    speed.set(title="questions a second", ylabel="one at a time = 1")
    work.set(title="tokens computed", ylabel="each token once = 1")
    work.axhline(1, color=GREY, linewidth=1)
    counts = rows.groupby("profile")["questions"].first()
    ticks = [f"{profile}\n{counts[profile]} questions" for profile in profiles]
    for ax in (speed, work):
        ax.set_xticks(range(len(profiles)), ticks)
    handles, labels = speed.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def memory_over_length(forecasts: pd.DataFrame):
    """GPU memory over the length of a response: the original's run, and ours.

    Args:
        forecasts: columns `run`, `gpu_gib`, `response_tokens`, `training_gib`,
            `sampling_gib`.
    """
    shown = [("original", 40), ("7b-4bit", 24), ("7b", 40), ("7b", 80)]
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.6), sharex=True, sharey=True)
    for ax, (run, gpu_gib) in zip(axes, shown):
        part = _forecasts_of(forecasts, run, gpu_gib)
        tokens = part["response_tokens"]
        ax.plot(tokens, part["training_gib"], color=BLUE, label="a training step")
        ax.plot(tokens, part["sampling_gib"], ":", color=ORANGE, lw=2, label="sampling")
        ax.axhline(
            gpu_gib, color="black", linewidth=0.8, linestyle="--", label="the GPU"
        )
        ax.set_xscale("log", base=2)
        ax.set_xticks([512, 2048, 8192], ["512", "2k", "8k"])
        ax.set(title=f"{run}, {gpu_gib} GiB", ylim=(0, 85))
    figure.supxlabel("tokens of one response", fontsize=9)
    axes[0].set_ylabel("GiB (simulated)")
    axes[1].legend(fontsize=8)
    return figure


def _forecasts_of(forecasts: pd.DataFrame, run: str, gpu_gib: int) -> pd.DataFrame:
    chosen = (forecasts["run"] == run) & (forecasts["gpu_gib"] == gpu_gib)
    return forecasts[chosen]


def micro_batches(forecasts: pd.DataFrame, bench: pd.DataFrame):
    """A batch in one pass, beside parts of at most `tokens_per_micro_batch`.

    Args:
        forecasts: forecasts.csv, memory of a 7B model, simulated.
        bench: bench_training.csv, memory and time of a tiny one, measured.
    """
    figure, (simulated, measured, time) = plt.subplots(1, 3, figsize=(10, 3))
    _simulated_memory(simulated, forecasts)
    _measured_memory(measured, bench)
    _time_of_parts(time, bench)
    simulated.legend(fontsize=8, loc="upper left")
    measured.legend(fontsize=8, loc="upper left")
    time.legend(fontsize=8, loc="upper right")
    return figure


def _simulated_memory(ax, forecasts: pd.DataFrame) -> None:
    whole = _forecasts_of(forecasts, "eight rows", 80)
    parts = _forecasts_of(forecasts, "7b", 80)
    for rows, label, style in (
        (whole, "8 rows in one pass", "-o"),
        (parts, "parts of 8,704 tokens", "--s"),
    ):
        tokens = rows["response_tokens"]
        ax.plot(tokens, rows["training_gib"], style, markersize=3, label=label)
    ax.set_xscale("log", base=2)
    ax.set(title="7B, simulated", xlabel="tokens of a response")
    ax.set(ylabel="GiB", ylim=(0, None))


def _measured_memory(ax, bench: pd.DataFrame) -> None:
    mixed = bench[bench["lengths"] == "mixed"]
    for way, label, style in (
        ("trl", "one pass", "-o"),
        ("parts", "in parts of 4,096 tokens", "--s"),
    ):
        rows = mixed[mixed["way"] == way]
        ax.plot(rows["mean_tokens"], rows["peak_mib"], style, markersize=3, label=label)
    ax.set(title="tiny, mixed lengths, measured", xlabel="mean tokens of a response")
    ax.set(ylabel="MiB", ylim=(0, None))


def _time_of_parts(ax, bench: pd.DataFrame) -> None:
    seconds = bench.pivot(
        index=["lengths", "mean_tokens"], columns="way", values="seconds"
    )
    ratio = seconds["parts"] / seconds["trl"]
    for kind, shift in (("equal", -0.2), ("mixed", 0.2)):
        x = [i + shift for i in range(len(ratio[kind]))]
        ax.bar(x, ratio[kind], 0.38, label=f"{kind} lengths")
    ax.axhline(1, color=GREY, linewidth=1)
    mean_tokens = ratio["equal"].index
    ax.set_xticks(range(len(mean_tokens)), mean_tokens)
    ax.set(title="tiny, time, measured", xlabel="mean tokens of a response")
    ax.set(ylabel="one pass = 1", ylim=(0, 1.4))


def draw_figures() -> list[Path]:
    """Draw the README's figures from data/reference into figures/.

    Returns:
        The files.

    Raises:
        OSError: if data/reference is not there, as in a package without the
            repository, or a file cannot be written.
    """
    use_style()
    runs = sorted((REFERENCE / "tiny").glob("seed*"))
    if not runs:
        raise FileNotFoundError(
            "Figures are drawn from data/reference, which is not here: run this in a"
            " clone of the repository."
        )
    logs = {run.name: pd.read_csv(run / "train_log.csv") for run in runs}
    forecasts = _read_reference("forecasts")
    figures = {
        "before_after": before_after(_exact_match_of(runs)),
        "six_panels": six_panels(logs),
        "lengths": lengths(logs[runs[0].name]),
        "bench_agent": bench_agent(_read_reference("bench_agent")),
        "memory_7b": memory_over_length(forecasts),
        "micro_batches": micro_batches(forecasts, _read_reference("bench_training")),
        "smol_2wiki": stages(_read_reference("smol_2wiki_scores")),
    }
    return [save_fig(figure, REPO, name) for name, figure in figures.items()]


def _read_reference(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / f"{name}.csv")


def _exact_match_of(runs: list[Path]) -> pd.DataFrame:
    """The mean over runs, with the widest interval that any of them gave."""
    scores = pd.concat(pd.read_csv(run / "scores.csv") for run in runs)
    exact_match = scores[scores["metric"] == "em"]
    groups = exact_match.groupby(["type", "when"], sort=False, as_index=False)
    return groups.agg({"mean": "mean", "low": "min", "high": "max"})
