"""The noise that is put on latents: plain, offset, of several resolutions, and perturbed inputs.

Each function takes one sample, so that its noise does not depend on the others of its batch.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import TrainingError
from ..shapes import Float
from .timesteps import TimestepConfig


@dataclass(frozen=True)
class NoiseConfig(TimestepConfig):
    """How noisy samples are made, and with what noise; names are those of sd-scripts."""

    noise_offset: float = 0.0
    """Noise that is the same all over a channel, in parts of the noise; 0.05 to 0.1 is usual."""
    noise_offset_random_strength: bool = False
    """Draw the offset of each sample between 0 and `noise_offset`."""
    adaptive_noise_scale: float = 0.0
    """Adds this times |mean| of each channel of the latent to the offset."""
    multires_noise_iterations: int = 0
    """Resolutions of added noise; 6 to 10 is usual, 0 for none."""
    multires_noise_discount: float = 0.3
    """Strength of each resolution, in parts of that of the next finer one."""
    ip_noise_gamma: float = 0.0
    """Noise that only the input gets; 0.1 is usual."""
    ip_noise_gamma_random_strength: bool = False
    """Draw the strength of each sample between 0 and `ip_noise_gamma`."""
    zero_terminal_snr: bool = False
    """Of v models: make the last timestep pure noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_offset", "multires_noise_iterations", "ip_noise_gamma"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise TrainingError(f"{name} is {value:g}, but must be 0 (off) or greater.")
        if not 0 < self.multires_noise_discount <= 1:
            raise TrainingError(
                f"multires_noise_discount is {self.multires_noise_discount:g}, but must be greater "
                "than 0 and at most 1."
            )
        if not math.isfinite(self.adaptive_noise_scale):
            raise TrainingError("adaptive_noise_scale must be a finite number.")
        if self.adaptive_noise_scale and not self.noise_offset:
            raise TrainingError(
                "adaptive_noise_scale changes the noise offset, and there is none. Set noise_offset "
                "to about the same value, or adaptive_noise_scale to 0."
            )
        if self.noise_offset and self.multires_noise_iterations:
            raise TrainingError(
                "noise_offset and multires noise both change the coarse part of the noise. Set one "
                "of noise_offset and multires_noise_iterations to 0."
            )


def draw_noise(
    config: NoiseConfig, latent: Float[Tensor, "C ..."], generator: Generator
) -> Float[Tensor, "C ..."]:
    """Returns the noise for one latent, in float32 on the CPU."""
    noise = torch.randn(latent.shape, generator=generator)
    if config.noise_offset:
        return noise + _offset(config, latent, generator)
    if config.multires_noise_iterations:
        return _multires(config, noise, generator)
    return noise


def draw_perturbation(
    config: NoiseConfig, latent: Float[Tensor, "C ..."], generator: Generator
) -> Float[Tensor, "C ..."] | None:
    """Returns the noise that only the input of one latent gets, on the CPU, or None.

    Source: Ning et al. 2023, arXiv 2301.11706, algorithm 1.
    """
    if not config.ip_noise_gamma:
        return None
    gamma = _strength(config.ip_noise_gamma, config.ip_noise_gamma_random_strength, generator)
    return gamma * torch.randn(latent.shape, generator=generator)


def _offset(config: NoiseConfig, latent: Tensor, generator: Generator) -> Float[Tensor, "C ..."]:
    """Returns o N, one number for each channel, with o raised where the latent is far from 0."""
    strength = torch.tensor(
        _strength(config.noise_offset, config.noise_offset_random_strength, generator)
    )
    if config.adaptive_noise_scale:
        mean = latent.float().flatten(1).mean(dim=1).cpu()
        strength = (strength + config.adaptive_noise_scale * mean.abs()).clamp(min=0)
    offset = strength * torch.randn(latent.shape[:1], generator=generator)
    return offset.reshape(-1, *[1] * (latent.ndim - 1))


def _multires(
    config: NoiseConfig, noise: Float[Tensor, "C ..."], generator: Generator
) -> Float[Tensor, "C ..."]:
    """Returns noise with ever coarser noise added, scaled to a standard deviation of 1.

    Departs from sd-scripts, which scales by the deviation of the whole batch.
    """
    size = noise.shape[1:][-2:]  # frames of a video are channels here
    mode = "bilinear" if len(size) == 2 else "linear"
    total = noise.reshape(1, -1, *size)
    for level in range(config.multires_noise_iterations):
        ratio = 2 + 2 * float(torch.rand((), generator=generator, dtype=torch.float64))
        coarse = [max(1, int(side / ratio**level)) for side in size]
        added = torch.randn((1, total.shape[1], *coarse), generator=generator)
        added = F.interpolate(added, size=size, mode=mode, align_corners=False)
        total = total + config.multires_noise_discount**level * added
        if 1 in coarse:
            break
    return (total / total.std()).reshape(noise.shape)


def _strength(largest: float, random: bool, generator: Generator) -> float:
    if not random:
        return largest
    return largest * float(torch.rand((), generator=generator, dtype=torch.float64))
