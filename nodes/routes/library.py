"""The list of adapter files, all about one of them, and its picture."""

import asyncio
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from ..host.library import Entry, Preview, all_entries, entry_and_facts, preview_of
from ..host.web import on
from .answers import as_json, text

PICTURE_HEADERS = {
    "Cache-Control": "no-cache",  # it may be kept, and is asked for again by its time
    "X-Content-Type-Options": "nosniff",
}


def register() -> None:
    """Makes the host's server answer."""
    on("GET", "/anyadapter/adapters", adapters)
    on("GET", "/anyadapter/adapter", adapter)
    on("GET", "/anyadapter/preview", preview)


async def adapters(request: web.Request) -> web.Response:
    """Answers with all files, and how many of them are still being read."""
    del request
    return await asyncio.to_thread(as_json, _listing)


async def adapter(request: web.Request) -> web.Response:
    """Answers with all about one file."""
    return await asyncio.to_thread(as_json, lambda: _about(text(request.query, "name")))


async def preview(request: web.Request) -> web.StreamResponse:
    """Answers with the picture of a file."""
    found: list[Preview] = []

    def find() -> None:
        found.append(preview_of(text(request.query, "name")))

    refusal = await asyncio.to_thread(as_json, find)
    return _picture(found[0], request) if found else refusal


def _picture(found: Preview, request: web.Request) -> web.StreamResponse:
    headers = PICTURE_HEADERS | {"Content-Type": found.content_type}
    if found.path is not None:
        return web.FileResponse(found.path, headers=headers)
    modified = datetime.fromtimestamp(int(found.modified), timezone.utc)
    known = request.if_modified_since
    fresh = known is not None and modified <= known
    answer = web.Response(
        status=304 if fresh else 200, body=None if fresh else found.data, headers=headers
    )
    answer.last_modified = modified
    return answer


def _listing() -> dict[str, Any]:
    entries = all_entries()
    pending = sum(entry.summary is None for entry in entries)
    return {"adapters": [_line(entry) for entry in entries], "pending": pending}


def _about(name: str) -> dict[str, Any]:
    entry, facts = entry_and_facts(name)
    return _line(entry) | {
        "description": asdict(facts.description),
        "layers_model": facts.layers_model,
        "layers_text_encoders": facts.layers_text_encoders,
        "unclaimed": facts.unclaimed,
        "notes": facts.notes,
        "metadata": facts.metadata,
    }


def _line(entry: Entry) -> dict[str, Any]:
    told = entry.summary
    return {
        "name": entry.name,
        "size": entry.size_bytes,
        "modified": entry.modified,
        "method": told.method if told else None,
        "rank": told.rank if told else "",
        "family": told.family if told else None,
        "base_model": told.base_model if told else "",
        "preview": entry.preview,
        "error": told.error if told else "",
        "read": told is not None,
    }
