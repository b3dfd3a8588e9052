"""Places the adapters of a set on the models that are connected, for whoever makes others of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..algorithms.adapters import Adapter
from ..algorithms.adapters.dora import Dora
from ..algorithms.binding import Binding, Bound, require_match
from ..algorithms.block_weights import BlockWeights
from ..algorithms.editing.sites import Sited
from ..algorithms.errors import AdapterError, counted, listed
from ..algorithms.families import in_text_encoder
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.keymap import KeyMap
from .adapting import CLIP, MODEL, key_maps_of
from .host.bases import base_of
from .host.bindings import binding_of
from .host.blocks import placed_file
from .host.preset_files import preset_text
from .host.weights import read_weights


@dataclass(frozen=True, eq=False)
class Placing:
    """Where the adapters of a set are."""

    sites: tuple[Sited, ...]
    key_maps: Mapping[str, KeyMap]
    """Of what is connected: `diffusion model` and `text encoder`."""
    notes: tuple[str, ...] = ()
    """Sentences on what has no place there."""


def placed(
    adapter_set: AdapterSet,
    model: Any = None,
    clip: Any = None,
    *,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    blocks: str = "",
    seed: int = 0,
) -> Placing:
    """Returns every adapter of a set with its layer.

    What means nothing in the parts that are connected, or does not fit, keeps its name alone, as
    long as something of the set has a place, or would have one in a part that is not connected.

    Args:
        adapter_set: Completed.
        model: The MODEL that it is for, or None.
        clip: The CLIP that it is for, or None.
        strength_model: Of adapters of the diffusion model.
        strength_clip: Of adapters of text encoders.
        blocks: Weights of blocks, as text; empty for all at 1.
        seed: Of random weights of blocks.

    Raises:
        BlockWeightsError: The text of the weights means nothing.
        NoMatchError: The set is for what is connected, and nothing of it means anything there.
    """
    parts = {MODEL: model, CLIP: clip}
    strengths = {MODEL: strength_model, CLIP: strength_clip}
    key_maps = key_maps_of(model, clip)
    bindings, notes = _bindings(adapter_set, key_maps)
    factors, more = _factors(adapter_set, key_maps, bindings, blocks, seed)
    homes: dict[tuple[str, int], tuple[str, Bound]] = {}
    for part, binding in bindings.items():
        for item in binding.bound:
            number = _order(adapter_set.adapters[item.module], item)
            homes[item.module, number] = part, item
    weights = {part: read_weights(parts[part]) for part in bindings}
    sites: list[Sited] = []
    for module, adapters in adapter_set.adapters.items():
        by_name = CLIP if in_text_encoder(module) else MODEL
        factor = factors.get(module, 1.0)
        for number, adapter in enumerate(adapters):
            home = homes.get((module, number))
            if home is None:
                sites.append(Sited(module, adapter, strengths[by_name] * factor))
                continue
            part, item = home
            shape = item.target.shape(key_maps[part].shapes[item.target.weight])
            read = partial(base_of, weights[part], item)
            sites.append(
                Sited(module, item.adapter, strengths[part] * factor, item.target, shape, read)
            )
    return Placing(tuple(sites), key_maps, (*notes, *more))


def _order(adapters: Sequence[Adapter], item: Bound) -> int:
    """Returns which adapter of its module an item is: binding may have settled the axis of a DoRA."""
    itself = _without_magnitudes(item.adapter)
    return next(
        number for number, adapter in enumerate(adapters) if _without_magnitudes(adapter) is itself
    )


def _without_magnitudes(adapter: Adapter) -> Adapter:
    return adapter.inner if isinstance(adapter, Dora) else adapter


def _bindings(
    adapter_set: AdapterSet, key_maps: Mapping[str, KeyMap]
) -> tuple[dict[str, Binding], list[str]]:
    """Returns the places in each part, and a sentence for what has none.

    Raises:
        NoMatchError: The set is for these parts, and nothing of it means anything there.
    """
    bindings: dict[str, Binding] = {}
    notes: list[str] = []
    for part, key_map in key_maps.items():
        try:
            bindings[part] = binding_of(adapter_set, key_map)
        except AdapterError as error:
            notes.append(f"{adapter_set.source} does not fit the {part}: {error}")
            continue
        misfits = bindings[part].misfits
        if misfits:
            notes.append(f"Does not fit the {part}: {listed(misfits, 3, '; ')}.")
    of_parts = {CLIP if in_text_encoder(module) else MODEL for module in adapter_set.adapters}
    if of_parts <= bindings.keys() and not any(one.misfits for one in bindings.values()):
        require_match(adapter_set, [*bindings.values()], [key_maps[part] for part in bindings])
    if bindings:
        nowhere = set.intersection(*(set(one.unmatched) for one in bindings.values()))
        homeless = [
            module
            for module in adapter_set.adapters
            if module in nowhere and (CLIP if in_text_encoder(module) else MODEL) in bindings
        ]
        if homeless:
            notes.append(
                f"{adapter_set.source}: {counted(len(homeless), 'layer')} mean nothing in what is "
                f"connected, and go by name: {listed(homeless, 3)}."
            )
    return bindings, notes


def _factors(
    adapter_set: AdapterSet,
    key_maps: Mapping[str, KeyMap],
    bindings: Mapping[str, Binding],
    blocks: str,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Returns module name -> the weight of its block, those of 1 left out, and what is to be told."""
    if not blocks.strip():
        return {}, []
    places = placed_file(adapter_set, key_maps.get(MODEL), key_maps.get(CLIP), bindings.values())
    weights = BlockWeights.parse(blocks, preset_text).on(places, seed)
    targets = {item.module: item.target for one in bindings.values() for item in one.bound}
    factors: dict[str, float] = {}
    for module in adapter_set.adapters:
        names = (module, targets[module].weight) if module in targets else (module,)
        factors[module] = weights.of_layer(places.places[module], names)
    told = f"Weights of blocks of {adapter_set.source}: {weights.text() or 'all 1'}."
    return factors, [told, *weights.notes]
