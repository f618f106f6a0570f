"""Owns the two diagrams, drawn as SVG: the agent loop, and one step of GRPO.

Both are a description, boxes and arrows in pixels, and `render` draws it. Colours are
those of the token views: blue is what the model writes, orange what is appended.
"""

from collections.abc import Collection
from dataclasses import dataclass
from html import escape, unescape
from statistics import mean, stdev

# Pixels. A page of GitHub shows this width without shrinking it.
WIDTH = 816
LINE_HEIGHT = 19
PADDING = 12

# Sizes of text in pixels: 16 are 12 points, and 12 are 9, the smallest.
STYLE = """
.kr1 {
  --card: #ffffff; --edge: #d0d7de; --ink: #1f2328; --quiet: #57606a;
  --ours: #f0f1f3; --ours-edge: #8c959f;
  --model: #cfe3f7; --model-edge: #1f5f99;
  --appended: #fbe3c4; --appended-edge: #b3640f;
  font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  .kr1 {
    --card: #161b22; --edge: #3d444d; --ink: #f0f3f6; --quiet: #b1bac4;
    --ours: #262c36; --ours-edge: #8b949e;
    --model: #14406b; --model-edge: #79b8ff;
    --appended: #5c3a0e; --appended-edge: #f0b060;
  }
}
.kr1 .card { fill: var(--card); stroke: var(--edge); }
.kr1 text { fill: var(--ink); }
.kr1 .title { font-size: 16px; font-weight: 600; }
.kr1 .name { font-size: 14px; font-weight: 600; }
.kr1 .label { font-size: 12px; fill: var(--quiet); }
.kr1 .tags { font-family: ui-monospace, Consolas, monospace; font-size: 12px; }
.kr1 .frame { fill: none; stroke: var(--quiet); stroke-dasharray: 5 4; }
.kr1 .ours { fill: var(--ours); stroke: var(--ours-edge); }
.kr1 .model { fill: var(--model); stroke: var(--model-edge); }
.kr1 .appended { fill: var(--appended); stroke: var(--appended-edge); }
.kr1 .line { fill: none; stroke: var(--quiet); stroke-width: 1.6; }
.kr1 .head { fill: var(--quiet); }
.kr1 .lit > rect:first-child { stroke-width: 3.5; }
.kr1 .dim { opacity: 0.45; }
"""

# Role, text, and where it begins.
LEGEND = (
    ("model", "the model writes it: mask 1, trained on", 24),
    ("appended", "appended to it: mask 0, only read", 320),
    ("ours", "done by the kit", 584),
)


@dataclass(frozen=True)
class Strip:
    """A trajectory in small: pieces of a line, each (role, pixels)."""

    pieces: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Box:
    """A part of the diagram. `name` is what lights it up, and its heading.

    A line that begins with "<" is set as tags are.
    """

    name: str
    x: int
    y: int
    width: int
    height: int
    lines: tuple[str | Strip, ...] = ()
    # "ours", "model" or "appended": who is at work.
    role: str = "ours"


@dataclass(frozen=True)
class Arrow:
    """A line from one box to another, through `points`, with its head at the last."""

    start: str
    end: str
    points: tuple[tuple[int, int], ...]
    label: str = ""
    # The middle of the label's foot.
    label_at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Frame:
    """A dashed line around what belongs together."""

    x: int
    y: int
    width: int
    height: int
    label: str


@dataclass(frozen=True)
class Diagram:
    title: str
    # What is seen, for those who do not see it.
    description: str
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    frames: tuple[Frame, ...] = ()


AGENT_LOOP = Diagram(
    title="The agent loop",
    description=(
        "A question becomes a prompt. In each turn the model generates a thought, then"
        " a search or an answer. The turn is parsed. After a search the retriever's"
        " passages are appended, after neither a correction, and the model generates"
        " again. An answer ends the loop: the trajectory is rewarded or scored."
    ),
    height=420,
    boxes=(
        Box("prompt", 24, 104, 130, 84, ("system prompt", "and question")),
        Box(
            "generate",
            208,
            104,
            178,
            84,
            ("the model writes a turn", "<think>… <search>…"),
            role="model",
        ),
        Box("parse", 434, 104, 146, 84, ("search, answer", "or neither?")),
        Box("search", 434, 254, 146, 84, ("BM25, the queries", "of a whole batch")),
        Box(
            "append",
            208,
            254,
            178,
            84,
            ("what was found", "<context>…</context>"),
            role="appended",
        ),
        Box("trajectory", 682, 104, 110, 84, ("token ids", "and mask")),
        Box("reward", 682, 254, 110, 84, ("in training,", "else a score")),
    ),
    arrows=(
        Arrow("prompt", "generate", ((154, 146), (208, 146))),
        Arrow("generate", "parse", ((386, 146), (434, 146))),
        Arrow("parse", "search", ((544, 188), (544, 254)), "search", (570, 226)),
        Arrow("search", "append", ((434, 296), (386, 296))),
        Arrow("append", "generate", ((246, 254), (246, 188)), "next turn", (281, 226)),
        Arrow(
            "parse",
            "append",
            ((500, 188), (500, 222), (352, 222), (352, 254)),
            "neither: a correction",
            (425, 215),
        ),
        Arrow("parse", "trajectory", ((580, 146), (682, 146)), "answer", (640, 138)),
        Arrow("trajectory", "reward", ((737, 188), (737, 254))),
    ),
    frames=(
        Frame(188, 66, 416, 292, "at most max_turns times, then one forced answer"),
    ),
)

