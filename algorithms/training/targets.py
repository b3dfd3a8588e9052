"""What of a model can be trained: its layers, with their names in files and their places in blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..families import Family, Shapes, detect, sizes_of
from ..families.blocks import BlockMap, Place, Section, blocks_of_clip, blocks_of_model
from ..families.flux import FLUX
from ..families.unets import SD1, SD2, SDXL, SDXL_REFINER
from ..keymap import KeyMap, Target
from ..layers import Layer

LayerKind = Literal["linear", "1x1", "kxk", "norm"]
"""A linear layer, a convolution of one point, one of more, or a norm."""

KOHYA = (SD1, SD2, SDXL, SDXL_REFINER, FLUX)
"""Families whose layers are named as sd-scripts does it, `lora_unet_...`, which all tools load. Those
of the others are named as in the host, `diffusion_model. ...`, which is what their trainers write."""


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A layer that can be trained."""

    target: Target
    """Its weight; a fused one (query, key and value of Flux) is one target, and not its parts."""
    name: str
    """Module name in the file that is written."""
    kind: LayerKind
    place: Place
    section: Section
    """Whether it is of the diffusion model or of the text encoders."""
    layer: Layer
    spellings: tuple[str, ...]
    """Every name by which a rule may mean it: in the host with and without what it is part of, in
    the file, in sd-scripts and in diffusers."""


@dataclass(frozen=True, eq=False)
class Targets:
    """All layers of a model that can be trained, in the order in which it registers them."""

    layers: tuple[TargetLayer, ...]
    blocks: BlockMap
    family: Family | None = None
    """Of the diffusion model, if it is known."""

    def joined(self, other: "Targets") -> "Targets":
        """Returns the layers of both, as of a diffusion model and its text encoders."""
        return Targets(
            (*self.layers, *other.layers),
            self.blocks.joined(other.blocks),
            self.family or other.family,
        )


def targets_of_model(key_map: KeyMap, layers: Mapping[str, Layer]) -> Targets:
    """Returns what of a diffusion model can be trained.

    Args:
        key_map: Its names.
        layers: The host's path of a module -> the layer that it is.
    """
    family = detect(sizes_of(key_map.shapes))
    dialect = "kohya" if family in KOHYA else "comfy"
    blocks = blocks_of_model(key_map.shapes)
    found: list[TargetLayer] = []
    for target in _weights(key_map.shapes, layers):
        name = key_map.name(target, dialect)
        if name is not None:
            found.append(_target_layer(key_map, target, name, blocks, "model", layers))
    return Targets(tuple(found), blocks, family)


def targets_of_clip(key_map: KeyMap, layers: Mapping[str, Layer]) -> Targets:
    """Returns what of the text encoders of a CLIP can be trained.

    sd-scripts' names are taken where the host's own loader knows them, and else the host's.

    Args:
        key_map: Their names.
        layers: The host's path of a module -> the layer that it is.
    """
    blocks = blocks_of_clip(key_map.shapes)
    found: list[TargetLayer] = []
    for target in _weights(key_map.shapes, layers):
        kohya = key_map.name(target, "kohya")
        name = kohya if kohya in key_map.names(target) else key_map.name(target, "comfy")
        if name is not None:
            found.append(_target_layer(key_map, target, name, blocks, "clip", layers))
    return Targets(tuple(found), blocks)


def _weights(shapes: Shapes, layers: Mapping[str, Layer]) -> list[Target]:
    targets = (Target(key) for key in shapes if key.endswith(".weight"))
    return [target for target in targets if target.module in layers]


def _target_layer(
    key_map: KeyMap,
    target: Target,
    name: str,
    blocks: BlockMap,
    section: Section,
    layers: Mapping[str, Layer],
) -> TargetLayer:
    layer = layers[target.module]
    dialects = (key_map.name(target, dialect) for dialect in ("kohya", "diffusers"))
    _, _, inside = target.module.partition(".transformer." if section == "clip" else ".")
    spellings = dict.fromkeys((target.module, inside, name, *filter(None, dialects)))
    place = blocks.places[target.weight]
    return TargetLayer(target, name, _kind(layer), place, section, layer, tuple(spellings))


def _kind(layer: Layer) -> LayerKind:
    if layer.kind == "linear":
        return "linear"
    if layer.kind != "conv":
        return "norm"
    return "kxk" if layer.has_kernel else "1x1"
