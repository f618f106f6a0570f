"""Owns how things look: figures drawn from tables and CSVs, trajectories as HTML without scripts."""

from __future__ import annotations

import html
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

BLUE, ORANGE, GREY = "#1f5f99", "#d9822b", "#8a8a8a"
PANELS = {  # the six panels of the original figure: column of train_log.csv -> label of its axis
    "format_reward": "format reward (−1 to 1)", "accuracy_reward": "accuracy reward (0 to 1)",
    "reward": "reward (sum)", "loss": "loss", "learning_rate": "learning rate",
    "completion_length": "sampled tokens a trajectory",
}

def use_style() -> None:
    """One look for all figures: thin axes, readable in grey."""
    plt.rcParams.update({
        "figure.dpi": 72, "savefig.dpi": 120, "figure.constrained_layout.use": True,
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.25, "axes.titlesize": 11, "legend.frameon": False,
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREY, "#4d9a57", "#8b5a9b"],
                                      linestyle=["-", "--", "-.", ":", "-"]),
    })

def save_fig(figure, folder: str | Path, name: str) -> Path:
    """Write `figure` as PNG into `folder`/figures and return where."""
    file = Path(folder) / "figures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file

def curve(axes, x, y, label: str = "", color: str = BLUE, style: str = "-", window: int = 0) -> None:
    """The raw curve faint, its running mean bold."""
    y = pd.Series(list(y), dtype=float)
    window = window or max(1, len(y) // 12)
    axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(x, y.rolling(window, min_periods=1, center=True).mean(), color=color, linewidth=2,
              linestyle=style, label=label or None)

def six_panels(logs: dict[str, pd.DataFrame], columns: dict[str, str] = PANELS):
    """The panels of the original figure, one curve a run.

    Args:
        logs: label -> train_log.csv as a table.
    """
    figure, axes = plt.subplots(2, 3, figsize=(8, 4), sharex=True)
    styles = [(BLUE, "-"), (ORANGE, "--"), (GREY, "-."), ("#4d9a57", ":")]
    for ax, (column, label) in zip(axes.flat, columns.items()):
        for (name, log), (color, style) in zip(logs.items(), styles):
            curve(ax, log["step"], log[column], name, color, style)
        ax.set_ylabel(label, fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("GRPO step")
    if len(logs) > 1:
        axes.flat[0].legend(fontsize=8)
    return figure

def lengths(log: pd.DataFrame):
    """Response length over training, split into what was sampled and what was retrieved."""
    figure, ax = plt.subplots(figsize=(7, 3.5))
    ax.stackplot(log["step"], log["completion_length"], log["retrieved_length"],
                 labels=["sampled by the model (mask 1)", "retrieved and headers (mask 0)"],
                 colors=[BLUE, "#c9d6e3"])
    ax.set(xlabel="GRPO step", ylabel="tokens a trajectory", ylim=(0, None))
    ax.legend(loc="upper left", fontsize=9)
    return figure

def memory_over_length(forecasts: pd.DataFrame):
    """GPU memory over the length of a response: the original's run, and ours, each below its GPU's size.

    Args:
        forecasts: columns `run`, `gpu_gib`, `response_tokens`, `training_gib`, `sampling_gib`.
    """
    shown = [("original", 40), ("7b-4bit", 24), ("7b", 40), ("7b", 80)]
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.6), sharex=True, sharey=True)
    for ax, (run, gpu) in zip(axes, shown):
        part = forecasts[(forecasts["run"] == run) & (forecasts["gpu_gib"] == gpu)]
        ax.plot(part["response_tokens"], part["training_gib"], color=BLUE, label="a training step")
        ax.plot(part["response_tokens"], part["sampling_gib"], ":", color=ORANGE, lw=2, label="sampling")
        ax.axhline(gpu, color="black", linewidth=0.8, linestyle="--", label="the GPU")
        ax.set_xscale("log", base=2)
        ax.set_xticks([512, 2048, 8192], ["512", "2k", "8k"])
        ax.set(title=f"{run}, {gpu} GiB", ylim=(0, 85))
    figure.supxlabel("tokens of one response", fontsize=9)
    axes[0].set_ylabel("GiB (simulated)")
    axes[1].legend(fontsize=8)
    return figure

