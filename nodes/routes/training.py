"""What a training has done so far, and the wish to end it."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ..host.training_view import stop_training, training_of
from ..host.web import on
from .answers import as_json, json_body, string, text

LARGEST_WISH = 1 << 12
"""Bytes of a request."""


def register() -> None:
    """Makes the host's server answer."""
    on("GET", "/anyadapter/training", training)
    on("POST", "/anyadapter/training/stop", stop)


async def training(request: web.Request) -> web.Response:
    """Answers with the newest training of a node, or with null where it has trained nothing yet."""
    return await asyncio.to_thread(as_json, lambda: training_of(text(request.query, "node")))


async def stop(request: web.Request) -> web.Response:
    """Makes a training end after the step it is at, and keep what it has."""
    content = await json_body(request, LARGEST_WISH)
    return as_json(lambda: _stop(content))


def _stop(content: Mapping[str, Any]) -> dict[str, Any]:
    stop_training(string(content, "node"), string(content, "run"))
    return {}
