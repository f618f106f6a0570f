"""Owns figures, drawn from tables and CSVs."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kr1_utils import diagrams
from kr1_utils.extras import missing
from kr1_utils.files import REPO, atomic_write, write_text

try:
    import matplotlib.pyplot as plt
except ImportError:
    plt = missing("notebooks")

REFERENCE = REPO / "data" / "reference"

# One convention in all figures: blue is healthy or after, grey before, orange broken.
# Hatches and line styles tell apart what a print in grey would not.
BLUE = "#1f5f99"
ORANGE = "#d9822b"
GREY = "#8a8a8a"
GREEN = "#4d9a57"
VIOLET = "#8b5a9b"
PALE_BLUE = "#c9d6e3"
PALE_GREY = "#d0d0d0"

# Inches that a page of GitHub or JupyterLab shows without shrinking them, at CSS's 96
# pixels an inch; and the resolution of files, twice that.
WIDTH = 8.5
SCREEN_DPI = 96
FILE_DPI = 2 * SCREEN_DPI

# Points; the smallest text of any figure.
SMALL = 9

# What is compared is drawn in these, in this order; orange stays for what is broken.
SERIES = [(BLUE, "-"), (VIOLET, "--"), (GREEN, "-."), (GREY, ":")]

# Before and after training, as bars.
WHEN = {
    "before": {"color": PALE_GREY, "hatch": "//"},
    "after": {"color": BLUE, "hatch": ""},
}

# The six panels of the original figure: column of train_log.csv -> label of its axis.
PANELS = {
    "format_reward": "format reward\n(−1 to 1)",
    "accuracy_reward": "accuracy reward\n(0 to 1)",
    "reward": "reward (sum)",
    "loss": "loss",
    "learning_rate": "learning rate",
    "completion_length": "sampled tokens\nper trajectory",
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
            "figure.dpi": SCREEN_DPI,
            "savefig.dpi": FILE_DPI,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "xtick.labelsize": SMALL,
            "ytick.labelsize": SMALL,
            "legend.fontsize": SMALL,
            "hatch.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "axes.titlesize": 11,
            "legend.frameon": False,
            "axes.prop_cycle": plt.cycler(
                color=[color for color, _ in SERIES],
                linestyle=[style for _, style in SERIES],
            ),
        }
    )
    _sharpen_notebook()


def _sharpen_notebook() -> None:
    """In a notebook, figures are saved with two pixels for each that is shown."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("retina")


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
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    types = list(dict.fromkeys(rows["type"]))
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
            **WHEN[when],
        )
        for i, (mean, high) in enumerate(zip(part["mean"], part["high"])):
            text = f"{mean:.2f}"
            ax.text(i + shift, high + 0.02, text, ha="center", fontsize=SMALL)
    ax.set_xticks(range(len(types)), [t.replace("_", "\n") for t in types])
    ax.set(ylabel=label, ylim=(0, 1))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=2)
    return figure


# The order of rows, from what needs no search to what needs four, and its names.
TYPES = {
    "known": "common\nknowledge",
    "look_alike": "looks like\nknowledge",
    "single": "single-hop",
    "compositional": "compositional",
    "inference": "inference",
    "comparison": "comparison",
    "bridge_comparison": "bridge\ncomparison",
}


def decisions(rows: pd.DataFrame):
    """What the model would do at every fork, before training and beside it after.

    A fork is a bar in either half, as long as the probabilities add up to; what is
    missing to 1 would be something else. Behind each bar stands the probability of
    the right choice: to search, then to answer; to answer at once what is known.

    Args:
        rows: columns `type`, `searches` (made so far), `when` ("before" or "after") and
            a mean probability for each of `CHOICES`.
    """
    found = list(dict.fromkeys(rows["type"]))
    types = [kind for kind in TYPES if kind in found]
    types += [kind for kind in found if kind not in TYPES]
    forks = _forks(rows, types)
    figure, axes = plt.subplots(
        1, 2, figsize=(WIDTH, 1.2 + 0.25 * len(forks)), sharey=True
    )
    for ax, when in zip(axes, WHEN):
        _draw_forks(ax, forks, rows[rows["when"] == when])
        ax.set_title(f"{when} training", loc="left", fontweight="bold")
    left = axes[0]
    labels = [f"{fork.searches} → {fork.right}" for fork in forks]
    left.set_yticks([fork.place for fork in forks], labels)
    left.set_ylim(forks[-1].place + 0.6, forks[0].place - 1.1)
    _name_types(left, forks)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(CHOICES))
    return figure


