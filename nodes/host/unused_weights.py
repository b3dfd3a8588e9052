"""Weights that ComfyUI makes, and neither loads nor uses."""

from typing import Any

from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel

PROJECTION = "clip_l.transformer.text_projection.weight"
"""No checkpoint of SD 1.5 or SDXL has it: it holds what was in the memory before."""


def unused_weights(part: Any) -> set[str]:
    """Returns the keys of such weights in a MODEL or CLIP."""
    encoders = getattr(part, "cond_stage_model", None)
    return {PROJECTION} if isinstance(encoders, SD1ClipModel | SDXLClipModel) else set()
