"""What a model makes of noise: how it mixes noise and latent, and what its output stands for.

    eps    x_t = x_0 + σ ε          output ε                     x_0 = x_t - σ output
    v      x_t = x_0 + σ ε          output (ε - σ x_0)/√(σ²+1)   x_0 = x_t/(σ²+1) - σ/√(σ²+1) output
    flow   x_t = (1 - σ) x_0 + σ ε  output ε - x_0               x_0 = x_t - σ output

σ is that of the host. For eps and v it is √((1 - ᾱ)/ᾱ), and the network itself gets x_t/√(σ²+1),
which is the √ᾱ x_0 + √(1 - ᾱ) ε of the papers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import TrainingError
from ..shapes import Float

Kind = Literal["eps", "v", "flow"]
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]

SMALLEST_ALPHA_BAR = 4.8973451890853435e-08
"""Stands for ᾱ = 0, where σ would be infinite: the host's number."""
SMALLEST_FLOW_SIGMA = 1e-3
"""Below it, dividing an x_0 estimate by σ leaves too few digits: at it, rounding is up to 2.4e-4 |x_0|.
It is the smallest of the 1000 steps of other trainers too."""
PROBED_SIGMAS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class ModelSampling:
    """The schedule of a model, and its two maps between latents, noise and outputs."""

    kind: Kind
    sigmas: Float[Tensor, " T"] | None
    """Ascending, of a model with discrete timesteps (eps, v); None for flow, where σ is in 0..1."""
    noisy: Mix
    """(σ [B, 1, ...], noise, latent) -> x_t"""
    denoised: Mix
    """(σ [B, 1, ...], output, x_t) -> estimate of x_0; linear in the output and in x_t together."""
    shift: Callable[[Tensor], Tensor] | None = None
    """Of a flow model: its own map of a time in 0..1 to σ; None where they are the same."""

    def __post_init__(self) -> None:
        assert (self.sigmas is None) == (self.kind == "flow"), "only flow has no table of sigmas"

    def with_zero_terminal_snr(self) -> "ModelSampling":
        """Returns the sampling with the schedule moved so that the last step is pure noise.

        The network must be told timesteps by this schedule too, in training and later.
        """
        assert self.sigmas is not None
        return replace(self, sigmas=zero_terminal(self.sigmas))

    def snr(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Returns signal over noise, squared: ᾱ/(1 - ᾱ) for eps and v, ((1 - σ)/σ)² for flow."""
        one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
        return (self.noisy(sigma, zero, one) / self.noisy(sigma, one, zero)) ** 2

    def residual(
        self,
        sigma: Float[Tensor, " B"],
        denoised: Float[Tensor, "B ..."],
        latent: Float[Tensor, "B ..."],
    ) -> Float[Tensor, "B ..."]:
        """Returns output - target of the network, told from estimates of x_0.

        As x_0 = a x_t + b output, it is (denoised - latent)/b; b is -σ for eps and flow and
        -σ/√(σ²+1) for v. Rounding in float32 adds errors of up to 2^-22 max(|x_t|, |x_0|)/|b|.

        Args:
            sigma: Noise level of each sample.
            denoised: The x_0 estimate from the network's output.
            latent: The x_0 estimate from the output that is wanted.
        """
        level = spread(sigma, latent)
        one, zero = torch.ones_like(level), torch.zeros_like(level)
        gain = self.denoised(level, one, zero) - self.denoised(level, zero, zero)
        return (denoised - latent) / gain

    def drift(
        self, sigma: Float[Tensor, " B"], noise: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """Returns how far the x_0 estimate moves if only the input gets more noise."""
        level = spread(sigma, noise)
        zero = torch.zeros_like(level)
        return self.denoised(level, zero, self.noisy(level, noise, zero))


def spread(values: Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """Returns a number for each sample in a shape that broadcasts: [B, 1, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def zero_terminal(sigmas: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Returns a schedule whose last step is pure noise; one that is so already stays as it is.

    √ᾱ becomes (√ᾱ - √ᾱ_T) √ᾱ_1/(√ᾱ_1 - √ᾱ_T), of which the last, 0, is raised to
    `SMALLEST_ALPHA_BAR`: σ is about 4519 there.

    Source: Lin et al. 2023, arXiv 2305.08891, algorithm 1.
    """
    alpha_bar = 1 / (sigmas.double() ** 2 + 1)
    first, last = alpha_bar[0].sqrt(), alpha_bar[-1].sqrt()
    if float(last**2) < 1.01 * SMALLEST_ALPHA_BAR:
        return sigmas
    moved = ((alpha_bar.sqrt() - last) * first / (first - last)) ** 2
    moved = moved.clamp(min=SMALLEST_ALPHA_BAR)
    return ((1 - moved) / moved).sqrt().to(sigmas.dtype)


def kind_of(noisy: Mix, denoised: Mix) -> Kind:
    """Tells the kind of a model from what its two maps make of numbers.

    Raises:
        TrainingError: It is none of eps, v and flow; the message tells what was found.
    """
    sigma = torch.tensor(PROBED_SIGMAS)
    found = _coefficients(sigma, noisy, denoised)
    one, scale = torch.ones_like(sigma), (sigma**2 + 1).sqrt()
    known: dict[Kind, tuple[Tensor, ...]] = {
        "eps": (sigma, one, -sigma, one),
        "v": (sigma, one, -sigma / scale, 1 / scale**2),
        "flow": (sigma, 1 - sigma, -sigma, one),
    }
    for kind, expected in known.items():
        if torch.allclose(found, torch.stack(expected), atol=1e-4):
            return kind
    noise, latent, output, mixed = (f"{float(row[1]):.3g}" for row in found)
    raise TrainingError(
        f"This model predicts neither noise (eps) nor v nor a flow: at sigma {PROBED_SIGMAS[1]} its "
        f"noisy latent is {noise} noise + {latent} latent, and its picture is {output} output + "
        f"{mixed} noisy latent. There is no loss for that; train on a model of those three kinds, "
        "and remove nodes that change its sampling."
    )


def _coefficients(sigma: Tensor, noisy: Mix, denoised: Mix) -> Float[Tensor, "4 P"]:
    """Returns the factors of noise and latent in x_t, and of output and x_t in the x_0 estimate."""
    level = sigma[
        :, None
    ]  # the host takes a tensor of one axis for a batch too, but not all maps do
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    mixes = (noisy(level, one, zero), noisy(level, zero, one))
    estimates = (denoised(level, one, zero), denoised(level, zero, one))
    return torch.cat([*mixes, *estimates], dim=1).T
