from typing import Any

from torch import Tensor, dtype, nn

from .model_patcher import ModelPatcher

class CLIP:
    patcher: ModelPatcher
    cond_stage_model: nn.Module
    tokenizer: Any
    def clone(self) -> CLIP: ...
    def tokenize(self, text: str) -> Any: ...
    def encode_from_tokens(
        self, tokens: Any, return_pooled: bool = False, return_dict: bool = False
    ) -> Any: ...

class VAE:
    first_stage_model: nn.Module
    vae_dtype: dtype
    latent_channels: int
    def spacial_compression_encode(self) -> int: ...
    def decode(self, samples: Tensor) -> Tensor: ...
    def encode(self, pixel_samples: Tensor) -> Tensor: ...