# Of four trajectories: exact match (0 or 1) and format (−1 or 1) together.
REWARDS = (2, 1, 1, -1)


def _advantages(rewards: tuple[int, ...]) -> list[float]:
    return [(reward - mean(rewards)) / stdev(rewards) for reward in rewards]


def _signed(number: float, digits: int = 0) -> str:
    """With a sign that is as wide as a digit."""
    return f"{number:+.{digits}f}".replace("-", "−")


GRPO_STEP = Diagram(
    title="One step of GRPO",
    description=(
        "The policy answers one question several times: a group of trajectories, each"
        " made of pieces that the model wrote and pieces that were appended. Each"
        " earns a reward. An advantage is the reward minus the group's mean, divided"
        " by its standard deviation. The loss counts the pieces that the model wrote;"
        " its gradient updates the LoRA matrices, and the new policy samples again."
    ),
    height=392,
    boxes=(
        Box("question", 24, 66, 100, 146, ("one of", "a batch")),
        Box(
            "rollouts",
            164,
            66,
            212,
            146,
            (
                "a group of trajectories",
                Strip((("model", 54), ("appended", 70), ("model", 34))),
                Strip((("model", 40), ("appended", 60), ("model", 48))),
                Strip((("model", 60), ("appended", 74), ("model", 44))),
                Strip((("model", 30), ("appended", 52), ("model", 26))),
            ),
        ),
        Box(
            "rewards",
            416,
            66,
            136,
            146,
            ("match + format", *(_signed(reward) for reward in REWARDS)),
        ),
        Box(
            "advantages",
            592,
            66,
            200,
            146,
            ("(reward − mean) / std", *(_signed(a, 2) for a in _advantages(REWARDS))),
        ),
        Box("loss", 592, 270, 200, 62, ("over mask 1 only",), role="model"),
        Box("update", 372, 270, 150, 62, ("LoRA's A and B",)),
        Box("policy", 164, 270, 150, 62, ("the model",), role="model"),
    ),
    arrows=(
        Arrow("question", "rollouts", ((124, 140), (164, 140))),
        Arrow("rollouts", "rewards", ((376, 140), (416, 140))),
        Arrow("rewards", "advantages", ((552, 140), (592, 140))),
        Arrow(
            "advantages",
            "loss",
            ((620, 212), (620, 270)),
            "weighs each token",
            (684, 245),
        ),
        Arrow("loss", "update", ((592, 301), (522, 301)), "gradient", (559, 293)),
        Arrow("update", "policy", ((372, 301), (314, 301))),
        Arrow(
            "policy",
            "rollouts",
            ((192, 270), (192, 212)),
            "samples the next",
            (254, 245),
        ),
    ),
)


def agent_loop(lit: Collection[str] = ()) -> str:
    """The agent loop as SVG.

    Args:
        lit: names of the parts to light up: "prompt", "generate", "parse", "search",
            "append", "trajectory", "reward". The others are dimmed; none is if it is
            empty.
    """
    return render(AGENT_LOOP, lit)


def grpo_step(lit: Collection[str] = ()) -> str:
    """One step of GRPO as SVG.

    Args:
        lit: as in `agent_loop`: "question", "rollouts", "rewards", "advantages",
            "loss", "update", "policy".
    """
    return render(GRPO_STEP, lit)


# Parts that notebooks light up where they explain them.
LIT_IN_THE_LOOP = ("generate", "parse", "search", "append")
LIT_IN_THE_STEP = ("rollouts", "rewards", "advantages", "loss", "update")


def drawn() -> dict[str, str]:
    """Name of a file in figures/, without its ending -> SVG."""
    files = {"agent_loop": agent_loop(), "grpo_step": grpo_step()}
    files |= {f"agent_loop_{part}": agent_loop([part]) for part in LIT_IN_THE_LOOP}
    files |= {f"grpo_step_{part}": grpo_step([part]) for part in LIT_IN_THE_STEP}
    return files


