"""Owns the still pictures of token views, for pages that strip styles, as GitHub's do.

They show what `views` shows, in the same colours. Who wrote a piece also stands at its
left, so that it reads in grey too.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from kr1_utils.agent import Trajectory
from kr1_utils.extras import missing
from kr1_utils.plots import SMALL, WIDTH
from kr1_utils.views import (
    COLORS,
    DOUBTFUL,
    TITLES,
    check_color_by,
    doubt,
    read_tokens,
    runs_of_conversation,
)

try:
    import matplotlib.pyplot as plt
    from matplotlib import font_manager
    from matplotlib.patches import Rectangle
except ImportError:
    plt = font_manager = Rectangle = missing("notebooks")

FONT = "DejaVu Sans Mono"
# Points: the width of a character of FONT, and the height of a line.
CHARACTER = 0.602 * SMALL
LINE = 1.75 * SMALL
# Characters: at the left, for who wrote it, and in a line behind that.
MARGIN = 18
COLUMNS = int(72 * WIDTH / CHARACTER) - MARGIN - 1

PROBABILITY_TITLE = (
    f"The darker, the less likely when it was sampled; below {DOUBTFUL}: how likely"
)


@dataclass(frozen=True)
class Piece:
    """Some text that stays in one line, and how it is drawn."""

    text: str
    color: str
    underlined: bool = False
    # After this piece, the line ends.
    breaks: bool = False


@dataclass(frozen=True)
class Paragraph:
    """What one writer wrote at a time."""

    title: str
    pieces: list[Piece]


def conversation_still(trajectory: Trajectory, tokenizer, title: str = ""):
    """A trajectory in paragraphs, as `views.conversation_html` shows it.

    Args:
        title: of the figure; none if it is empty.
    """
    return draw(
        [
            Paragraph(TITLES[kind], list(_words(text, COLORS[kind])))
            for kind, text in runs_of_conversation(trajectory, tokenizer)
        ],
        title,
    )


def microscope_still(
    trajectory: Trajectory,
    tokenizer,
    logprobs: list[float] | None = None,
    color_by: str = "writer",
    title: str = "",
):
    """A trajectory token by token, as `views.microscope_html` shows it.

    Args:
        logprobs: (T,) of the completion's tokens; the trajectory's own if not given.
        color_by: "writer" or "probability".
        title: of the figure; if it is empty, none, or what darker means.

    Raises:
        ValueError: for another `color_by`, or if no probabilities are known.
    """
    tokens = read_tokens(trajectory, tokenizer, logprobs)
    check_color_by(color_by, tokens)
    paragraphs = []
    for writer, run in groupby(tokens, key=lambda token: token.writer):
        pieces = []
        for token in run:
            color = COLORS[writer]
            text = token.text
            if color_by == "probability":
                color = token.color
                text = f"{text} {doubt(token)}".rstrip() if doubt(token) else text
            pieces.append(Piece(text, color, underlined=bool(token.mask)))
            pieces.append(Piece(" ", "none"))
        paragraphs.append(Paragraph(writer, pieces))
    if color_by == "probability":
        title = title or PROBABILITY_TITLE
    return draw(paragraphs, title)


def _words(text: str, color: str) -> Iterator[Piece]:
    """Words, each with the blank behind it; lines end where those of the text do."""
    for line in text.splitlines() or [""]:
        words = line.split(" ")
        for word in words[:-1]:
            yield Piece(f"{word} ", color)
        yield Piece(words[-1], color, breaks=True)


def draw(paragraphs: list[Paragraph], title: str):
    """A figure of paragraphs, each of which begins a line."""
    placed = []
    line = 1 if title else 0
    for paragraph in paragraphs:
        placed.append((line, -MARGIN, Piece(paragraph.title, "none")))
        for below, column, piece in _flow(paragraph.pieces):
            placed.append((line + below, column, piece))
        # Every piece of it stands at or above the last one.
        line = placed[-1][0] + 1
    figure = plt.figure(figsize=(WIDTH, (line + 0.5) * LINE / 72))
    # The style of the figures sets one, which knows nothing of axes put by hand.
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 72 * WIDTH), ylim=((line + 0.5) * LINE, 0))
    ax.axis("off")
    if title:
        _draw_piece(ax, 0, -MARGIN, Piece(title, "none"))
    for row, column, piece in placed:
        _draw_piece(ax, row, column, piece)
    return figure


def _flow(pieces: Iterable[Piece]) -> Iterator[tuple[int, int, Piece]]:
    """(line, column, piece) of each piece, cut where it is longer than a line."""
    line = column = 0
    for piece in pieces:
        rest = piece.text
        if column and column + len(rest.rstrip()) > COLUMNS:
            line, column = line + 1, 0
        while len(rest.rstrip()) > COLUMNS:
            yield line, column, Piece(rest[:COLUMNS], piece.color, piece.underlined)
            rest = rest[COLUMNS:]
            line += 1
        if rest:
            yield line, column, Piece(rest, piece.color, piece.underlined)
        column += len(rest)
        if piece.breaks:
            line, column = line + 1, 0


def _draw_piece(ax, row: int, column: int, piece: Piece) -> None:
    x = (MARGIN + column) * CHARACTER
    if column < 0:
        x = CHARACTER
    width = len(piece.text) * CHARACTER
    base = (row + 1) * LINE
    if piece.color != "none":
        box = ((x, base - 1.1 * SMALL), width, 1.55 * SMALL)
        ax.add_patch(Rectangle(*box, color=piece.color, linewidth=0))
    if piece.underlined:
        below = base + 0.28 * SMALL
        ax.plot([x, x + width], [below, below], "-", color="#111111", linewidth=0.8)
    if not piece.text.strip():
        return
    ax.text(
        x,
        base,
        _drawable(piece.text),
        family=FONT,
        fontsize=SMALL,
        color="#111111",
        weight="bold" if column < 0 else "normal",
        va="baseline",
        parse_math=False,
    )


def _drawable(text: str) -> str:
    """With "□" for each character that the font does not have."""
    known = _characters()
    return "".join(c if ord(c) in known else "□" for c in text)


@functools.cache
def _characters() -> frozenset[int]:
    file = font_manager.findfont(FONT)
    return frozenset(font_manager.get_font(file).get_charmap())
