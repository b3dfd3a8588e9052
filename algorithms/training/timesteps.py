"""Which noise levels training meets: the distribution of timesteps, its range and its shift.

A time u in 0..1 is drawn from a distribution, 1 being pure noise. For models with discrete timesteps
it picks the timestep; for flow models it is shifted to a σ. Both are squeezed into the range asked for.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator

from ..errors import TrainingError
from .model_sampling import SMALLEST_FLOW_SIGMA, ModelSampling

STEPS = 1000
"""`min_timestep` and `max_timestep` count in thousandths, whatever the model."""
MODE_SCALES = (-1.0, 2 / (math.pi - 2))
"""Beyond these, times of the `mode` distribution leave 0..1."""


@dataclass(frozen=True)
class TimestepConfig:
    """How noise levels are drawn; names are those of sd-scripts where it has one."""

    timestep_sampling: Literal["uniform", "sigmoid", "logit_normal", "mode"] = "uniform"
    """u is U(0, 1), sigmoid(sigmoid_scale N), sigmoid(logit_mean + logit_std N), or, of a uniform
    one, 1 - u - mode_scale (cos²(π u/2) - 1 + u)."""
    sigmoid_scale: float = 1.0
    logit_mean: float = 0.0
    """Positive for more noise, as in the paper of SD3 (sd-scripts has it the other way round)."""
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: Literal["model", "none", "constant", "resolution"] = "model"
    """Of flow models: the model's own; σ = u; by `discrete_flow_shift`; or by the size of the image.
    With sigmoid, the last two are what sd-scripts calls `shift` and `flux_shift`."""
    discrete_flow_shift: float = 3.0
    min_timestep: int = 0
    """In thousandths of the way from clean to pure noise (of σ, for flow), as in sd-scripts."""
    max_timestep: int = 1000
    """Itself too noisy already."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_timestep < self.max_timestep <= STEPS:
            raise TrainingError(
                f"Timesteps from {self.min_timestep} to {self.max_timestep} are no range. Give two "
                f"numbers from 0 to {STEPS}, the smaller one first."
            )
        for name in ("sigmoid_scale", "logit_std", "discrete_flow_shift"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise TrainingError(f"{name} is {value:g}, but must be greater than 0.")
        if not math.isfinite(self.logit_mean):
            raise TrainingError(f"logit_mean is {self.logit_mean:g}, but must be a finite number.")
        if not MODE_SCALES[0] <= self.mode_scale <= MODE_SCALES[1]:
            raise TrainingError(
                f"mode_scale is {self.mode_scale:g}, but must be from {MODE_SCALES[0]:g} to "
                f"{MODE_SCALES[1]:.2f}: beyond that there are times before 0 and after 1."
            )


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy a sample is made."""

    sigma: float
    """In the host's scaling."""
    level: float
    """Timestep over the number of timesteps, or σ of flow: 0 is clean and 1 is pure noise."""


def draw_time(config: TimestepConfig, generator: Generator) -> float:
    """Returns one time in 0..1 of a distribution.

    Source: Esser et al. 2024, arXiv 2403.03206, section 3.1 (logit-normal, mode).
    """
    if config.timestep_sampling in ("sigmoid", "logit_normal"):
        normal = float(torch.randn((), generator=generator, dtype=torch.float64))
        if config.timestep_sampling == "sigmoid":
            return _sigmoid(config.sigmoid_scale * normal)
        return _sigmoid(config.logit_mean + config.logit_std * normal)
    time = float(torch.rand((), generator=generator, dtype=torch.float64))
    if config.timestep_sampling == "mode":
        return 1 - time - config.mode_scale * (math.cos(math.pi * time / 2) ** 2 - 1 + time)
    return time


def noise_level(
    config: TimestepConfig, sampling: ModelSampling, time: float, resolution_px: tuple[int, int]
) -> NoiseLevel:
    """Returns the noise level at a time in 0..1.

    Args:
        config: Range and shift.
        sampling: The model's schedule.
        time: 0 is the cleanest and 1 the noisiest of the range.
        resolution_px: Height and width of the image, which `resolution` shifts by.
    """
    if sampling.sigmas is not None:
        count = len(sampling.sigmas)
        first, end = (count * step // STEPS for step in (config.min_timestep, config.max_timestep))
        end = max(end, first + 1)  # a short schedule may have none within the range
        return discrete_level(sampling, min(first + int(time * (end - first)), end - 1))
    if config.shift == "constant":
        time = shifted(time, config.discrete_flow_shift)
    elif config.shift == "resolution":
        time = shifted(time, resolution_shift(*resolution_px))
    elif config.shift == "model" and sampling.shift is not None:
        time = float(sampling.shift(torch.tensor([time])))
    width = config.max_timestep - config.min_timestep
    return flow_level((config.min_timestep + width * time) / STEPS)


def level_of(sampling: ModelSampling, level: float) -> NoiseLevel:
    """Returns the noise level that is nearest to one in 0..1."""
    if sampling.sigmas is None:
        return flow_level(level)
    count = len(sampling.sigmas)
    return discrete_level(sampling, min(round(level * count), count - 1))


def discrete_level(sampling: ModelSampling, timestep: int) -> NoiseLevel:
    """Returns the noise level of a timestep of a schedule."""
    assert sampling.sigmas is not None
    return NoiseLevel(float(sampling.sigmas[timestep]), timestep / len(sampling.sigmas))


def flow_level(sigma: float) -> NoiseLevel:
    """Returns the noise level of a σ of flow, no smaller than can be trained."""
    sigma = max(sigma, SMALLEST_FLOW_SIGMA)
    return NoiseLevel(sigma, sigma)


def shifted(time: float, factor: float) -> float:
    """Returns k t/(1 + (k - 1) t): the time at which noise counts k times as much."""
    return factor * time / (1 + (factor - 1) * time)


def resolution_shift(height_px: int, width_px: int) -> float:
    """Returns the shift of Flux for a size: e^μ, with μ from 0.5 at 256² to 1.15 at 1024².

    μ is linear in the tokens, which are 16x16 pixels each.
    """
    tokens = (height_px / 16) * (width_px / 16)
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))  # exp(-x) would overflow
