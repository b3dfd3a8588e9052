"""Reads what a request asks and makes JSON of the answer, or of what is wrong with it."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from ...algorithms.errors import AdapterError, FileError, RequestError


def as_json(answer: Callable[[], Any]) -> web.Response:
    """Returns what a function gives as JSON, or its error with the status that goes with it."""
    try:
        return web.json_response(answer())
    except FileError as error:
        return web.json_response({"error": str(error)}, status=404)
    except AdapterError as error:
        return web.json_response({"error": str(error)}, status=400)


def text(query: Mapping[str, str], name: str) -> str:
    """Returns a value of a request.

    Raises:
        RequestError: It is missing.
    """
    if name not in query:
        raise RequestError(f"The request lacks {name}.")
    return query[name]


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