def render(diagram: Diagram, lit: Collection[str] = ()) -> str:
    """A diagram as the text of an SVG file.

    Raises:
        ValueError: if the diagram has no part of a name in `lit`.
    """
    names = [box.name for box in diagram.boxes]
    for name in lit:
        if name not in names:
            raise ValueError(
                f"{diagram.title} has no part {name!r}: light up {', '.join(names)}."
            )
    everything = lit or names
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" class="kr1" role="img"'
        f' width="{WIDTH}" height="{diagram.height}"'
        f' viewBox="0 0 {WIDTH} {diagram.height}">',
        f"<title>{escape(diagram.title)}</title>",
        f"<desc>{escape(_described(diagram, lit))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="1" y="1" width="{WIDTH - 2}"'
        f' height="{diagram.height - 2}" rx="10"/>',
        _text("title", 24, 38, diagram.title),
        *(_frame(frame) for frame in diagram.frames),
        *(_arrow(a, {a.start, a.end} <= {*everything}) for a in diagram.arrows),
        *(_box(box, box.name in everything, bool(lit)) for box in diagram.boxes),
        *_legend(diagram.height - 28),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _described(diagram: Diagram, lit: Collection[str]) -> str:
    if not lit:
        return diagram.description
    return f"{diagram.description} Lit up: {', '.join(lit)}."


def _text(kind: str, x: int, y: int, text: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _frame(frame: Frame) -> str:
    return (
        f'<rect class="frame" x="{frame.x}" y="{frame.y}" width="{frame.width}"'
        f' height="{frame.height}" rx="8"/>'
        + _text("label", frame.x + PADDING, frame.y + 23, frame.label)
    )


def _box(box: Box, is_lit: bool, some_are_lit: bool) -> str:
    state = ""
    if some_are_lit:
        state = "lit" if is_lit else "dim"
    parts = [
        f'<g class="{state}">',
        f'<rect class="{box.role}" x="{box.x}" y="{box.y}" width="{box.width}"'
        f' height="{box.height}" rx="6"/>',
        _text("name", box.x + PADDING, box.y + 25, box.name),
    ]
    y = box.y + 29
    for line in box.lines:
        y += LINE_HEIGHT
        if isinstance(line, Strip):
            parts.append(_strip(line, box.x + PADDING, y - 11))
        else:
            kind = "tags" if line.startswith("<") else "line-of-text"
            parts.append(_text(kind, box.x + PADDING, y, line))
    return "".join([*parts, "</g>"])


def _strip(strip: Strip, x: int, y: int) -> str:
    parts = []
    for role, width in strip.pieces:
        parts.append(
            f'<rect class="{role}" x="{x}" y="{y}" width="{width}" height="11" rx="2"/>'
        )
        x += width + 2
    return "".join(parts)


def _arrow(arrow: Arrow, is_lit: bool) -> str:
    path = " ".join(f"{x},{y}" for x, y in arrow.points)
    parts = [
        f'<g class="{"" if is_lit else "dim"}">',
        f'<polyline class="line" points="{path}"/>',
        f'<polygon class="head" points="{_head(*arrow.points[-2:])}"/>',
    ]
    if arrow.label:
        parts.append(_text("label", *arrow.label_at, arrow.label, "middle"))
    return "".join([*parts, "</g>"])


def _head(before: tuple[int, int], tip: tuple[int, int]) -> str:
    """The corners of an arrow's head; the last piece of a line is level or upright."""
    x, y = tip
    # Where the line comes from, as a step of one pixel.
    dx = (before[0] > x) - (before[0] < x)
    dy = (before[1] > y) - (before[1] < y)
    back_x, back_y = x + 9 * dx, y + 9 * dy
    return (
        f"{x},{y} {back_x + 5 * dy},{back_y + 5 * dx}"
        f" {back_x - 5 * dy},{back_y - 5 * dx}"
    )


def _legend(y: int) -> list[str]:
    parts = []
    for role, text, x in LEGEND:
        parts.append(
            f'<rect class="{role}" x="{x}" y="{y - 11}" width="16" height="12" rx="2"/>'
        )
        parts.append(_text("label", x + 23, y, text))
    return parts


@dataclass(frozen=True)
class Picture:
    """An SVG that a notebook shows; as text, what is seen in it."""

    svg: str
    description: str

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return self.description


def show(svg: str) -> Picture:
    """A diagram for the last line of a notebook's cell.

    Args:
        svg: from `agent_loop` or `grpo_step`.
    """
    return Picture(svg, _between(svg, "desc"))


def _between(svg: str, tag: str) -> str:
    return unescape(svg.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0])
