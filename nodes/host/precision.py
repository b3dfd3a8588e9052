"""What a model computes in while it is trained."""

from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...algorithms.training.config import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def compute_in(patcher: ModelPatcher, precision: Precision) -> None:
    """Sets what a clone computes in, before it is loaded.

    Gradients of float16 leave its range easily: `automatic` takes bfloat16 in its place where the
    device has it, and leaves everything else as the host chose it.
    """
    wanted = DTYPES.get(precision)
    if wanted is None and computed_in(patcher) == torch.float16:
        has_bf16 = comfy.model_management.should_use_bf16(patcher.load_device)
        wanted = torch.bfloat16 if has_bf16 else None
    if wanted is not None and wanted != computed_in(patcher):
        patcher.set_model_compute_dtype(wanted)


def computed_in(patcher: ModelPatcher) -> torch.dtype:
    """Returns the dtype in which a model computes once it is loaded."""
    model: Any = patcher.model
    return patcher.get_model_object("manual_cast_dtype") or model.get_dtype()


def precision_of(patcher: ModelPatcher) -> Precision:
    """Returns the name of that dtype."""
    dtype = computed_in(patcher)
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    return "automatic"