@dataclass(frozen=True)
class _Fork:
    """One row of the figure of decisions, and what is right there."""

    type: str
    searches: int
    right: str
    # From the top, in rows; there is room between two types.
    place: float


def _forks(rows: pd.DataFrame, types: list[str]) -> list[_Fork]:
    forks = []
    place = 0.0
    for kind in types:
        made = sorted(rows.loc[rows["type"] == kind, "searches"].unique())
        for searches in made:
            is_last = searches == made[-1]
            right = "answer" if is_last or kind == "known" else "search"
            forks.append(_Fork(kind, searches, right, place))
            place += 1
        place += 0.5
    return forks


def _draw_forks(ax, forks: list[_Fork], rows: pd.DataFrame) -> None:
    """One stacked bar per fork, and behind it the probability of what is right."""
    found = rows.set_index(["type", "searches"])
    part = found.loc[[(fork.type, fork.searches) for fork in forks]]
    places = [fork.place for fork in forks]
    left = pd.Series(0.0, index=part.index)
    for choice, look in CHOICES.items():
        ax.barh(
            places,
            part[choice],
            height=0.78,
            left=left,
            edgecolor="white",
            linewidth=0,
            label=choice,
            **look,
        )
        left = left + part[choice]
    for fork, (_, row) in zip(forks, part.iterrows()):
        ax.text(1.03, fork.place, f"{row[fork.right]:.2f}", va="center", fontsize=SMALL)
    ax.text(1.03, forks[0].place - 0.8, "right", fontsize=SMALL)
    ax.set(xlim=(0, 1), xlabel="probability")
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)


def _name_types(ax, forks: list[_Fork]) -> None:
    """The types of question, each beside the middle of its rows."""
    for kind in dict.fromkeys(fork.type for fork in forks):
        places = [fork.place for fork in forks if fork.type == kind]
        ax.text(
            -0.42,
            sum(places) / len(places),
            TYPES.get(kind, kind.replace("_", "\n")),
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=SMALL,
        )
    ax.text(
        -0.02,
        forks[0].place - 0.8,
        "searches → right",
        transform=ax.get_yaxis_transform(),
        ha="right",
        fontsize=SMALL,
    )


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
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.2), sharex=True, sharey=True)
    first, *others = axes.flat
    curve(first, train_log["step"], train_log["accuracy_reward"])
    first.set_title("what is earned: the accuracy reward")
    first.set_ylabel("mean of a batch")
    places = decisions_log.set_index(["type", "searches"]).sort_index()
    for ax, (title, choice, lines) in zip(others, CURVES):
        shown = [item for item in lines.items() if item[1] in places.index]
        for (label, place), (color, style) in zip(shown, SERIES):
            line = places.loc[[place]]
            ax.plot(line["step"], line[choice], style, color=color, lw=2, label=label)
        ax.set_title(title)
        ax.set_ylabel("probability")
        if shown:
            ax.legend()
    for ax in axes[1]:
        ax.set_xlabel("GRPO step")
    first.set_ylim(0, 1.02)
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
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.4), sharex=True)
    for ax, (column, label) in zip(axes.flat, columns.items()):
        # A schedule has no noise to smooth.
        window = 1 if column == "learning_rate" else 0
        for (name, log), (color, style) in zip(logs.items(), SERIES):
            curve(ax, log["step"], log[column], name, color, style, window)
        ax.set_ylabel(label, fontsize=SMALL)
    for ax in axes[1]:
        ax.set_xlabel("GRPO step")
    if len(logs) > 1:
        axes.flat[0].legend()
    return figure


