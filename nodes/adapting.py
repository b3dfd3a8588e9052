"""Puts the adapters of a file on a model and its text encoders, and says what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..algorithms.binding import Binding, causes, families, require_match
from ..algorithms.block_weights import BlockWeights, PlacedWeights, weighted
from ..algorithms.errors import AdapterError, listed
from ..algorithms.families import in_text_encoder
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.keymap import KeyMap
from ..algorithms.report import Coverage, report
from ..algorithms.schedule import Schedule
from ..algorithms.strength import Dial
from .host.applying import Applied, Mode, apply
from .host.bindings import binding_of
from .host.blocks import all_blocks, file_blocks, remember_use
from .host.embeddings import offer
from .host.files import load_adapter
from .host.keymaps import diffusion_model_key_map, text_encoder_key_map
from .host.memory import AUTOMATIC
from .host.messages import ReadingBar
from .host.preset_files import preset_text

MODEL = "diffusion model"
CLIP = "text encoder"
KEY_MAPS = {MODEL: diffusion_model_key_map, CLIP: text_encoder_key_map}


def key_maps_of(model: Any, clip: Any) -> dict[str, KeyMap]:
    """Returns the key maps of what is connected of a MODEL and a CLIP."""
    parts = {MODEL: model, CLIP: clip}
    return {name: KEY_MAPS[name](part) for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class Wish:
    """What a user wants of one adapter file."""

    adapter: str
    """Its name in the host's list, or that of `trained`."""
    strength_model: float = 1.0
    strength_clip: float = 1.0
    mode: Mode = "hook"
    rank: int = 0
    """Of DyLoRA: uses the first ranks only; 0 for all."""
    corrections: bool = True
    """Whether to depart from other loaders where the header proves them wrong."""
    schedule: Schedule | None = None
    on_request: bool = False
    """Whether it acts only on conditionings that ask for it."""
    memory_mb: int = AUTOMATIC
    """For weights that hooks have built; -1 for a twentieth of what is free."""
    blocks: str = ""
    """Weights of blocks, as text; empty for all at 1."""
    seed: int = 0
    """Of the random weights of blocks."""
    trained: AdapterSet | None = None
    """Comes from the graph, and is used in place of a file."""


@dataclass(frozen=True)
class Adapted:
    """The parts with their adapters, and what the user is told."""

    model: Any
    clip: Any
    report: str


def adapt(wish: Wish, model: Any, clip: Any) -> Adapted:
    """Returns clones of a MODEL and a CLIP with the adapters of a file.

    A part that is None, at strength 0, or that the file does not touch comes back as it is.

    Raises:
        AdapterError: The file cannot be read, or does not fit; nothing is connected; the wishes
            contradict each other.
    """
    parts: dict[str, Any] = {MODEL: model, CLIP: clip}
    strengths = {MODEL: wish.strength_model, CLIP: wish.strength_clip}
    if wish.mode == "patch" and (wish.schedule is not None or wish.on_request):
        raise AdapterError(
            "A patched weight is the same at every step and for every conditioning: for a "
            "schedule, or an adapter of some conditionings, choose mode hook."
        )
    dials = {
        MODEL: Dial(wish.strength_model, wish.adapter, wish.schedule, wish.on_request),
        CLIP: Dial(wish.strength_clip, wish.adapter),
    }
    weights = BlockWeights.parse(wish.blocks, preset_text) if wish.blocks.strip() else None
    connected = [name for name, part in parts.items() if part is not None]
    if not connected:
        raise AdapterError("There is nothing to adapt: connect a model or a CLIP.")
    if all(strengths[name] == 0 for name in connected):
        return Adapted(model, clip, f"Strength 0: {wish.adapter} was not read.")
    adapter_set = _wished(wish)
    notes: list[str] = []
    key_maps = key_maps_of(model, clip)
    bindings: dict[str, Binding] = {}
    for name, key_map in key_maps.items():
        try:
            bindings[name] = binding_of(adapter_set, key_map)
        except AdapterError as error:
            if strengths[name] != 0:
                raise
            bindings[name] = Binding(())
            notes.append(f"At strength 0 the {name} is left alone; it would not fit: {error}")
    homeless = require_match(adapter_set, [*bindings.values()], [*key_maps.values()])
    if wish.trained is None:
        remember_use(wish.adapter, key_maps.get(MODEL), key_maps.get(CLIP))
    if weights is not None:
        blocks = all_blocks(adapter_set, key_maps.get(MODEL), key_maps.get(CLIP))
        placed = weights.on(blocks, wish.seed)
        bindings = _weighted(bindings, placed, adapter_set)
        notes += [f"Weights of blocks: {placed.text() or 'all 1'}.", *placed.notes]
    if homeless:
        notes += _other_family(adapter_set, [*key_maps.values()])
    coverage: list[Coverage] = []
    for name, binding in bindings.items():
        parts[name], applied = _adapted(parts[name], binding, dials[name], wish)
        coverage.append(_coverage(name, binding, applied, homeless))
        notes += _limits(applied, dials[name])
        if strengths[name] == 0:
            notes.append(f"The {name} is left alone: its strength is 0.")
    if adapter_set.embeddings:
        parts[CLIP], sentences = _embeddings(adapter_set, parts[CLIP])
        notes += sentences
    causes_found = causes(adapter_set, homeless, key_maps.get(MODEL), key_maps.get(CLIP))
    text = report(adapter_set, coverage, causes_found, notes)
    return Adapted(parts[MODEL], parts[CLIP], text)


