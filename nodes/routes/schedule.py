"""The curve of an Adapter Schedule."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ...algorithms.schedule import schedule_from_choices
from ..host.web import on
from .answers import as_json, number, text

POINTS_OF_A_CURVE = 101


def register() -> None:
    """Makes the host's server answer."""
    on("GET", "/anyadapter/schedule", schedule_curve)


async def schedule_curve(request: web.Request) -> web.Response:
    """Answers with the curve of the widgets of an Adapter Schedule, or with what is wrong in them."""
    return as_json(lambda: _curve(request.query))


def _curve(query: Mapping[str, str]) -> dict[str, Any]:
    schedule = schedule_from_choices(
        text(query, "preset"),
        start=number(query, "start_percent"),
        end=number(query, "end_percent"),
        from_or_inside=number(query, "from_or_inside"),
        to_or_outside=number(query, "to_or_outside"),
        points=text(query, "points"),
        interpolation=text(query, "interpolation"),
    )
    points = schedule.sample(POINTS_OF_A_CURVE)
    values = [value for _, value in points]
    return {"points": points, "low": min(values), "high": max(values)}
