"""Presets of block weights: those that come with the pack, and the user's own."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from ...algorithms.binding import families
from ...algorithms.errors import StorageError
from ...algorithms.presets import PRESETS, Preset, presets_for
from ..host.blocks import blocks_in_use
from ..host.files import load_adapter
from ..host.preset_files import (
    delete_preset,
    export_presets,
    import_presets,
    own_presets,
    save_preset,
)
from ..host.web import on
from .answers import as_json, flag, json_body, string, text

LARGEST_PRESET = 1 << 18
"""Bytes of a request, in which a character can take six."""
LARGEST_IMPORT = 1 << 23


def register() -> None:
    """Makes the host's server answer."""
    on("GET", "/anyadapter/presets", presets)
    on("POST", "/anyadapter/presets", save)
    on("DELETE", "/anyadapter/presets", delete)
    on("GET", "/anyadapter/presets/export", export)
    on("POST", "/anyadapter/presets/import", import_)


async def presets(request: web.Request) -> web.Response:
    """Answers with the presets that mean something for a file, or with all, and the user's."""
    return await asyncio.to_thread(as_json, lambda: _presets(request.query))


async def save(request: web.Request) -> web.Response:
    """Saves a preset of the user's."""
    content = await json_body(request, LARGEST_PRESET)
    return await asyncio.to_thread(as_json, lambda: _save(content))


async def delete(request: web.Request) -> web.Response:
    """Deletes a preset of the user's."""
    return await asyncio.to_thread(as_json, lambda: _delete(request.query))


async def export(request: web.Request) -> web.Response:
    """Answers with all presets of the user's, as a file that can be imported."""
    del request
    return await asyncio.to_thread(as_json, export_presets)


async def import_(request: web.Request) -> web.Response:
    """Saves presets from a file, and answers with what became of each."""
    content = await json_body(request, LARGEST_IMPORT)
    return await asyncio.to_thread(as_json, lambda: _import(content))


def _presets(query: Mapping[str, str]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "presets": [_entry(one) for one in _fitting(query.get("adapter", ""))]
    }
    try:
        own = own_presets()
    except StorageError as error:
        return {**answer, "error": str(error)}  # the others can be used all the same
    answer["presets"] += [{"name": name, "text": own[name], "own": True} for name in own]
    return answer


def _fitting(adapter: str) -> Iterable[Preset]:
    """Returns the presets of the pack for a file, or all of them."""
    if not adapter:
        return PRESETS
    adapter_set = load_adapter(adapter)
    made_for, _ = families(adapter_set, [])
    groups = blocks_in_use(adapter, adapter_set).groups
    return presets_for(made_for and made_for.name, groups)


def _entry(preset: Preset) -> dict[str, Any]:
    return {"name": preset.name, "text": preset.text, "own": False}


def _save(content: Mapping[str, Any]) -> dict[str, Any]:
    replace = flag(content, "replace")
    return {"name": save_preset(string(content, "name"), string(content, "text"), replace=replace)}


def _delete(query: Mapping[str, str]) -> dict[str, Any]:
    delete_preset(text(query, "name"))
    return {}


def _import(content: Mapping[str, Any]) -> dict[str, Any]:
    imported = import_presets(string(content, "text"), replace=flag(content, "replace"))
    return {
        "taken": imported.taken,
        "already": imported.already,
        "refused": imported.refused,
    }
