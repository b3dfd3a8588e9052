"""Adapter Schedule in a real ComfyUI: what the page is told, what a prompt gets, and its route."""

from typing import Any
from urllib.parse import urlencode

import pytest

from comfy_server import ComfyServer, PromptFailedError
from workflows import node

WIDGETS: dict[str, Any] = {
    "preset": "window",
    "from_or_inside": 1.0,
    "to_or_outside": 0.25,
    "start_percent": 0.0,
    "end_percent": 0.5,
    "points": "0:1, 0.5:0.3, 1:0",
    "interpolation": "linear",
}
ROUTE = "/anyadapter/schedule"


def prompt(**widgets: Any) -> dict[str, Any]:
    return {
        "schedule": node("AnyAdapterSchedule", **WIDGETS | widgets),
        "shown": node("PreviewAny", source=["schedule", 0]),
    }


def curve(server: ComfyServer, **widgets: Any) -> tuple[int, Any]:
    return server.get(f"{ROUTE}?{urlencode(WIDGETS | widgets)}")


def test_the_page_is_told_of_a_node_with_a_schedule_to_give(server: ComfyServer):
    info = server.object_info("AnyAdapterSchedule")
    assert info["display_name"] == "Adapter Schedule"
    assert info["category"] == "Any Adapter"
    assert info["output"] == ["ANYADAPTER_SCHEDULE"]
    assert list(info["input"]["required"]) == list(WIDGETS)
    assert all(options["tooltip"] for _, options in info["input"]["required"].values())
    for name in ("start_percent", "end_percent"):
        options = info["input"]["required"][name][1]
        assert (options["min"], options["max"], options["step"]) == (0.0, 1.0, 0.001)


def test_a_prompt_gets_the_schedule(server: ComfyServer):
    (text,) = server.run(prompt(preset="points"))["outputs"]["shown"]["text"]
    assert "((0.0, 1.0), (0.5, 0.3), (1.0, 0.0))" in text


def test_bad_points_stop_a_prompt_with_their_own_message(server: ComfyServer):
    with pytest.raises(PromptFailedError) as failure:
        server.run(prompt(preset="points", points="0:1\n0.5=0.3"))
    assert failure.value.node_id == "schedule"
    assert 'Point 2 in line 2 ("0.5=0.3") has no colon' in failure.value.exception_message


def test_points_that_a_preset_does_not_read_stop_nothing(server: ComfyServer):
    server.run(prompt(preset="constant", points="nonsense"))


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_route_answers_with_a_curve_to_draw(server: ComfyServer, prefix: str):
    status, answer = server.get(f"{prefix}{ROUTE}?{urlencode(WIDGETS)}")
    assert status == 200
    assert (answer["low"], answer["high"]) == (0.25, 1.0)
    assert answer["points"][0] == [0.0, 1.0]
    assert [point for point in answer["points"] if point[0] == 0.5] == [[0.5, 1.0], [0.5, 0.25]]
    assert answer["points"][-1] == [1.0, 0.25]


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"preset": "points", "points": "0:1, x"}, 'Point 2 in line 1 ("x") has no colon'),
        ({"start_percent": 0.6}, "The start (0.6) lies after the end (0.5)."),
        ({"end_percent": "late"}, 'end_percent is "late", which is not a number.'),
        ({"from_or_inside": "nan"}, "must be a number from"),
        ({"preset": "sine"}, 'There is no preset "sine".'),
    ],
)
def test_the_route_refuses_what_is_no_curve(
    server: ComfyServer, widgets: dict[str, Any], message: str
):
    status, answer = curve(server, **widgets)
    assert status == 400
    assert message in answer["error"]


def test_the_route_names_what_a_request_lacks(server: ComfyServer):
    assert server.get(f"{ROUTE}?preset=constant") == (
        400,
        {"error": "The request lacks start_percent."},
    )
