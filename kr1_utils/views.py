"""Owns trajectories and tables as HTML, without scripts.

Who wrote what also stands there as text, for pages that strip styles, as GitHub's do,
and a folded table repeats what hovering tells, for those who use the keyboard.
`stills` draws the same views as pictures.
"""

import html
import math
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from kr1_utils.agent import Trajectory
from kr1_utils.protocol import ChatFormat, encode, ids_after_turn
from kr1_utils.transcript import steps

# Who wrote a token -> background colour.
COLORS = {
    "prompt": "#eeeeee",
    "header": "#e6d5ee",
    "model": "#cfe3f7",
    "observation": "#fbe3c4",
}

# Who wrote a token -> whether it counts, as it stands above a box of a conversation.
TITLES = {
    "prompt": "prompt",
    "model": "model, mask 1",
    "observation": "appended, mask 0",
}

# Of a token that the model thought impossible; one that was certain is white.
UNLIKELY = (181, 140, 196)

# Below this probability, it stands behind the token as text.
DOUBTFUL = 0.9

BOX_STYLE = (
    "color:#111;padding:4px 8px;margin:2px 0;border-radius:4px;white-space:pre-wrap;"
    "font-family:monospace;font-size:12px"
)
MICROSCOPE_STYLE = (
    "font-family:monospace;font-size:12px;line-height:1.9;color:#111;background:#fff"
)


def table_html(rows, header: tuple[str, ...] = ()) -> str:
    """An HTML table in which every cell is shown in full.

    Args:
        rows: of cells, as many in each row as in the others; shown as `str` has them.
        header: the names of the columns; a table without names if it is empty.
    """
    cells = [[_saveable(cell) for cell in row] for row in rows]
    names = [_saveable(name) for name in header]
    table = pd.DataFrame(cells, columns=names or None, dtype=object)
    markup = table.to_html(
        index=False,
        border=0,
        justify="left",
        header=bool(names),
        # Without a formatter, pandas writes a line break as the two characters "\n".
        formatters=[str] * table.shape[1],
    )
    # JupyterLab aligns cells to the right unless each says otherwise.
    for tag in ("th", "td"):
        markup = markup.replace(f"<{tag}>", f"<{tag} style='text-align:left'>")
    return markup


def settings_html(settings: list[tuple[str, str]], names: tuple[str, ...]) -> str:
    """The settings that a notebook uses as a table, and all others folded behind it.

    Args:
        settings: (name, value), from `profiles.table`.
        names: of those that are shown, in their order.

    Raises:
        KeyError: if there is no setting of such a name.
    """
    values = dict(settings)
    used = [(name, values[name]) for name in names]
    rest = [row for row in settings if row[0] not in names]
    header = ("setting", "value")
    return (
        f"{table_html(used, header)}\n<details><summary>All other settings of the"
        f" profile</summary>\n{table_html(rest, header)}\n</details>"
    )


def _saveable(cell) -> str:
    """Half a surrogate pair becomes "?": a notebook that holds one cannot be saved."""
    return str(cell).encode("utf-8", "replace").decode()


def runs_of_conversation(trajectory: Trajectory, tokenizer) -> list[tuple[str, str]]:
    """A trajectory in pieces: (one of `TITLES`, its text), in order."""
    kinds = ["prompt"] * len(trajectory.prompt_ids)
    kinds += ["model" if mask else "observation" for mask in trajectory.loss_mask]
    token_ids = trajectory.prompt_ids + trajectory.completion_ids
    return [
        (kind, tokenizer.decode([token for _, token in run]))
        for kind, run in groupby(zip(kinds, token_ids), key=lambda pair: pair[0])
    ]


def conversation_html(trajectory: Trajectory, tokenizer) -> str:
    """A trajectory in boxes.

    Grey is the prompt, blue what the model sampled, orange what was appended.
    """
    boxes = [
        f"<div style='background:{COLORS[kind]};{BOX_STYLE}' title='{TITLES[kind]}'>"
        f"<b>{TITLES[kind]}</b>  {html.escape(text)}</div>"
        for kind, text in runs_of_conversation(trajectory, tokenizer)
    ]
    return "".join(boxes)


def reply_html(trajectory: Trajectory) -> str:
    """A trajectory as a table of what happened: thoughts, searches, titles, answer.

    It reads without colours too, for some pages strip them.
    """
    question = ("question", trajectory.question["question"])
    return table_html([question, *steps(trajectory)])