def _wished(wish: Wish) -> AdapterSet:
    """Returns what comes from the graph, or the file."""
    if wish.trained is not None:
        return wish.trained.cut(wish.rank)
    return load_adapter(
        wish.adapter, wish.rank, corrections=wish.corrections, progress=ReadingBar()
    )


def _weighted(
    bindings: Mapping[str, Binding], weights: PlacedWeights, adapter_set: AdapterSet
) -> dict[str, Binding]:
    """Returns the bindings with the factors of their blocks."""
    by_name = file_blocks(adapter_set).places
    return {
        name: replace(binding, bound=weighted(binding.bound, weights, by_name))
        for name, binding in bindings.items()
    }


def _adapted(part: Any, binding: Binding, dial: Dial, wish: Wish) -> tuple[Any, Applied]:
    """Returns a clone of a MODEL or CLIP with the adapters, or itself where there is none."""
    if dial.strength == 0 or not binding.bound:
        return part, Applied()
    adapted = part.clone()
    patcher = getattr(adapted, "patcher", adapted)
    return adapted, apply(patcher, binding.bound, dial, wish.mode, wish.memory_mb)


def _coverage(part: str, binding: Binding, applied: Applied, homeless: Sequence[str]) -> Coverage:
    """Returns what became of a file in one part of the model."""
    missing = [module for module in homeless if in_text_encoder(module) == (part == CLIP)]
    fitting = {item.module for item in binding.bound}
    total = len(fitting) + len(binding.misfits) + len(missing)
    return Coverage(part, applied.layers, total, applied.unhooked, binding.misfits)


def _other_family(adapter_set: AdapterSet, key_maps: list[KeyMap]) -> list[str]:
    """Returns a warning if parts of a file fit although it was made for another family."""
    made_for, model = families(adapter_set, key_maps)
    if made_for is None or model is None or made_for == model:
        return []
    return [
        f"The file was made for {made_for.name}, the model is {model.name}: "
        "only what fits is applied."
    ]


def _embeddings(adapter_set: AdapterSet, clip: Any) -> tuple[Any, list[str]]:
    """Returns the CLIP with the embeddings of the file, and what was done with them."""
    names = list(adapter_set.embeddings)
    if clip is None:
        return clip, [f"Embeddings of the file not offered, no CLIP connected: {listed(names)}."]
    clip, offered, refused = offer(clip, adapter_set.embeddings)
    notes: list[str] = []
    if offered:
        words = [f"embedding:{name}" for name in offered]
        notes.append(f"Embeddings of the file, to use in a prompt: {listed(words)}.")
    if refused:
        notes.append(f"Embeddings of the file that this CLIP does not take: {listed(refused)}.")
    return clip, notes


def _limits(applied: Applied, dial: Dial) -> list[str]:
    """Returns what neither hooks nor patches could do, and which of the user's wishes it breaks."""
    notes: list[str] = []
    if applied.homeless_biases:
        notes.append(
            f"No bias in the model for {listed(applied.homeless_biases)}: mode patch cannot add "
            "one, mode hook can."
        )
    if applied.unhooked and (dial.schedule is not None or dial.on_request):
        notes.append(
            "What is patched follows no schedule and acts on every conditioning: "
            f"{listed(applied.unhooked)}."
        )
    return notes
