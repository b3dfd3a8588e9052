"""The layers of ComfyUI's models that can be trained."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...algorithms.layers import Layer
from ...algorithms.training.targets import Targets, targets_of_clip, targets_of_model
from .bases import module_of
from .keymaps import diffusion_model_key_map, text_encoder_key_map
from .layers import layer_of


def model_targets(model: ModelPatcher) -> Targets:
    """Returns what of a diffusion model can be trained."""
    return targets_of_model(diffusion_model_key_map(model), _layers(model))


def clip_targets(clip: CLIP) -> Targets:
    """Returns what of the text encoders can be trained."""
    return targets_of_clip(text_encoder_key_map(clip), _layers(clip))


def _layers(part: Any) -> dict[str, Layer]:
    """Returns the path of each module -> the layer that it is, of a MODEL or CLIP."""
    found = ((path, layer_of(module)) for path, module in module_of(part).named_modules())
    return {path: layer for path, layer in found if layer is not None}