def writers(trajectory: Trajectory, chat: ChatFormat, tokenizer) -> list[str]:
    """Who wrote each token: "prompt", "model", "header" or "observation".

    This is read off the ids, not off the mask, so that a wrong mask can be seen beside
    it. Only the token that ends a turn may be the model's or ours; there the mask says.

    Args:
        trajectory: a completion is turns of the model, each followed by its
            end-of-turn token and a user message: header, text, opening of the next
            turn.
        chat: the tokenizer's, see `ChatFormat.from_tokenizer`.
        tokenizer: the one that made the ids.

    Returns:
        One name per token of the prompt and the completion.
    """
    header = ids_after_turn(tokenizer, chat, chat.before_user)
    opening = encode(tokenizer, chat.after_user)
    ids = trajectory.completion_ids
    # One name for each token of the completion that has been read.
    names: list[str] = []
    while len(names) < len(ids):
        end = _end_of_turn(ids, len(names), chat.end_of_turn, header)
        names += ["model"] * (end - len(names))
        if end == len(ids):
            break
        names.append("model" if trajectory.loss_mask[end] else "header")
        names += _names_of_message(ids[len(names) :], header, opening)
    return ["prompt"] * len(trajectory.prompt_ids) + names


def _end_of_turn(
    ids: list[int], start: int, end_of_turn: int, header: list[int]
) -> int:
    """Where the turn from `start` on ends: at a message's header, or with the ids.

    A model may spell the end-of-turn token inside its turn, so the header must follow.
    The header's last token is not compared: it may have merged with the text behind it.
    """
    wanted = header[:-1]
    for i in range(start, len(ids)):
        behind = ids[i + 1 : i + 1 + len(wanted)]
        if ids[i] == end_of_turn and behind in (wanted, []):
            return i
    return len(ids)


def _names_of_message(
    ids: list[int], header: list[int], opening: list[int]
) -> list[str]:
    """Names for the user message that `ids` start with, up to the model's next turn."""
    text_start = _common_length(header, ids)
    text_end = _find(ids, opening, text_start)
    names = ["header"] * text_start
    names += ["observation"] * (text_end - text_start)
    names += ["header"] * len(ids[text_end : text_end + len(opening)])
    return names


def _common_length(one: list[int], other: list[int]) -> int:
    """How many ids the two lists have in common at their beginning."""
    length = 0
    for a, b in zip(one, other):
        if a != b:
            break
        length += 1
    return length


def _find(ids: list[int], wanted: list[int], start: int) -> int:
    """Where `wanted` begins at or after `start`; the length of `ids` if it does not."""
    for i in range(start, len(ids)):
        if ids[i : i + len(wanted)] == wanted:
            return i
    return len(ids)


@dataclass(frozen=True)
class Token:
    """One token of a trajectory, with all that the microscope tells of it."""

    id: int
    # Line breaks are "↵".
    text: str
    writer: str
    mask: int
    # Its probability when it was sampled; None where it is not known, or mask is 0.
    probability: float | None
    # What else is told of it.
    details: tuple[str, ...] = ()

    @property
    def color(self) -> str:
        """By probability: white if it was certain, violet if it was not."""
        if self.probability is None:
            return COLORS["prompt"]
        parts = [round(255 + (part - 255) * self._doubt) for part in UNLIKELY]
        return "#" + "".join(f"{part:02x}" for part in parts)

    @property
    def _doubt(self) -> float:
        return 1 - min(1.0, max(0.0, self.probability))


def read_tokens(
    trajectory: Trajectory,
    tokenizer,
    logprobs: list[float] | None = None,
    advantage: float | None = None,
    tokens_in_batch: int | None = None,
) -> list[Token]:
    """The tokens of a trajectory, its prompt included; see `microscope_html`."""
    chat = ChatFormat.from_tokenizer(tokenizer)
    prompt_length = len(trajectory.prompt_ids)
    token_ids = trajectory.prompt_ids + trajectory.completion_ids
    masks = [0] * prompt_length + trajectory.loss_mask
    names = writers(trajectory, chat, tokenizer)
    logprobs = logprobs or trajectory.logprobs
    tokens = []
    for i, (token, writer, mask) in enumerate(
        zip(token_ids, names, masks, strict=True)
    ):
        text = tokenizer.decode([token]).replace("\n", "↵")
        probability = None
        details = [writer, f"id {token}", f"mask {mask}"]
        if mask and logprobs:
            logprob = logprobs[i - prompt_length]
            probability = math.exp(logprob)
            details.append(f"log-probability {logprob:.3f}")
        if mask:
            details += _share_of_loss(advantage, tokens_in_batch)
        tokens.append(Token(token, text, writer, mask, probability, tuple(details)))
    return tokens


