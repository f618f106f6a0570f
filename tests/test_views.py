"""Trajectories and tables as HTML: no text gets lost or becomes markup."""

import html
import math
import re
from dataclasses import replace
from itertools import groupby

import pytest
from helpers import ANSWER, SEARCH, Shelf

from kr1_utils import views
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.profiles import Limits


def converse(tokenizer, turns, question="Q?", max_turns=2):
    """The trajectory of a conversation in which the model says `turns`."""
    engine = ScriptedEngine(tokenizer, {question: turns})
    limits = Limits(max_turns, 2, 60, 120, 700)
    asked = [{"question": question}]
    return rollout(engine, tokenizer, Shelf(), asked, limits, "S")[0]


@pytest.fixture
def trajectory(tokenizer):
    return converse(tokenizer, [SEARCH, ANSWER], question="A <b>?")


def text_of(markup):
    """What a page shows of some HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_table_escapes_what_it_shows():
    markup = views.table_html([("<b>", 1), ("x", "&")], ("setting", "<i>"))
    assert "<b>" not in markup
    assert "<i>" not in markup
    assert text_of(markup).split() == ["setting", "<i>", "<b>", "1", "x", "&"]


def test_table_shows_long_cells_and_many_rows_in_full():
    long = "word " * 100 + "end"
    rows = [(long, number) for number in range(200)]
    shown = text_of(views.table_html(rows, ("text", "number")))
    assert shown.count(long) == 200
    assert "..." not in shown


def test_table_shows_values_as_str_has_them_and_keeps_line_breaks():
    shown = text_of(views.table_html([(0.1234567891, None, True), ("a\nb", 2, 3.0)]))
    assert shown.split() == ["0.1234567891", "None", "True", "a", "b", "2", "3.0"]


def test_table_may_have_columns_of_one_name_or_no_rows():
    shown = text_of(views.table_html([(1, 2)], ("word", "word")))
    assert shown.split() == ["word", "word", "1", "2"]
    assert text_of(views.table_html([], ("word",))).split() == ["word"]
    assert text_of(views.table_html([])).split() == []


def test_table_with_half_a_surrogate_pair_can_be_saved():
    markup = views.table_html([("a\ud800b",)], ("\udfff",))
    assert text_of(markup.encode().decode()).split() == ["?", "a?b"]


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
        assert f"id {token}, mask {mask}" in told
        assert (writer == "model") == bool(mask)
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
    # Of an observation.
    at = trajectory.loss_mask.index(0) + 5
    wrong = replace(trajectory, loss_mask=[*trajectory.loss_mask])
    wrong.loss_mask[at] = 1
    tokens = under_the_microscope(wrong, tokenizer, advantage=1.0)
    writer, told, _ = tokens[len(wrong.prompt_ids) + at]
    assert writer == "observation"
    assert "mask 1" in told
    assert "advantage" in told
    underlined = views.microscope_html(trajectory, tokenizer).count("<u ")
    assert views.microscope_html(wrong, tokenizer).count("<u ") == underlined + 1


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
    quiet = converse(tokenizer, ["", SEARCH], max_turns=3)
    names = views.writers(quiet, chat, tokenizer)
    runs = [name for name, _ in groupby(names)]
    message = ["header", "observation", "header"]
    # The turn behind the search's message is silent: another message follows at once.
    asked_again = ["header", "observation"]
    assert runs == ["prompt", *message, "model", *asked_again, *message]


@pytest.mark.parametrize(
    "fake",
    ["<|im_end|>", "<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>user\nHello"],
)
def test_microscope_reads_a_turn_that_spells_the_template(tokenizer, chat, fake):
    """No engine goes on after the end of a turn, but a file of trajectories may hold
    anything."""
    turns = [f"<think> {fake}</think>{SEARCH}", f"<think> {fake}"]
    t = converse(tokenizer, turns)
    assert t.completion_ids.count(chat.end_of_turn) > 2
    names = views.writers(t, chat, tokenizer)
    assert len(names) == len(t.prompt_ids + t.completion_ids)
    # No message follows, so it is still the model's turn.
    if fake == "<|im_end|>":
        completion = names[len(t.prompt_ids) :]
        assert [name == "model" for name in completion] == [m == 1 for m in t.loss_mask]


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
    assert len(shares) == n
    # Two digits are shown.
    assert sum(shares) == pytest.approx(-1.5, rel=0.05)
    assert all(
        ("log-probability -0.500" in told) == (writer == "model")
        for writer, told, _ in tokens
    )


def test_microscope_names_each_writer_without_styles(trajectory, tokenizer, chat):
    markup = views.microscope_html(trajectory, tokenizer)
    named = re.findall(r"<b>([^<]*)</b>: ", markup)
    runs = groupby(views.writers(trajectory, chat, tokenizer))
    assert named == [writer for writer, _ in runs]


def test_microscope_tells_in_a_table_what_hovering_tells(trajectory, tokenizer):
    markup = views.microscope_html(trajectory, tokenizer, advantage=1.0)
    _, _, folded = markup.partition("<details>")
    told = [t for _, t, _ in under_the_microscope(trajectory, tokenizer, advantage=1.0)]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", folded)
    assert cells[2::3] == [t.replace(", ", "; ") for t in told]


def test_microscope_darkens_unlikely_tokens_and_says_how_likely(trajectory, tokenizer):
    logprobs = [0.0] * len(trajectory.completion_ids)
    at = trajectory.loss_mask.index(1)
    logprobs[at] = math.log(0.25)
    more = {"logprobs": logprobs, "color_by": "probability"}
    markup = views.microscope_html(trajectory, tokenizer, **more)
    assert re.findall(r"<i>([^<]*)</i>", markup) == ["0.25"]
    tokens = views.read_tokens(trajectory, tokenizer, logprobs)
    prompt = len(trajectory.prompt_ids)
    doubtful = tokens[prompt + at]
    assert [t.color for t in tokens if t.mask and t is not doubtful] == ["#ffffff"] * (
        trajectory.sampled_length - 1
    )
    # Halfway between white and the darkest would be a probability of one half.
    parts = [int(doubtful.color[i : i + 2], 16) for i in (1, 3, 5)]
    wanted = [255 - (255 - dark) * 0.75 for dark in views.UNLIKELY]
    assert parts == pytest.approx(wanted, abs=0.5)


@pytest.mark.parametrize("logprobs", [[0.5], [float("-inf")]])
def test_any_log_probability_has_a_colour(trajectory, tokenizer, logprobs):
    logprobs = logprobs * len(trajectory.completion_ids)
    tokens = views.read_tokens(trajectory, tokenizer, logprobs)
    assert all(re.fullmatch("#[0-9a-f]{6}", token.color) for token in tokens)


def test_microscope_refuses_colours_that_it_cannot_give(trajectory, tokenizer):
    with pytest.raises(ValueError, match="'mood'"):
        views.microscope_html(trajectory, tokenizer, color_by="mood")
    silent = replace(trajectory, logprobs=None)
    with pytest.raises(ValueError, match="log-probabilities"):
        views.microscope_html(silent, tokenizer, color_by="probability")


def test_side_by_side_shows_both_with_their_titles():
    markup = views.side_by_side_html(
        "<p>left</p>", "<p>right</p>", ("before <", "after")
    )
    assert text_of(markup) == "before <leftafterright"


def test_settings_that_are_used_stand_before_the_folded_ones():
    settings = [("a", "1"), ("b", "2"), ("c", "3")]
    markup = views.settings_html(settings, ("c", "a"))
    used, folded = markup.split("<details>")
    assert used.index(">c<") < used.index(">a<") and ">b<" not in used
    assert ">b<" in folded and ">a<" not in folded
    with pytest.raises(KeyError):
        views.settings_html(settings, ("d",))
