"""Stand-ins for the host's model samplings, in torch alone, from the formulas of each kind of model."""

import torch
from torch import Tensor

from anyadapter.algorithms.training.model_sampling import Kind, Mix, ModelSampling

KINDS: tuple[Kind, ...] = ("eps", "v", "flow")


def sd_alpha_bars() -> Tensor:
    """Returns ᾱ of Stable Diffusion: scaled-linear betas from 0.00085 to 0.012.

    In float32, as the tables of the reference were made: their last digit tells.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return (1 - betas).cumprod(0)


def sd_sigmas() -> Tensor:
    alpha_bars = sd_alpha_bars()
    return ((1 - alpha_bars) / alpha_bars).sqrt()


def added(sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
    return latent + sigma * noise


def blended(sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
    return (1 - sigma) * latent + sigma * noise


def less_noise(sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor:
    return noisy - sigma * output


def from_v(sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor:
    return noisy / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()


MIXES: dict[Kind, tuple[Mix, Mix]] = {
    "eps": (added, less_noise),
    "v": (added, from_v),
    "flow": (blended, less_noise),
}


def sampling_of(kind: Kind) -> ModelSampling:
    """Returns the sampling of SD 1.5, of SD 2 with v, or of a flow model without a shift."""
    return ModelSampling(kind, None if kind == "flow" else sd_sigmas(), *MIXES[kind])
