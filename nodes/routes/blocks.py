"""The blocks that a file touches and how strongly, and what a text of block weights says of them."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ...algorithms.analysis.norms import joined
from ...algorithms.binding import families
from ...algorithms.block_weights import BlockWeights
from ...algorithms.families.blocks import BlockMap
from ...algorithms.families.parts import in_order
from ..host.blocks import blocks_in_use, energies
from ..host.files import load_adapter
from ..host.preset_files import preset_text
from ..host.web import on
from .answers import as_json, text, whole_number

TITLES = {"L": "CLIP-L", "G": "CLIP-G", "H": "CLIP-H", "T": "T5", "LM": "Language model"}
"""Groups whose names are short, for people."""


def register() -> None:
    """Makes the host's server answer."""
    on("GET", "/anyadapter/blocks", blocks)
    on("GET", "/anyadapter/block_weights", block_weights)


async def blocks(request: web.Request) -> web.Response:
    """Answers with the groups, blocks and parts of a file, each with the norm of its change."""
    return await asyncio.to_thread(as_json, lambda: _blocks(request.query))


async def block_weights(request: web.Request) -> web.Response:
    """Answers with the weights of a text on the blocks of a file, or with what is wrong in it."""
    return await asyncio.to_thread(as_json, lambda: _weights(request.query))


def _blocks(query: Mapping[str, str]) -> dict[str, Any]:
    adapter = text(query, "adapter")
    adapter_set = load_adapter(adapter)
    found = blocks_in_use(adapter, adapter_set)
    made_for, _ = families(adapter_set, [])
    norms = energies(adapter_set)
    by_part: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for module, place in found.places.items():
        by_part[place.block][place.part].append(norms[module])
    return {
        "family": made_for and made_for.name,
        "groups": [
            {
                "name": group.name,
                "title": TITLES.get(group.name, group.name),
                "part": group.section,
                "blocks": [_block(block, by_part.get(block, {})) for block in group.blocks],
            }
            for group in found.groups
        ],
    }


def _block(name: str, parts: Mapping[str, list[float | None]]) -> dict[str, Any]:
    everything = [norm for norms in parts.values() for norm in norms]
    return {
        "name": name,
        "touched": bool(parts),
        "energy": joined(everything),
        "parts": [
            {"name": part, "touched": True, "energy": joined(norms)}
            for part, norms in sorted(parts.items(), key=lambda one: in_order(one[0]))
        ],
    }


def _weights(query: Mapping[str, str]) -> dict[str, Any]:
    adapter = text(query, "adapter")
    found: BlockMap = blocks_in_use(adapter, load_adapter(adapter))
    seed = whole_number(query, "seed", 0)
    placed = BlockWeights.parse(text(query, "text"), preset_text).on(found, seed)
    parts: dict[str, float] = {}
    for place in sorted(set(found.places.values()), key=lambda one: (one.block, one.part)):
        weight = placed.of_part(place.block, place.part)
        if weight != placed.of_block(place.block):
            parts[f"{place.block}.{place.part}"] = weight
    notes = list(placed.notes)
    if placed.by_layer:
        notes.append("Weights of single layers are in force, and not shown by sliders.")
    return {
        "values": {block: placed.of_block(block) for block in found.blocks},
        "parts": parts,
        "layers": placed.by_layer,
        "notes": notes,
    }
