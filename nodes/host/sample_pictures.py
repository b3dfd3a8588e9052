"""Draws sample pictures in the middle of a run, with the host's own sampler and VAE."""

from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...algorithms.training.config import SamplesConfig
from .prediction import Conditioning


def samplers() -> list[str]:
    """Returns the names of the host's samplers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    """Returns the names of the host's schedules."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def draw(
    patcher: ModelPatcher,
    vae: VAE,
    positive: Conditioning,
    negative: Conditioning,
    settings: SamplesConfig,
) -> Tensor:
    """Returns one picture `[1, H, W, 3]`, 0 to 1; torch's global generator is as it was after it."""
    downscale = vae.spacial_compression_encode()
    empty = torch.zeros(
        1,
        int(getattr(vae, "latent_channels", 4)),
        settings.height_px // downscale,
        settings.width_px // downscale,
    )
    latent = comfy.sample.fix_empty_latent_channels(patcher, empty)
    devices: Sequence[Any] = [patcher.load_device] if patcher.load_device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        noise = comfy.sample.prepare_noise(latent, settings.seed)
        drawn = comfy.sample.sample(
            patcher,
            noise,
            settings.steps,
            settings.cfg,
            settings.sampler,
            settings.scheduler,
            _own(positive),
            _own(negative),
            latent,
            seed=settings.seed,
            disable_pbar=True,
        )
        picture = vae.decode(drawn)
    if picture.ndim == 5:  # of a video: its first picture
        picture = picture[:, 0]
    return picture[:1, :, :, :3].detach().float().cpu()


def _own(conditioning: Conditioning) -> list[list[Any]]:
    """Returns a copy that the host may write to."""
    return [[tensor, dict(options)] for tensor, options in conditioning]
