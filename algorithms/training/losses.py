"""What a residual costs: the function of each element, the mask, and the weight of each sample."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import TrainingError
from ..shapes import Float
from .model_sampling import SMALLEST_ALPHA_BAR, Kind, spread

LARGEST_DEBIASED_SNR = 1000.0


@dataclass(frozen=True)
class LossConfig:
    """How residuals become a loss; names are those of sd-scripts where it has one."""

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = "l2"
    huber_c: float = 0.1
    """Of huber and smooth_l1: residuals much greater than this count by their size, smaller ones by
    their square."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """c is the same at every noise level; or falls from 1 at none to `huber_c` at pure noise."""
    huber_scale: float = 1.0
    """Factor on c; the schedule `snr` has none."""
    min_snr_gamma: float = 0.0
    """Of eps and v: no sample weighs more than at this signal-to-noise ratio; 5 is usual, 0 is off."""
    debiased_estimation_loss: bool = False
    scale_v_pred_loss_like_noise_pred: bool = False
    """Of v: weigh timesteps as an eps model does."""
    v_pred_like_loss: float = 0.0
    """Of eps: add so many times the loss as a v model weighs it."""
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """Of flow: weight 1, 1/σ², or 2/(π(1 - 2σ + 2σ²))."""
    unmasked_weight: float = 0.0
    """The least that a mask counts anywhere."""
    normalize_mask: bool = False
    """Divide by the mean of the mask, so that a small mask does not make a small loss."""
    prior_loss_weight: float = 1.0
    """Weight of regularisation images: whoever makes the batch gives it with the sample's weights."""

    def __post_init__(self) -> None:
        for name in ("huber_c", "huber_scale"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise TrainingError(f"{name} is {value:g}, but must be greater than 0.")
        for name in ("min_snr_gamma", "v_pred_like_loss", "prior_loss_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise TrainingError(f"{name} is {value:g}, but must be 0 or greater.")
        if not 0 <= self.unmasked_weight <= 1:
            raise TrainingError(
                f"unmasked_weight is {self.unmasked_weight:g}, but must be from 0 to 1."
            )

    @property
    def has_threshold(self) -> bool:
        """Whether the function of each element turns from square to linear somewhere."""
        return self.loss_type in ("huber", "smooth_l1")


def elementwise(
    config: LossConfig,
    residual: Float[Tensor, "B ..."],
    sigma: Float[Tensor, " B"],
    level: Float[Tensor, " B"],
) -> Float[Tensor, "B ..."]:
    """Returns the loss of each element.

    huber is 2c(√(d² + c²) - c) and smooth_l1 is 2(√(d² + c²) - c), the pseudo-Huber losses.

    Args:
        config: The function.
        residual: d, output - target of the network.
        sigma: √((1 - ᾱ)/ᾱ) of each sample, which the schedule `snr` reads.
        level: Timestep of each sample over the number of timesteps, on any device.
    """
    if config.loss_type == "l2":
        return residual**2
    if config.loss_type == "l1":
        return residual.abs()
    c = spread(huber_threshold(config, sigma, level), residual)
    beyond = 2 * ((residual**2 + c**2).sqrt() - c)
    return c * beyond if config.loss_type == "huber" else beyond


def huber_threshold(
    config: LossConfig, sigma: Float[Tensor, " B"], level: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Returns c of each sample."""
    c = config.huber_c
    if config.huber_schedule == "snr":
        return (1 - c) / (1 + sigma) ** 2 + c
    if config.huber_schedule == "exponential":
        return config.huber_scale * torch.exp(math.log(c) * level.to(sigma.device))
    return torch.full_like(sigma, config.huber_scale * c)


def masked_mean(
    config: LossConfig, loss: Float[Tensor, "B ..."], mask: Float[Tensor, "B ..."] | None
) -> Float[Tensor, " B"]:
    """Returns the mean of each sample, with the mask (0..1, as large as the latent) multiplied in."""
    if mask is None:
        return loss.flatten(1).mean(dim=1)
    mask = mask.clamp(config.unmasked_weight, 1)
    mean = (loss * mask).flatten(1).mean(dim=1)
    if not config.normalize_mask:
        return mean
    share = mask.flatten(1).mean(dim=1)
    return mean / share.clamp(min=torch.finfo(share.dtype).tiny)  # nothing shown: loss 0


def flow_weight(config: LossConfig, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Returns the weight of each sample of a flow model.

    Source: Esser et al. 2024, arXiv 2403.03206, section 3.1 (cosmap); `sigma_sqrt` as sd-scripts.
    """
    if config.weighting == "sigma_sqrt":
        return sigma**-2
    if config.weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return torch.ones_like(sigma)


def snr_weight(config: LossConfig, kind: Kind, snr: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Returns the weight of each sample of an eps or v model; finite at a ratio of 0 too.

    Sources: Hang et al. 2023, arXiv 2303.09556 (min-SNR); Yu et al. 2023, arXiv 2310.08442
    (debiased estimation, whose weight for v is that of sd-scripts).
    """
    snr = snr.clamp(min=SMALLEST_ALPHA_BAR)
    weight = torch.ones_like(snr)
    if config.min_snr_gamma:
        weight = snr.clamp(max=config.min_snr_gamma) / (snr + 1 if kind == "v" else snr)
    if config.scale_v_pred_loss_like_noise_pred:
        weight = weight * snr / (snr + 1)
    if config.v_pred_like_loss:
        weight = weight * (1 + config.v_pred_like_loss * (snr + 1) / snr)
    if config.debiased_estimation_loss:
        least = snr.clamp(max=LARGEST_DEBIASED_SNR)
        weight = weight / (least + 1 if kind == "v" else least.sqrt())
    return weight
