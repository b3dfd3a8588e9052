"""Routes and messages of our own on the host's web server."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from aiohttp import web
from server import PromptServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def on(method: Literal["GET", "POST", "DELETE"], path: str, handler: Handler) -> None:
    """Makes `handler` answer a path; does nothing where no server runs."""
    server = getattr(PromptServer, "instance", None)  # set once the server has been made
    if server is not None:
        server.routes.route(method, path)(handler)


def send(event: str, message: Mapping[str, Any]) -> None:
    """Sends JSON to all open pages, from any thread; does nothing where no server runs."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, message)
