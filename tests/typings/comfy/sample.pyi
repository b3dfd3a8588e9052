from typing import Any

from torch import Tensor

from .model_patcher import ModelPatcher

def prepare_noise(latent_image: Tensor, seed: int) -> Tensor: ...
def fix_empty_latent_channels(model: ModelPatcher, latent_image: Tensor) -> Tensor: ...
def sample(
    model: ModelPatcher,
    noise: Tensor,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    *,
    seed: int | None = None,
    disable_pbar: bool = False,
) -> Tensor: ...
