"""ComfyUI's own key maps as `KeyMap`."""

from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...algorithms.keymap import KeyMap, Target
from ...algorithms.layers import Rows


def diffusion_model_key_map(model: ModelPatcher) -> KeyMap:
    """Returns which module names mean which weights of a diffusion model."""
    return _key_map(model.model, comfy.lora.model_lora_keys_unet(model.model, {}))


def text_encoder_key_map(clip: CLIP) -> KeyMap:
    """Returns which module names mean which weights of the text encoders."""
    module = clip.cond_stage_model
    return _key_map(module, comfy.lora.model_lora_keys_clip(module, {}))


def _key_map(module: torch.nn.Module, names: Mapping[str, Any]) -> KeyMap:
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    return KeyMap(_pairs(names, shapes), shapes)


def _pairs(
    names: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Target]]:
    """Translates the host's values: a key, or (key, slice of rows or None[, row order]).

    The host also names weights that this model lacks; these are left out.
    """
    for name, value in names.items():
        key, part, *order = (value, None) if isinstance(value, str) else value
        if key not in shapes:
            continue
        reorder = order[0] if order else None
        if part is None:
            rows = Rows(0, shapes[key][0], reorder) if reorder else None
        else:
            axis, start, length = part
            if axis != 0 or start + length > shapes[key][0]:
                continue
            rows = Rows(start, length, reorder)
        yield name, Target(key, rows)
