from typing import Any

from torch import nn

from .model_patcher import ModelPatcher

class CLIP:
    patcher: ModelPatcher
    cond_stage_model: nn.Module
    tokenizer: Any
    def clone(self) -> CLIP: ...
