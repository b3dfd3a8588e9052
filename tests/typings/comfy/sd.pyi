from typing import Any

from torch import Tensor, dtype, nn

from .model_patcher import ModelPatcher

class CLIP:
    patcher: ModelPatcher
    cond_stage_model: nn.Module
    tokenizer: Any
    def clone(self) -> CLIP: ...

class VAE:
    first_stage_model: nn.Module
    vae_dtype: dtype
    def encode(self, pixel_samples: Tensor) -> Tensor: ...