def memory_timeline(timeline: list[tuple[str, dict]]):
    """One training step from left to right: what is alive in GPU memory, stacked by what it is for.

    Args:
        timeline: [(phase, {label: bytes})] of `memory.forecast`.
    """
    table = pd.DataFrame([live for _, live in timeline]).fillna(0.0) / 2**20
    table = table.loc[:, table.max() > 0.001 * table.to_numpy().max()]
    figure, ax = plt.subplots(figsize=(7, 2.8))
    colors = plt.get_cmap("Blues")([0.2 + 0.75 * i / len(table.columns) for i in range(len(table.columns))])
    ax.stackplot(range(len(table)), table.T, labels=table.columns, colors=colors, edgecolor="white", lw=0.3)
    phases = [phase for phase, _ in timeline]
    for phase in dict.fromkeys(phases):
        ax.axvline(phases.index(phase), color="black", linewidth=0.6, linestyle=":")
        ax.text(phases.index(phase), ax.get_ylim()[1], f" {phase}", fontsize=8, va="top")
    ax.set(ylabel="MiB alive (simulated)", xticks=[], xlabel="one training step →")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure

def before_after(rows: pd.DataFrame, label: str = "exact match"):
    """Grouped bars with 95 % intervals.

    Args:
        rows: columns `type`, `when`, `mean`, `low`, `high`; `when` is "before" or "after".
    """
    figure, ax = plt.subplots(figsize=(8, 3.6))
    types = list(dict.fromkeys(rows["type"]))
    for when, shift, color, hatch in (("before", -0.2, "#c9d6e3", "//"), ("after", 0.2, BLUE, "")):
        part = rows[rows["when"] == when].set_index("type").loc[types]
        x = [i + shift for i in range(len(types))]
        error = [part["mean"] - part["low"], part["high"] - part["mean"]]
        ax.bar(x, part["mean"], 0.38, label=when, color=color, hatch=hatch, edgecolor="white",
               yerr=error, error_kw={"elinewidth": 1, "capsize": 2})
    ax.set_xticks(range(len(types)), [t.replace("_", "\n") for t in types])
    ax.set(ylabel=label, ylim=(0, 1))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure

def table_html(rows, header: tuple[str, ...] = ()) -> str:
    """A plain HTML table of (text, text, …) rows."""
    head = "".join(f"<th style='text-align:left'>{html.escape(str(c))}</th>" for c in header)
    body = "".join("<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(c))}</td>" for c in r)
                   + "</tr>" for r in rows)
    return f"<table>{'<tr>' + head + '</tr>' if header else ''}{body}</table>"

_COLORS = {"prompt": "#eeeeee", "model": "#cfe3f7", "appended": "#fbe3c4"}

def _box(text: str, kind: str, title: str) -> str:
    style = (f"background:{_COLORS[kind]};color:#111;padding:4px 8px;margin:2px 0;border-radius:4px;"
             "white-space:pre-wrap;font-family:monospace;font-size:12px")
    return f"<div style='{style}' title='{title}'><b>{title}</b>  {html.escape(text)}</div>"

def conversation_html(trajectory, tokenizer) -> str:
    """A trajectory in boxes: grey the prompt, blue what the model sampled, orange what was appended."""
    parts = [_box(tokenizer.decode(trajectory.prompt_ids), "prompt", "prompt")]
    ids, mask = trajectory.completion_ids, trajectory.loss_mask
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or mask[i] != mask[start]:
            kind, title = ("model", "model, mask 1") if mask[start] else ("appended", "appended, mask 0")
            parts.append(_box(tokenizer.decode(ids[start:i]), kind, title))
            start = i
    return "".join(parts)

def mask_html(ids: list[int], mask: list[int], tokenizer) -> str:
    """Token by token: blue is trained on (mask 1), orange is not (mask 0)."""
    spans = []
    for i, m in zip(ids, mask, strict=True):
        text = html.escape(tokenizer.decode([i])).replace("\n", "↵")
        color = _COLORS["model" if m else "appended"]
        spans.append(f"<span style='background:{color};color:#111;border:1px solid #fff;padding:1px 2px' "
                     f"title='id {i}, mask {m}'>{text}</span>")
    return f"<div style='font-family:monospace;font-size:12px;line-height:1.9'>{''.join(spans)}</div>"

def side_by_side_html(left: str, right: str, titles: tuple[str, str]) -> str:
    """Two pieces of HTML in two columns."""
    cells = "".join(f"<td style='vertical-align:top;text-align:left;width:50%'><b>{html.escape(t)}</b>"
                    f"{part}</td>" for t, part in zip(titles, (left, right)))
    return f"<table style='width:100%'><tr>{cells}</tr></table>"
