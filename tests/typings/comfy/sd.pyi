from torch import nn

from .model_patcher import ModelPatcher

class CLIP:
    patcher: ModelPatcher
    cond_stage_model: nn.Module
    def clone(self) -> CLIP: ...
