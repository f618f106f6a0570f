"""The diagrams: valid SVG, in which every part can be lit and none hides another."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from kr1_utils import diagrams

SVG = "{http://www.w3.org/2000/svg}"
BOTH = [
    pytest.param(diagrams.AGENT_LOOP, diagrams.agent_loop, id="agent_loop"),
    pytest.param(diagrams.GRPO_STEP, diagrams.grpo_step, id="grpo_step"),
]
# Pixels; 9 points.
SMALLEST = 12


def groups(svg, state):
    """The names of the boxes in a state, "lit" or "dim"."""
    root = ElementTree.fromstring(svg)
    return {
        text.text
        for group in root.iter(f"{SVG}g")
        if group.get("class") == state
        for text in group.iter(f"{SVG}text")
        if text.get("class") == "name"
    }


@pytest.mark.parametrize("diagram, draw", BOTH)
def test_a_diagram_says_what_is_seen_and_keeps_text_as_text(diagram, draw):
    root = ElementTree.fromstring(draw())
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == diagram.title
    assert root.findtext(f"{SVG}desc") == diagram.description
    shown = [text.text for text in root.iter(f"{SVG}text")]
    for box in diagram.boxes:
        texts = [line for line in box.lines if isinstance(line, str)]
        assert {box.name, *texts} <= {*shown}


@pytest.mark.parametrize("diagram, draw", BOTH)
def test_each_part_can_be_lit_alone(diagram, draw):
    names = {box.name for box in diagram.boxes}
    assert not groups(draw(), "lit") | groups(draw(), "dim")
    for name in names:
        assert groups(draw([name]), "lit") == {name}
        assert groups(draw([name]), "dim") == names - {name}


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no part 'serch'.*search"):
        diagrams.agent_loop(["search", "serch"])


@pytest.mark.parametrize("diagram, draw", BOTH)
def test_nothing_lies_on_another_or_off_the_card(diagram, draw):
    boxes = diagram.boxes
    for number, box in enumerate(boxes):
        assert box.x >= 0 and box.x + box.width <= diagrams.WIDTH
        assert box.y >= 0 and box.y + box.height <= diagram.height
        for other in boxes[number + 1 :]:
            beside = box.x + box.width < other.x or other.x + other.width < box.x
            above = box.y + box.height < other.y or other.y + other.height < box.y
            assert beside or above, (box.name, other.name)


@pytest.mark.parametrize("diagram, draw", BOTH)
def test_arrows_lead_from_edge_to_edge_of_their_boxes(diagram, draw):
    boxes = {box.name: box for box in diagram.boxes}
    for arrow in diagram.arrows:
        ends = (arrow.start, arrow.points[0]), (arrow.end, arrow.points[-1])
        for name, (x, y) in ends:
            box = boxes[name]
            inside = (
                box.x <= x <= box.x + box.width and box.y <= y <= box.y + box.height
            )
            on_edge = x in (box.x, box.x + box.width) or y in (
                box.y,
                box.y + box.height,
            )
            assert inside and on_edge, (arrow.start, arrow.end)
        for (x, y), (next_x, next_y) in zip(arrow.points, arrow.points[1:]):
            assert (x == next_x) != (y == next_y), (arrow.start, arrow.end)


def test_no_text_is_smaller_than_nine_points():
    sizes = re.findall(r"(?:font|font-size): (\d+)px", diagrams.STYLE)
    assert sizes
    assert min(map(int, sizes)) >= SMALLEST


def test_the_style_reaches_nothing_else_on_a_page():
    rules = re.sub(r"@media [^{]*\{", "", diagrams.STYLE)
    selectors = re.findall(r"^\s*([^{}\s][^{}]*)\{", rules, re.MULTILINE)
    assert selectors
    assert all(selector.startswith(".kr1") for selector in selectors)


def test_the_advantages_shown_are_those_of_the_rewards_shown():
    shown = [
        float(text.text.replace("−", "-"))
        for text in ElementTree.fromstring(diagrams.grpo_step()).iter(f"{SVG}text")
        if re.fullmatch(r"[+−]\d(\.\d+)?", text.text)
    ]
    rewards, advantages = shown[:4], shown[4:]
    assert rewards == [*diagrams.REWARDS]
    assert sum(advantages) == pytest.approx(0, abs=0.02)
    order = sorted(range(4), key=rewards.__getitem__)
    assert order == sorted(range(4), key=advantages.__getitem__)


def test_a_notebook_gets_the_picture_and_without_pictures_what_is_seen():
    shown = diagrams.show(diagrams.agent_loop(["parse"]))
    assert shown._repr_svg_() == diagrams.agent_loop(["parse"])
    assert diagrams.AGENT_LOOP.description in repr(shown)
    assert "parse" in repr(shown).removeprefix(diagrams.AGENT_LOOP.description)
