"""Figures: every figure has its labels, and its bars and lines are at their values."""

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kr1_utils import plots
from kr1_utils.files import REPO
from kr1_utils.trainer import LOG_COLUMNS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def log():
    """Thirty steps of a train_log.csv."""
    table = pd.DataFrame({column: np.arange(30) / 7 for column in LOG_COLUMNS})
    table["step"] = range(1, 31)
    return table


def test_six_panels_draw_the_log_columns_of_the_trainer(log):
    assert set(plots.PANELS) <= set(LOG_COLUMNS)
    figure = plots.six_panels({"one": log, "other": log})
    assert [ax.get_ylabel() for ax in figure.axes] == list(plots.PANELS.values())
    assert [ax.get_xlabel() for ax in figure.axes[3:]] == ["GRPO step"] * 3
    # Raw and smoothed, of each run.
    assert [len(ax.lines) for ax in figure.axes] == [4] * 6


def test_two_runs_differ_in_more_than_colour(log):
    lines = plots.six_panels({"one": log, "other": log}).axes[0].lines
    smooth = [line for line in lines if line.get_alpha() is None]
    assert len({line.get_linestyle() for line in smooth}) == 2


def test_smoothed_curve_is_the_running_mean():
    _, ax = plt.subplots()
    plots.curve(ax, range(5), [0, 3, 0, 3, 0], window=3)
    raw, smooth = (line.get_ydata().tolist() for line in ax.lines)
    assert raw == [0, 3, 0, 3, 0]
    assert smooth == [1.5, 1, 2, 1, 1.5]


def test_lengths_stack_sampled_and_retrieved_tokens(log):
    ax = plots.lengths(log).axes[0]
    top = ax.collections[1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(
        (log["completion_length"] + log["retrieved_length"]).max()
    )
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_before_after_puts_each_bar_at_its_value():
    rows = pd.DataFrame(
        [
            {"type": t, "when": w, "mean": m, "low": m - 0.1, "high": m + 0.1}
            for t, w, m in [
                ("a_b", "after", 0.7),
                ("c", "after", 0.8),
                ("c", "before", 0.3),
                ("a_b", "before", 0.2),
            ]
        ]
    )
    ax = plots.before_after(rows).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a\nb", "c"]
    assert [round(p.get_height(), 6) for p in ax.patches] == [0.2, 0.3, 0.7, 0.8]


def test_bench_puts_each_way_beside_one_at_a_time():
    rows = pd.DataFrame(
        [
            {
                "profile": p,
                "questions": 8,
                "way": w,
                "questions_per_second": q,
                "floor_ratio": f,
            }
            for p, w, q, f in [
                ("a", "one_by_one", 2, 2.0),
                ("a", "batched", 8, 1.5),
                ("b", "one_by_one", 1, 2.5),
                ("b", "vllm", 9, 1.1),
            ]
        ]
    )
    left, right = plots.bench_agent(rows).axes
    assert [p.get_height() for p in left.patches] == [1, 1, 4, 9]
    assert [p.get_height() for p in right.patches] == [2.0, 2.5, 1.5, 1.1]
    assert [t.get_text() for t in left.get_xticklabels()] == [
        "a\n8 questions",
        "b\n8 questions",
    ]


def test_stages_have_a_panel_a_metric_and_a_bar_a_stage():
    rows = [
        {"stage": s, "metric": m, "mean": 0.5, "low": 0.4, "high": 0.7}
        for m in ("EM", "F1")
        for s in ("before", "cold start", "GRPO")
    ]
    figure = plots.stages(pd.DataFrame(rows))
    assert [ax.get_title() for ax in figure.axes] == ["EM", "F1"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [
        "before",
        "cold\nstart",
        "GRPO",
    ]
    assert all(len(ax.containers[-1].patches) == 3 for ax in figure.axes)


def test_saved_figure_is_a_picture_in_its_folder(tmp_path, log):
    plots.use_style()
    file = plots.save_fig(plots.lengths(log), tmp_path, "05_lengths")
    assert file == tmp_path / "figures" / "05_lengths.png"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_micro_batches_puts_parts_beside_one_pass():
    forecasts = pd.DataFrame(
        [("eight rows", 80, 512, 20.0), ("7b", 80, 512, 10.0), ("7b", 40, 512, 9.0)],
        columns=["run", "gpu_gib", "response_tokens", "training_gib"],
    )
    bench = pd.DataFrame(
        [
            ("equal", 40, "trl", 2.0, 300),
            ("equal", 40, "parts", 1.0, 200),
            ("mixed", 40, "trl", 8.0, 900),
            ("mixed", 40, "parts", 2.0, 100),
        ],
        columns=["lengths", "mean_tokens", "way", "seconds", "peak_mib"],
    )
    simulated, measured, time = plots.micro_batches(forecasts, bench).axes
    assert [line.get_ydata().tolist() for line in simulated.lines] == [[20], [10]]
    assert [line.get_ydata().tolist() for line in measured.lines] == [[900], [100]]
    assert [bar.get_height() for bar in time.patches] == [0.5, 0.25]


def test_memory_has_a_panel_a_run_with_the_size_of_its_gpu():
    runs = [("original", 40), ("7b-4bit", 24), ("7b", 40), ("7b", 80)]
    forecasts = pd.DataFrame(
        [(run, gpu, 512, gpu / 2, gpu / 4) for run, gpu in runs],
        columns=[
            "run",
            "gpu_gib",
            "response_tokens",
            "training_gib",
            "sampling_gib",
        ],
    )
    axes = plots.memory_over_length(forecasts).axes
    assert [ax.get_title() for ax in axes] == [f"{run}, {gpu} GiB" for run, gpu in runs]
    for ax, (_, gpu) in zip(axes, runs):
        training, sampling, limit = (line.get_ydata()[0] for line in ax.lines)
        assert (training, sampling, limit) == (gpu / 2, gpu / 4, gpu)


def test_shipped_figures_are_what_the_reference_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "REPO", tmp_path)
    with plt.rc_context():
        # Another test may have set a style.
        plt.rcdefaults()
        drawn = plots.draw_figures()
    assert {file.name for file in drawn} == {
        file.name for file in (REPO / "figures").glob("*.png")
    }
    for file in drawn:
        image = matplotlib.image.imread(file)
        shipped = matplotlib.image.imread(REPO / "figures" / file.name)
        assert image.shape == shipped.shape
        # Fonts differ a little from machine to machine.
        assert np.abs(image - shipped).mean() < 0.02, file.name


def test_figures_need_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "REFERENCE", tmp_path)
    with pytest.raises(FileNotFoundError, match="data/reference"):
        plots.draw_figures()
