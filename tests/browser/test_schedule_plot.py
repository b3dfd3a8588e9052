"""The plot of Adapter Schedule in the page: it shows the curve of the widgets, or what is wrong."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import expect

from comfy_page import ComfyPage

POINTS = "0:1, 0.5:0.3, 1:0"
CURVE = "svg[data-plot=schedule] polyline"
LABELS = "svg[data-plot=schedule] text"
NOTE = "svg[data-plot=schedule] + [role=status]"
SVG_MODULE = "/extensions/anyadapter/svg.js"


def schedule_node(
    preset: str, points: str = POINTS, interpolation: str = "linear", **fields: Any
) -> dict[str, Any]:
    return {
        "id": 1,
        "type": "AnyAdapterSchedule",
        "pos": [0, 0],
        "size": [320, 420],
        "widgets_values": [preset, 1, 0, 0.25, 0.75, points, interpolation],
        **fields,
    }


def curve(page: ComfyPage) -> list[tuple[float, float]]:
    """The points of the drawn line, from 0 at the left and the top to 1 at the right and the bottom.

    The smallest value lies at the bottom and the largest at the top, as in all cases here.
    """
    expect(page.find(CURVE)).to_have_count(1)
    text = page.find(CURVE).get_attribute("points") or ""
    drawn = [tuple(map(float, pair.split(","))) for pair in text.split()]
    (left, right), (top, bottom) = [(min(axis), max(axis)) for axis in zip(*drawn, strict=True)]
    return [((x - left) / (right - left), (y - top) / max(bottom - top, 1)) for x, y in drawn]


def depth(drawn: Sequence[tuple[float, float]], progress: float) -> float:
    """How far below its top the line is at a progress."""
    return min(drawn, key=lambda point: abs(point[0] - progress))[1]


def test_a_ramp_is_drawn(page: ComfyPage):
    page.open(schedule_node("linear"))
    drawn = curve(page)
    # Coordinates are rounded to tenths of a pixel, and the plot is some 90 pixels high.
    assert [depth(drawn, x) for x in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(
        [0, 0, 0.5, 1, 1], abs=0.01
    )


def test_a_window_has_upright_edges(page: ComfyPage):
    page.open(schedule_node("window"))
    drawn = curve(page)
    edges = [a[0] for a, b in pairwise(drawn) if a[0] == b[0]]
    # Half a pixel of some 250.
    assert edges == pytest.approx([0.25, 0.75], abs=0.002)


def test_axes_are_labelled(page: ComfyPage):
    page.open(schedule_node("linear"))
    expect(page.find(LABELS)).to_have_text(["0%", "25%", "50%", "75%", "100%", "0", "0.5", "1"])


def test_bad_points_show_their_message_until_they_are_mended(page: ComfyPage):
    page.open(schedule_node("points", points="0:1, x"))
    expect(page.find(NOTE)).to_contain_text('Point 2 in line 1 ("x") has no colon')
    expect(page.find(CURVE)).to_have_count(0)
    page.find("textarea").fill("0:1, 1:0.5")
    expect(page.find(CURVE)).to_have_count(1)
    expect(page.find(NOTE)).to_be_hidden()
    page.find("textarea").fill("0:1, 1:high")
    expect(page.find(NOTE)).to_contain_text('"high" is not a number')


def test_a_changed_widget_changes_the_curve(page: ComfyPage):
    page.open(schedule_node("linear"))
    curve(page)
    before = _text(page)
    page.run(
        "() => { const widget = app.graph.getNodeById(1).widgets.find(w => w.name === 'preset');"
        "widget.value = 'window'; widget.callback(widget.value) }"
    )
    expect(page.find(CURVE)).not_to_have_attribute("points", before)


def test_a_wider_node_has_a_wider_plot(page: ComfyPage):
    page.open(schedule_node("linear"))
    curve(page)
    before = _text(page)
    page.drag_corner(1, by=(320, 0))
    expect(page.find(CURVE)).not_to_have_attribute("points", before)
    assert _width(_text(page)) > 1.5 * _width(before)


def test_a_value_from_another_node_is_named(page: ComfyPage):
    source = {
        "id": 2,
        "type": "PrimitiveFloat",
        "pos": [-280, 0],
        "size": [200, 60],
        "widgets_values": [0.5],
        "outputs": [{"name": "FLOAT", "type": "FLOAT", "links": [1]}],
    }
    widget = {"name": "from_or_inside", "type": "FLOAT", "widget": {"name": "from_or_inside"}}
    node = schedule_node("linear", inputs=[{**widget, "link": 1}])
    page.open(node, source, links=[[1, 2, 0, 1, 0, "FLOAT"]])
    expect(page.find(NOTE)).to_contain_text("from_or_inside comes from another node")
    page.run("() => app.graph.getNodeById(1).disconnectInput('from_or_inside')")
    expect(page.find(CURVE)).to_have_count(1)


def test_the_plot_is_neither_stored_nor_sent(page: ComfyPage):
    node = schedule_node("points")
    page.open(node)
    curve(page)
    sent = page.run("() => app.graphToPrompt()")
    assert sent["workflow"]["nodes"][0]["widgets_values"] == node["widgets_values"]
    names = ["preset", "from_or_inside", "to_or_outside", "start_percent", "end_percent"]
    names += ["points", "interpolation"]
    assert list(sent["output"]["1"]["inputs"]) == names


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 0, [0, 0.5, 1]),
        (-0.5, 1, [-1, 0, 1]),
        (0, 0.3, [0, 0.2, 0.4]),
        (0, 1000, [0, 500, 1000]),
        (-1000, 0, [-1000, -500, 0]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    page: ComfyPage, low: float, high: float, expected: list[float]
):
    script = f"async ([low, high]) => (await import('{SVG_MODULE}')).ticks(low, high, 3)"
    assert page.run(script, [low, high]) == expected


def _text(page: ComfyPage) -> str:
    return page.find(CURVE).get_attribute("points") or ""


def _width(points: str) -> float:
    across = [float(pair.split(",")[0]) for pair in points.split()]
    return max(across) - min(across)
