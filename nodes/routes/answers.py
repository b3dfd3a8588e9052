"""Reads what a request asks and makes JSON of the answer, or of what is wrong with it."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from ...algorithms.errors import (
    AdapterError,
    FileError,
    NoRunError,
    PresetMissingError,
    PresetTakenError,
    RequestError,
    StorageError,
)

STATUS: tuple[tuple[type[AdapterError], int], ...] = (
    (FileError, 404),
    (PresetMissingError, 404),
    (NoRunError, 404),
    (PresetTakenError, 409),
    (StorageError, 500),
    (AdapterError, 400),
)
"""Kind of error -> status, the first that fits."""


def as_json(answer: Callable[[], Any]) -> web.Response:
    """Returns what a function gives as JSON, or its error with the status that goes with it."""
    try:
        return web.json_response(answer())
    except AdapterError as error:
        status = next(status for kind, status in STATUS if isinstance(error, kind))
        return web.json_response({"error": str(error)}, status=status)


async def json_body(request: web.Request, largest: int) -> Mapping[str, Any]:
    """Returns the JSON object that a request has sent.

    Args:
        request: Its type has to be JSON, which a form of another site cannot send.
        largest: So many bytes are read at most.

    Raises:
        web.HTTPClientError: It is no JSON object, or larger.
    """
    if request.content_type != "application/json":
        error = "The request has to be application/json."
        raise web.HTTPUnsupportedMediaType(**_as_answer(error))
    received = bytearray()
    async for piece in request.content.iter_any():
        received += piece
        if len(received) > largest:
            raise web.HTTPRequestEntityTooLarge(
                largest, len(received), **_as_answer(f"The request has more than {largest} bytes.")
            )
    try:
        content = json.loads(received)
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(**_as_answer(f"The request is no JSON: {error}.")) from None
    if not isinstance(content, dict):
        raise web.HTTPBadRequest(**_as_answer("The request is no JSON object."))
    return content


def _as_answer(error: str) -> dict[str, Any]:
    return {"text": json.dumps({"error": error}), "content_type": "application/json"}


def string(content: Mapping[str, Any], name: str) -> str:
    """Returns a text of a JSON object.

    Raises:
        RequestError: It is missing, or something else.
    """
    value = content.get(name)
    if not isinstance(value, str):
        raise RequestError(f"The request needs {name} as a text.")
    return value


def flag(content: Mapping[str, Any], name: str) -> bool:
    """Returns a value of a JSON object that is true or false; false where it is missing.

    Raises:
        RequestError: It is something else.
    """
    value = content.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"The request needs {name} as true or false.")
    return value


def text(query: Mapping[str, str], name: str) -> str:
    """Returns a value of a request.

    Raises:
        RequestError: It is missing.
    """
    if name not in query:
        raise RequestError(f"The request lacks {name}.")
    return query[name]


def whole_number(query: Mapping[str, str], name: str, default: int) -> int:
    """Returns a value of a request as a whole number, or a default where it is missing.

    Raises:
        RequestError: It is no whole number.
    """
    value = query.get(name, str(default))
    if not re.fullmatch(r"-?\d{1,20}", value):
        raise RequestError(f'{name} is "{value[:40]}", which is not a whole number.')
    return int(value)


def number(query: Mapping[str, str], name: str) -> float:
    """Returns a value of a request as a number.

    Raises:
        RequestError: It is missing, or no number.
    """
    value = text(query, name)
    try:
        return float(value)
    except ValueError:
        raise RequestError(f'{name} is "{value}", which is not a number.') from None
