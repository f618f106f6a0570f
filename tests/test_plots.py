"""Pictures: every figure has its labels, and no text gets lost or becomes markup."""

import html
import re
import runpy
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers import ANSWER, SEARCH, Shelf

from kr1_utils import plots, views
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits
from kr1_utils.trainer import LOG_COLUMNS

draw = runpy.run_path(str(REPO / "figures" / "draw.py"))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def log():
    return pd.DataFrame(
        {c: [i + 1 if c == "step" else i / 7 for i in range(30)] for c in LOG_COLUMNS}
    )


@pytest.fixture
def trajectory(tokenizer):
    engine = ScriptedEngine(tokenizer, {"A <b>?": [SEARCH, ANSWER]})
    return rollout(
        engine,
        tokenizer,
        Shelf(),
        [{"question": "A <b>?"}],
        Limits(2, 2, 60, 120, 500),
        "S",
    )[0]


def text_of(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_six_panels_draw_the_log_columns_of_the_trainer(log):
    assert set(draw["PANELS"]) <= set(LOG_COLUMNS)
    figure = draw["six_panels"]({"one": log, "other": log})
    assert [ax.get_ylabel() for ax in figure.axes] == list(draw["PANELS"].values())
    assert [ax.get_xlabel() for ax in figure.axes[3:]] == ["GRPO step"] * 3
    assert all(
        len(ax.lines) == 4 for ax in figure.axes
    )  # raw and smoothed, of each run


def test_two_runs_differ_in_more_than_colour(log):
    lines = draw["six_panels"]({"one": log, "other": log}).axes[0].lines
    smooth = [line for line in lines if line.get_alpha() is None]
    assert len({line.get_linestyle() for line in smooth}) == 2


def test_smoothed_curve_is_the_running_mean():
    _, ax = plt.subplots()
    plots.curve(ax, range(5), [0, 3, 0, 3, 0], window=3)
    raw, smooth = (line.get_ydata().tolist() for line in ax.lines)
    assert raw == [0, 3, 0, 3, 0] and smooth == [1.5, 1, 2, 1, 1.5]


def test_lengths_stack_sampled_and_retrieved_tokens(log):
    ax = draw["lengths"](log).axes[0]
    top = ax.collections[1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(
        (log["completion_length"] + log["retrieved_length"]).max()
    )
    assert ax.get_xlabel() and ax.get_ylabel()


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
    ax = draw["before_after"](rows).axes[0]
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
    left, right = draw["bench_agent"](rows).axes
    assert [p.get_height() for p in left.patches] == [1, 1, 4, 9]
    assert [p.get_height() for p in right.patches] == [2.0, 2.5, 1.5, 1.1]
    assert [t.get_text() for t in left.get_xticklabels()] == [
        "a\n8 questions",
        "b\n8 questions",
    ]


def test_saved_figure_is_a_picture_in_its_folder(tmp_path, log):
    plots.use_style()
    file = plots.save_fig(draw["lengths"](log), tmp_path, "05_lengths")
    assert file == tmp_path / "figures" / "05_lengths.png"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_table_escapes_what_it_shows():
    markup = views.table_html([("<b>", 1), ("x", "&")], ("setting", "<i>"))
    assert "<b>" not in markup and "<i>" not in markup
    assert text_of(markup) == "setting<i><b>1x&"


def test_conversation_shows_every_token_once_in_order(trajectory, tokenizer):
    markup = views.conversation_html(trajectory, tokenizer)
    shown = re.sub(r"<b>[^<]*</b>  ", "", markup)
    assert text_of(shown) == tokenizer.decode(
        trajectory.prompt_ids + trajectory.completion_ids
    )
    assert re.findall(r"<b>([^<]*)</b>", markup) == [
        "prompt",
        "model, mask 1",
        "appended, mask 0",
        "model, mask 1",
        "appended, mask 0",
    ]
    assert "<script" not in markup


def under_the_microscope(trajectory, tokenizer, **more):
    """(writer, all that hovering tells, the token's text) of each token."""
    markup = views.microscope_html(trajectory, tokenizer, **more)
    assert "<script" not in markup
    return [
        (told.split(", ")[0], told, html.unescape(text))
        for told, text in re.findall(r"title='([^']*)'>([^<]*)</", markup)
    ]


def test_microscope_shows_every_token_once_with_its_mask(trajectory, tokenizer):
    tokens = under_the_microscope(trajectory, tokenizer)
    masks = [0] * len(trajectory.prompt_ids) + trajectory.loss_mask
    for (writer, told, text), token, mask in zip(
        tokens, trajectory.prompt_ids + trajectory.completion_ids, masks, strict=True
    ):
        assert f"id {token}, mask {mask}" in told and (writer == "model") == bool(mask)
        assert text == tokenizer.decode([token]).replace("\n", "↵")


def test_microscope_tells_headers_from_observations(trajectory, tokenizer, chat):
    tokens = under_the_microscope(trajectory, tokenizer)
    said = {
        writer: [t.replace("↵", "\n") for w, _, t in tokens if w == writer]
        for writer, *_ in tokens
    }
    assert "".join(said["observation"]).replace(" ", "").startswith("<context>")
    assert "".join(said["observation"]).endswith("</context>")
    end = tokenizer.decode([chat.end_of_turn])
    around = tokenizer(
        f"{end}{chat.before_user}{chat.after_user}{end}", add_special_tokens=False
    )
    assert said["header"] == [tokenizer.decode([i]) for i in around["input_ids"]]


def test_microscope_shows_a_mask_that_is_wrong(trajectory, tokenizer):
    at = trajectory.loss_mask.index(0) + 5  # of an observation
    wrong = replace(trajectory, loss_mask=[*trajectory.loss_mask])
    wrong.loss_mask[at] = 1
    writer, told, _ = under_the_microscope(wrong, tokenizer, advantage=1.0)[
        len(wrong.prompt_ids) + at
    ]
    assert writer == "observation" and "mask 1" in told and "advantage" in told
    lines = [
        views.microscope_html(t, tokenizer).count("<u ") for t in (trajectory, wrong)
    ]
    assert lines[1] == lines[0] + 1


@pytest.mark.parametrize(
    "mistake",
    [
        lambda mask: [1 - m for m in mask],
        lambda mask: [1] * len(mask),
        lambda mask: [0] * len(mask),
    ],
)
def test_microscope_knows_who_wrote_a_token_whatever_the_mask_says(
    trajectory, tokenizer, chat, mistake
):
    wrong = replace(trajectory, loss_mask=mistake(trajectory.loss_mask))
    tokens = zip(
        under_the_microscope(trajectory, tokenizer),
        under_the_microscope(wrong, tokenizer),
        trajectory.prompt_ids + trajectory.completion_ids,
        strict=True,
    )
    assert all(
        one[0] == other[0] or token == chat.end_of_turn for one, other, token in tokens
    )


def test_microscope_reads_a_conversation_with_silent_turns(tokenizer, chat):
    engine = ScriptedEngine(tokenizer, {"Q?": ["", SEARCH]})
    quiet = rollout(
        engine,
        tokenizer,
        Shelf(),
        [{"question": "Q?"}],
        Limits(3, 2, 60, 120, 700),
        "S",
    )[0]
    writers = [w for w, *_ in under_the_microscope(quiet, tokenizer)]
    kept = [w for w, before in zip(writers, [None, *writers]) if w != before]
    asked = ["header", "observation"] * 2
    assert kept == [
        "prompt",
        "header",
        "observation",
        "header",
        "model",
        *asked,
        "header",
    ]


@pytest.mark.parametrize(
    "fake",
    ["<|im_end|>", "<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>user\nHello"],
)
def test_microscope_reads_a_turn_that_spells_the_template(tokenizer, chat, fake):
    """No engine goes on after the end of a turn, but a file of trajectories may hold
    anything."""
    engine = ScriptedEngine(
        tokenizer, {"Q?": [f"<think> {fake}</think>{SEARCH}", f"<think> {fake}"]}
    )
    t = rollout(
        engine,
        tokenizer,
        Shelf(),
        [{"question": "Q?"}],
        Limits(2, 2, 60, 120, 700),
        "S",
    )[0]
    assert t.completion_ids.count(chat.end_of_turn) > 2
    tokens = under_the_microscope(t, tokenizer)
    assert len(tokens) == len(t.prompt_ids + t.completion_ids)
    if fake == "<|im_end|>":  # no message follows: still the model's turn
        assert all(
            (w == "model") == bool(m)
            for (w, *_), m in zip(tokens[len(t.prompt_ids) :], t.loss_mask)
        )


def test_microscope_adds_the_loss_up(trajectory, tokenizer):
    n = trajectory.sampled_length
    tokens = under_the_microscope(
        trajectory,
        tokenizer,
        advantage=1.5,
        tokens_in_batch=n,
        logprobs=[-0.5] * len(trajectory.completion_ids),
    )
    shares = [
        float(re.search(r"adds (\S+) to the loss", told).group(1))
        for writer, told, _ in tokens
        if writer == "model"
    ]
    assert len(shares) == n and sum(shares) == pytest.approx(
        -1.5, rel=0.05
    )  # two digits are shown
    assert all(
        ("log-probability -0.500" in told) == (writer == "model")
        for writer, told, _ in tokens
    )


def test_side_by_side_shows_both_with_their_titles():
    markup = views.side_by_side_html(
        "<p>left</p>", "<p>right</p>", ("before <", "after")
    )
    assert text_of(markup) == "before <leftafterright"


def test_stages_have_a_panel_a_metric_and_a_bar_a_stage():
    rows = [
        {"stage": s, "metric": m, "mean": 0.5, "low": 0.4, "high": 0.7}
        for m in ("EM", "F1")
        for s in ("before", "cold start", "GRPO")
    ]
    figure = draw["stages"](pd.DataFrame(rows))
    assert [ax.get_title() for ax in figure.axes] == ["EM", "F1"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [
        "before",
        "cold\nstart",
        "GRPO",
    ]
    assert all(len(ax.containers[-1].patches) == 3 for ax in figure.axes)
