"""Stills of token views: each token is drawn, in its colour, within the page."""

import io
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from helpers import ANSWER, SEARCH, Shelf
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from kr1_utils import plots, stills, views
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.profiles import Limits


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def trajectory(tokenizer):
    engine = ScriptedEngine(tokenizer, {"A <b>?": [SEARCH, ANSWER]})
    limits = Limits(2, 2, 60, 120, 700)
    return rollout(engine, tokenizer, Shelf(), [{"question": "A <b>?"}], limits, "S")[0]


def drawn(figure):
    """(left edge, text) of what is drawn, line by line."""
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    texts.sort(key=lambda text: (text.get_position()[1], text.get_position()[0]))
    return [(text.get_position()[0], text.get_text()) for text in texts]


def boxes(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_conversation_is_drawn_in_full_under_the_names_of_its_writers(
    trajectory, tokenizer
):
    figure = stills.conversation_still(trajectory, tokenizer)
    runs = views.runs_of_conversation(trajectory, tokenizer)
    wanted = []
    for kind, text in runs:
        wanted += [*views.TITLES[kind].split(), *text.split()]
    assert " ".join(text for _, text in drawn(figure)).split() == wanted
    colors = {to_hex(box.get_facecolor()) for box in boxes(figure)}
    assert colors == {views.COLORS[kind] for kind, _ in runs}


@pytest.mark.filterwarnings("error")
def test_the_style_of_the_notebooks_leaves_a_still_as_it_is(trajectory, tokenizer):
    with plt.rc_context():
        plots.use_style()
        figure = stills.conversation_still(trajectory, tokenizer)
        figure.savefig(io.BytesIO())
    [ax] = figure.axes
    assert ax.get_position().bounds == (0, 0, 1, 1)


def test_microscope_draws_each_token_in_its_colour_and_underlines_mask_1(
    trajectory, tokenizer
):
    figure = stills.microscope_still(trajectory, tokenizer)
    tokens = views.read_tokens(trajectory, tokenizer)
    assert [to_hex(box.get_facecolor()) for box in boxes(figure)] == [
        views.COLORS[token.writer] for token in tokens
    ]
    assert len(figure.axes[0].lines) == trajectory.sampled_length


def test_microscope_by_probability_says_how_likely_a_doubtful_token_was(
    trajectory, tokenizer
):
    at = trajectory.loss_mask.index(1)
    logprobs = [0.0] * len(trajectory.completion_ids)
    logprobs[at] = -1.0
    figure = stills.microscope_still(trajectory, tokenizer, logprobs, "probability")
    tokens = views.read_tokens(trajectory, tokenizer, logprobs)
    doubtful = tokens[len(trajectory.prompt_ids) + at]
    said = [text for _, text in drawn(figure)]
    assert f"{doubtful.text} 0.37" in said
    assert doubtful.color in [to_hex(box.get_facecolor()) for box in boxes(figure)]


def test_microscope_refuses_colours_that_it_cannot_give(trajectory, tokenizer):
    with pytest.raises(ValueError, match="'mood'"):
        stills.microscope_still(trajectory, tokenizer, color_by="mood")
    silent = replace(trajectory, logprobs=None)
    with pytest.raises(ValueError, match="log-probabilities"):
        stills.microscope_still(silent, tokenizer, color_by="probability")


def test_nothing_leaves_the_page_or_lies_on_another(tokenizer, trajectory):
    long = "x" * (3 * stills.COLUMNS + 1)
    engine = ScriptedEngine(tokenizer, {long: [SEARCH, ANSWER]})
    limits = Limits(2, 2, 60, 120, 700)
    made = rollout(engine, tokenizer, Shelf(), [{"question": long}], limits, long)[0]
    for figure in (
        stills.conversation_still(made, tokenizer, "a title"),
        stills.microscope_still(made, tokenizer),
    ):
        width, height = figure.get_size_inches() * 72
        seen = set()
        for box in boxes(figure):
            left, right = box.get_x(), box.get_x() + box.get_width()
            assert left >= 0 and right <= width
            assert box.get_y() >= 0 and box.get_y() + box.get_height() <= height
            corner = round(left), round(box.get_y())
            assert corner not in seen
            seen.add(corner)


@pytest.mark.parametrize("text", ["a $x^$ b", "\\frac{", "日本 \U0001f600", "a\tb"])
def test_any_text_can_be_drawn(tokenizer, trajectory, tmp_path, text, recwarn):
    pieces = [stills.Piece(text, "#ffffff", underlined=True)]
    figure = stills.draw([stills.Paragraph("model", pieces)], text)
    figure.savefig(tmp_path / "a.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
