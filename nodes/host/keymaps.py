"""ComfyUI's own key maps as `KeyMap`, with every further name that files have."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ...algorithms.families import (
    Shapes,
    detect,
    diffusion_model_part,
    sizes_of,
    text_encoder_parts,
)
from ...algorithms.keymap import KeyMap, Target
from ...algorithms.layers import Rows, swap_halves
from .layers import shapes_of

# They hold names and shapes only, and building one takes up to 0.1 s.
_known: WeakKeyDictionary[nn.Module, KeyMap] = WeakKeyDictionary()


def diffusion_model_key_map(model: ModelPatcher) -> KeyMap:
    """Returns which module names mean which weights of a diffusion model."""
    return _once(model, _of_diffusion_model)


def text_encoder_key_map(clip: CLIP) -> KeyMap:
    """Returns which module names mean which weights of the text encoders."""
    return _once(clip.patcher, _of_text_encoders)


def _once(patcher: ModelPatcher, build: Callable[[ModelPatcher], KeyMap]) -> KeyMap:
    key_map = _known.get(patcher.model)
    if key_map is None:
        key_map = _known[patcher.model] = build(patcher)
    return key_map


def _of_diffusion_model(patcher: ModelPatcher) -> KeyMap:
    shapes = shapes_of(patcher)
    pairs = tuple(_pairs(comfy.lora.model_lora_keys_unet(patcher.model, {}), shapes))
    part = diffusion_model_part(shapes, pairs, detect(sizes_of(shapes)))
    return KeyMap(pairs, shapes, [part])


def _of_text_encoders(patcher: ModelPatcher) -> KeyMap:
    shapes = shapes_of(patcher)
    pairs = _pairs(comfy.lora.model_lora_keys_clip(patcher.model, {}), shapes)
    return KeyMap(pairs, shapes, text_encoder_parts(shapes))


def _pairs(names: Mapping[str, Any], shapes: Shapes) -> Iterator[tuple[str, Target]]:
    """Translates the host's values: a key, or (key, slice of rows or None[, row order]).

    The host also names weights that this model lacks, and slices beyond the end of others; these
    are left out.
    """
    for name, value in names.items():
        key, part, *order = (value, None) if isinstance(value, str) else value
        if key not in shapes:
            continue
        reorder = _known_order(order[0]) if order else None
        if part is None:
            rows = Rows(0, shapes[key][0], reorder) if reorder else None
        else:
            axis, start, length = part
            if axis != 0 or start + length > shapes[key][0]:
                continue
            rows = Rows(start, length, reorder)
        yield name, Target(key, rows)


def _known_order(reorder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns our own function for the host's if it does the same, so that targets are equal."""
    rows = torch.arange(4)
    return swap_halves if torch.equal(reorder(rows), swap_halves(rows)) else reorder