def lengths(log: pd.DataFrame):
    """Response length over training: what was sampled, and on it what was retrieved.

    Args:
        log: columns `step`, `completion_length`, `retrieved_length` of train_log.csv.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.4))
    ax.stackplot(
        log["step"],
        log["completion_length"],
        log["retrieved_length"],
        labels=["sampled by the model (mask 1)", "retrieved and headers (mask 0)"],
        colors=[BLUE, PALE_BLUE],
        hatch=["", "//"],
        edgecolor="white",
        linewidth=0,
    )
    ax.set(xlabel="GRPO step", ylabel="tokens per trajectory", ylim=(0, None))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def stages(scores: pd.DataFrame):
    """One panel per metric, one bar per stage of training, with 95 % intervals.

    Args:
        scores: columns `stage`, `metric`, `mean`, `low`, `high`.
    """
    groups = scores.groupby("metric", sort=False)
    figure, axes = plt.subplots(1, len(groups), figsize=(WIDTH, 1.8), sharey=True)
    for ax, (metric, part) in zip(axes, groups):
        ax.barh(
            part["stage"],
            part["mean"],
            height=0.7,
            color=[PALE_GREY, PALE_BLUE, BLUE],
            edgecolor="white",
            hatch=["//", "..", ""],
            xerr=_whiskers(part),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        ax.set_title(metric)
        ax.locator_params(axis="x", nbins=4)
        ax.grid(visible=False, axis="y")
    axes[0].invert_yaxis()
    return figure


def bench_agent(rows: pd.DataFrame):
    """How fast each way of running the loop is, and how much it computes.

    Args:
        rows: bench_agent.csv; one group of bars per profile.
    """
    figure, (speed, work) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    ways = {
        "one_by_one": {"label": "one at a time", "color": PALE_GREY, "hatch": "//"},
        "batched": {"label": "batched", "color": BLUE},
        "trl_tools": {"label": "TRL's tools", "color": VIOLET, "hatch": ".."},
        "vllm": {"label": "vLLM", "color": GREEN, "hatch": "\\\\"},
    }
    profiles = list(dict.fromkeys(rows["profile"]))
    slowest = rows[rows["way"] == "one_by_one"].set_index("profile")
    for n, (way, look) in enumerate(ways.items()):
        part = rows[rows["way"] == way].set_index("profile")
        shift = (n - 1.5) * 0.2
        x = [i + shift for i, p in enumerate(profiles) if p in part.index]
        one_by_one = slowest["questions_per_second"][part.index]
        look = look | {"width": 0.19, "edgecolor": "white"}
        speed.bar(x, part["questions_per_second"] / one_by_one, **look)
        work.bar(x, part["floor_ratio"], **look)
    speed.set(title="questions per second", ylabel="one at a time = 1")
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
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.8), sharex=True, sharey=True)
    for ax, (run, gpu_gib) in zip(axes, shown):
        part = _forecasts_of(forecasts, run, gpu_gib)
        tokens = part["response_tokens"]
        ax.plot(tokens, part["training_gib"], color=BLUE, label="a training step")
        ax.plot(tokens, part["sampling_gib"], "--", color=VIOLET, label="sampling")
        ax.axhline(
            gpu_gib, color="black", linewidth=0.8, linestyle=":", label="the GPU"
        )
        ax.set_xscale("log", base=2)
        ax.set_xticks([512, 2048, 8192], ["512", "2k", "8k"])
        ax.set(title=f"{run}, {gpu_gib} GiB", ylim=(0, 85))
    figure.supxlabel("tokens of one response", fontsize=10)
    axes[0].set_ylabel("GiB (simulated)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
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
    figure, (simulated, measured, time) = plt.subplots(1, 3, figsize=(WIDTH, 3.2))
    _simulated_memory(simulated, forecasts)
    _measured_memory(measured, bench)
    _time_of_parts(time, bench)
    for ax in (simulated, measured, time):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


# A batch in one pass, as it was before, and in parts.
WHOLE = {"color": GREY, "linestyle": "--", "marker": "s", "markersize": 4}
PARTS = {"color": BLUE, "linestyle": "-", "marker": "o", "markersize": 4}


def _simulated_memory(ax, forecasts: pd.DataFrame) -> None:
    whole = _forecasts_of(forecasts, "eight rows", 80)
    parts = _forecasts_of(forecasts, "7b", 80)
    for rows, label, look in (
        (whole, "8 rows in one pass", WHOLE),
        (parts, "parts of 8,704 tokens", PARTS),
    ):
        ax.plot(rows["response_tokens"], rows["training_gib"], label=label, **look)
    ax.set_xscale("log", base=2)
    ax.set_xticks([512, 2048, 8192], ["512", "2k", "8k"])
    ax.set(xlabel="tokens of a response\n(7B, simulated)")
    ax.set(ylabel="GiB", ylim=(0, None))


def _measured_memory(ax, bench: pd.DataFrame) -> None:
    mixed = bench[bench["lengths"] == "mixed"]
    for way, label, look in (
        ("trl", "one pass", WHOLE),
        ("parts", "parts of 4,096 tokens", PARTS),
    ):
        rows = mixed[mixed["way"] == way]
        ax.plot(rows["mean_tokens"], rows["peak_mib"], label=label, **look)
    ax.set(xlabel="mean tokens of a response\n(tiny, mixed lengths, measured)")
    ax.set(ylabel="MiB", ylim=(0, None))


def _time_of_parts(ax, bench: pd.DataFrame) -> None:
    seconds = bench.pivot(
        index=["lengths", "mean_tokens"], columns="way", values="seconds"
    )
    ratio = seconds["parts"] / seconds["trl"]
    for kind, shift, color, hatch in (
        ("equal", -0.2, PALE_BLUE, "//"),
        ("mixed", 0.2, BLUE, ""),
    ):
        x = [i + shift for i in range(len(ratio[kind]))]
        look = {"color": color, "hatch": hatch, "edgecolor": "white"}
        ax.bar(x, ratio[kind], 0.38, label=f"{kind} lengths", **look)
    ax.axhline(1, color=GREY, linewidth=1)
    mean_tokens = ratio["equal"].index
    ax.set_xticks(range(len(mean_tokens)), mean_tokens)
    ax.set(xlabel="mean tokens of a response\n(tiny, measured)")
    ax.set(ylabel="time, one pass = 1", ylim=(0, 1.4))


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
    figures |= figures_of_decisions(runs)
    drawn = [save_fig(figure, REPO, name) for name, figure in figures.items()]
    for name, svg in diagrams.drawn().items():
        drawn.append(REPO / "figures" / f"{name}.svg")
        write_text(drawn[-1], svg)
    return drawn


def figures_of_decisions(runs: list[Path]) -> dict:
    """The mean over the runs that kept their decisions; none if no run has."""
    tables = [run / "decisions.csv" for run in runs]
    kept = [pd.read_csv(table) for table in tables if table.exists()]
    if not kept:
        return {}
    groups = pd.concat(kept).groupby(["type", "searches", "when"], as_index=False)
    figures = {"decisions": decisions(groups[list(CHOICES)].mean())}
    for run in runs:
        if (run / "decisions.jsonl").exists():
            moved = pd.read_json(run / "decisions.jsonl", lines=True)
            log = pd.read_csv(run / "train_log.csv")
            figures["decision_curves"] = decision_curves(moved, log)
            break
    return figures


def _read_reference(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / f"{name}.csv")


def _exact_match_of(runs: list[Path]) -> pd.DataFrame:
    """The mean over runs, with the widest interval that any of them gave."""
    scores = pd.concat(pd.read_csv(run / "scores.csv") for run in runs)
    exact_match = scores[scores["metric"] == "em"]
    groups = exact_match.groupby(["type", "when"], sort=False, as_index=False)
    return groups.agg({"mean": "mean", "low": "min", "high": "max"})
