"""What the page asks the pack over HTTP: check, call, answer.

Anyone on the network may ask, so no route reads a file or changes anything.
"""

from typing import Any

from aiohttp import web

from ..algorithms.errors import AdapterError, ScheduleError
from ..algorithms.schedule import schedule_from_choices
from .host.web import on_get

POINTS_OF_A_CURVE = 101


def register_routes() -> None:
    """Makes the host's server answer our routes."""
    on_get("/anyadapter/schedule", schedule_curve)


async def schedule_curve(request: web.Request) -> web.Response:
    """Answers with the curve of the widgets of an Adapter Schedule, or with what is wrong in them."""
    try:
        return web.json_response(_curve(request.query))
    except AdapterError as error:
        return web.json_response({"error": str(error)}, status=400)


def _curve(query: Any) -> dict[str, Any]:
    schedule = schedule_from_choices(
        _text(query, "preset"),
        start=_number(query, "start_percent"),
        end=_number(query, "end_percent"),
        from_or_inside=_number(query, "from_or_inside"),
        to_or_outside=_number(query, "to_or_outside"),
        points=_text(query, "points"),
        interpolation=_text(query, "interpolation"),
    )
    points = schedule.sample(POINTS_OF_A_CURVE)
    values = [value for _, value in points]
    return {"points": points, "low": min(values), "high": max(values)}


def _text(query: Any, name: str) -> str:
    if name not in query:
        raise ScheduleError(f"The request lacks {name}.")
    return query[name]


def _number(query: Any, name: str) -> float:
    text = _text(query, name)
    try:
        return float(text)
    except ValueError:
        raise ScheduleError(f'{name} is "{text}", which is not a number.') from None