def microscope_html(
    trajectory: Trajectory,
    tokenizer,
    logprobs: list[float] | None = None,
    advantage: float | None = None,
    tokens_in_batch: int | None = None,
    color_by: str = "writer",
) -> str:
    """A trajectory token by token, coloured by who wrote it or by its probability.

    Underlined is what the loss counts (mask 1). Hovering over a token shows its id and
    mask and, for those with mask 1, the rest where it is given; a folded table shows
    the same.

    Args:
        trajectory: what to show.
        tokenizer: the one that made its ids.
        logprobs: (T,) of the completion's tokens; the trajectory's own if not given.
        advantage: of this trajectory in its group.
        tokens_in_batch: sampled tokens over which the loss is averaged. At the first
            update of a batch the ratio is 1, and a sampled token adds −advantage /
            tokens_in_batch to it.
        color_by: "writer" or "probability".

    Raises:
        ValueError: for another `color_by`, or if no probabilities are known.
    """
    tokens = read_tokens(trajectory, tokenizer, logprobs, advantage, tokens_in_batch)
    check_color_by(color_by, tokens)
    parts = [_legend(color_by)]
    for writer, run in groupby(tokens, key=lambda token: token.writer):
        shown = "".join(_token_html(token, color_by) for token in run)
        parts.append(f"<b>{writer}</b>: {shown}<br>")
    parts.append(_folded_table(tokens))
    return f"<div style='{MICROSCOPE_STYLE}'>{''.join(parts)}</div>"


def check_color_by(color_by: str, tokens: list[Token]) -> None:
    """Refuse what tokens cannot be coloured by.

    Raises:
        ValueError: in one sentence.
    """
    if color_by not in ("writer", "probability"):
        raise ValueError(
            f"Tokens are coloured by 'writer' or 'probability', not {color_by!r}."
        )
    if color_by == "probability" and all(t.probability is None for t in tokens):
        raise ValueError(
            "This trajectory has no log-probabilities: pass logprobs, or sample with an"
            " engine that gives them."
        )


def _share_of_loss(advantage: float | None, tokens_in_batch: int | None) -> list[str]:
    if advantage is None:
        return []
    details = [f"advantage {advantage:+.2f}"]
    if tokens_in_batch:
        details.append(f"adds {-advantage / tokens_in_batch:+.1e} to the loss")
    return details


def _token_html(token: Token, color_by: str) -> str:
    tag = "u" if token.mask else "span"
    color = token.color if color_by == "probability" else COLORS[token.writer]
    behind = doubt(token) if color_by == "probability" else ""
    if behind:
        behind = f" <i>{behind}</i>"
    return (
        f"<{tag} style='background:{color}' title='{', '.join(token.details)}'>"
        f"{html.escape(token.text)}</{tag}>{behind} "
    )


def doubt(token: Token) -> str:
    """The probability of a token that was not nearly certain, else nothing."""
    if token.probability is None or token.probability >= DOUBTFUL:
        return ""
    return f"{token.probability:.2f}"


def _legend(color_by: str) -> str:
    counted = "<u>underlined</u>: mask 1, what the loss counts"
    if color_by == "probability":
        return (
            "the darker a token, the less likely it was when it was sampled; below"
            f" {DOUBTFUL} its probability stands behind it; {counted}<br>"
        )
    names = [
        f"<span style='background:{color}'>{writer}</span>"
        for writer, color in COLORS.items()
    ]
    return f"written by {' · '.join(names)}; {counted}<br>"


def _folded_table(tokens: list[Token]) -> str:
    """What hovering tells, for the keyboard and for pages without it."""
    rows = [
        (number, token.text, "; ".join(token.details))
        for number, token in enumerate(tokens)
    ]
    table = table_html(rows, ("", "token", "what is known of it"))
    return f"<details><summary>All tokens as a table</summary>{table}</details>"


def side_by_side_html(left: str, right: str, titles: tuple[str, str]) -> str:
    """Two pieces of HTML in two columns.

    Args:
        left: HTML.
        right: HTML.
        titles: of the two columns, as text.
    """
    cells = [
        "<td style='vertical-align:top;text-align:left;width:50%'>"
        f"<b>{html.escape(title)}</b>{part}</td>"
        for title, part in zip(titles, (left, right))
    ]
    return f"<table style='width:100%'><tr>{''.join(cells)}</tr></table>"
