"""Figures: every figure has its labels, and its bars and lines are at their values."""

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

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
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "before",
        "cold start",
        "GRPO",
    ]
    assert all(len(ax.containers[-1].patches) == 3 for ax in figure.axes)


def fork(kind, searches, when, answer, search, give_up):
    return {
        "type": kind,
        "searches": searches,
        "when": when,
        "answer": answer,
        "search": search,
        "give up": give_up,
    }


@pytest.fixture
def forks():
    """Decisions as notebook 04 keeps them: types in the order of the alphabet."""
    return pd.DataFrame(
        [
            fork("compositional", 1, "before", 0.1, 0.3, 0.6),
            fork("compositional", 0, "before", 0.2, 0.7, 0.1),
            fork("compositional", 2, "before", 0.5, 0.3, 0.1),
            fork("known", 0, "before", 0.4, 0.5, 0.1),
            fork("my_own", 0, "before", 0.0, 1.0, 0.0),
            fork("compositional", 0, "after", 0.0, 0.9, 0.1),
            fork("compositional", 1, "after", 0.1, 0.8, 0.1),
            fork("compositional", 2, "after", 0.95, 0.05, 0.0),
            fork("known", 0, "after", 0.75, 0.25, 0.0),
            fork("my_own", 0, "after", 0.5, 0.5, 0.0),
        ]
    )


def test_decisions_stack_each_choice_at_its_fork_before_beside_after(forks):
    before, after = plots.decisions(forks).axes
    assert "before" in before.get_title("left")
    assert "after" in after.get_title("left")
    # One container per choice; the forks from the top, what is known first.
    assert [bars.get_label() for bars in before.containers] == list(plots.CHOICES)
    for ax, answers, searched in (
        (before, [0.4, 0.2, 0.1, 0.5, 0.0], [0.5, 0.7, 0.3, 0.3, 1.0]),
        (after, [0.75, 0.0, 0.1, 0.95, 0.5], [0.25, 0.9, 0.8, 0.05, 0.5]),
    ):
        answer, search, give_up = ax.containers
        assert [bar.get_width() for bar in answer] == pytest.approx(answers)
        assert [bar.get_width() for bar in search] == pytest.approx(searched)
        assert [bar.get_x() for bar in search] == pytest.approx(answers)
        for below, bar in zip(search, give_up):
            assert bar.get_x() == pytest.approx(below.get_x() + below.get_width())


def test_decisions_name_the_right_choice_and_its_probability(forks):
    before, after = plots.decisions(forks).axes
    assert [t.get_text() for t in before.get_yticklabels()] == [
        "0 → answer",
        "0 → search",
        "1 → search",
        "2 → answer",
        "0 → answer",
    ]
    said = [t.get_text() for t in after.texts if t.get_text()[0].isdigit()]
    assert said == ["0.75", "0.90", "0.80", "0.95", "0.50"]
    heights = [bar.get_y() for bar in before.containers[0]]
    assert heights == sorted(heights)
    bottom, top = before.get_ylim()
    assert bottom > heights[-1] and heights[0] > top
    names = " ".join(t.get_text() for t in before.texts).replace("\n", " ")
    assert all(name in names for name in ("common knowledge", "my own"))


def test_choices_differ_in_more_than_colour(forks):
    before, _ = plots.decisions(forks).axes
    hatches = [bars.patches[0].get_hatch() for bars in before.containers]
    assert len(set(hatches)) == len(plots.CHOICES)


def test_decision_curves_are_the_probabilities_over_the_steps(log):
    rows = [
        {"step": step, **fork(kind, searches, "", step / 100, 1 - step / 100, 0.0)}
        for step in (0, 5, 10)
        for _, _, lines in plots.CURVES
        for kind, searches in lines.values()
    ]
    moved = pd.DataFrame(rows).drop_duplicates()
    reward, *others = plots.decision_curves(moved, log).axes
    assert reward.lines[0].get_ydata().tolist() == log["accuracy_reward"].tolist()
    for ax, (title, choice, lines) in zip(others, plots.CURVES, strict=True):
        assert ax.get_title() == title
        assert [line.get_label() for line in ax.lines] == list(lines)
        assert len({line.get_linestyle() for line in ax.lines}) == len(lines)
        wanted = [0, 0.05, 0.1] if choice == "answer" else [1, 0.95, 0.9]
        for line in ax.lines:
            assert line.get_xdata().tolist() == [0, 5, 10]
            assert line.get_ydata().tolist() == pytest.approx(wanted)


def test_decision_curves_leave_out_what_was_not_asked(log):
    moved = pd.DataFrame([{"step": 0, **fork("single", 1, "", 0.9, 0.1, 0.0)}])
    _, know, stop, go_on = plots.decision_curves(moved, log).axes
    assert [len(ax.lines) for ax in (know, stop, go_on)] == [0, 1, 0]


def test_files_have_two_pixels_for_each_that_is_shown(tmp_path, log):
    with plt.rc_context():
        plots.use_style()
        file = plots.save_fig(plots.lengths(log), tmp_path, "lengths")
    height, width, _ = matplotlib.image.imread(file).shape
    assert width == 2 * 96 * plots.WIDTH
    assert height < width


def test_no_text_of_a_figure_is_smaller_than_nine_points(log, forks):
    with plt.rc_context():
        plots.use_style()
        figures = [
            plots.six_panels({"one": log, "other": log}),
            plots.lengths(log),
            plots.decisions(forks),
        ]
        for figure in figures:
            assert figure.get_figwidth() <= plots.WIDTH
            assert min(t.get_fontsize() for t in figure.findobj(Text)) >= 9


def test_decisions_that_runs_kept_are_drawn_as_their_mean(
    tmp_path, monkeypatch, log, forks
):
    runs = [tmp_path / "seed1", tmp_path / "seed2"]
    for run, shift in zip(runs, (0.0, 0.2)):
        run.mkdir()
        table = forks.assign(answer=forks["answer"] * (1 - shift))
        table.to_csv(run / "decisions.csv", index=False)
        log.to_csv(run / "train_log.csv", index=False)
    moved = forks.assign(step=0).drop(columns="when")
    moved.to_json(runs[0] / "decisions.jsonl", orient="records", lines=True)
    figures = plots.figures_of_decisions(runs)
    assert set(figures) == {"decisions", "decision_curves"}
    answer = figures["decisions"].axes[0].containers[0]
    assert answer[0].get_width() == pytest.approx(0.4 * 0.9)
    assert plots.figures_of_decisions([tmp_path]) == {}


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
        file.name for file in (REPO / "figures").iterdir()
    }
    for file in drawn:
        if file.suffix == ".svg":
            shipped = REPO / "figures" / file.name
            assert file.read_text("utf-8") == shipped.read_text("utf-8")
            continue
        image = matplotlib.image.imread(file)
        shipped = matplotlib.image.imread(REPO / "figures" / file.name)
        assert image.shape == shipped.shape
        # Fonts differ a little from machine to machine.
        assert np.abs(image - shipped).mean() < 0.02, file.name


def test_figures_need_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "REFERENCE", tmp_path)
    with pytest.raises(FileNotFoundError, match="data/reference"):
        plots.draw_figures()
