"""The objective of training: how a latent is made noisy, and what the network's answer costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import TrainingError
from ..shapes import Float
from .losses import LossConfig, elementwise, flow_weight, masked_mean, snr_weight
from .model_sampling import ModelSampling, spread
from .noise import NoiseConfig, draw_noise, draw_perturbation
from .timesteps import NoiseLevel, draw_time, level_of, noise_level

FIXED_LEVELS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, eq=False)
class Noised:
    """A batch of latents made noisy, in float32; all but `level` is on the device of the latents."""

    noisy: Float[Tensor, "B ..."]
    """x_t, in the host's scaling."""
    noise: Float[Tensor, "B ..."]
    """ε, as the target has it."""
    perturbation: Float[Tensor, "B ..."] | None
    """What the input has of noise besides."""
    sigma: Float[Tensor, " B"]
    level: Float[Tensor, " B"]
    """Timestep over the number of timesteps, or σ of flow: 0 is clean and 1 is pure noise.

    On the CPU, where levels are drawn and T-LoRA chooses its ranks."""


class Objective:
    """Noise and loss for one model."""

    def __init__(self, sampling: ModelSampling, noise: NoiseConfig, loss: LossConfig) -> None:
        """Puts them together.

        Raises:
            TrainingError: Something is asked for that has no meaning for this kind of model.
        """
        if sampling.kind == "flow":
            _refuse("flow models", _only_discrete(noise, loss))
        else:
            _refuse("models of timesteps (eps, v)", _only_flow(noise, loss))
        if sampling.kind == "eps":
            _refuse("models that predict noise (eps)", _only_v(noise, loss))
        if sampling.kind == "v":
            _refuse("models that predict v", {"v_pred_like_loss": loss.v_pred_like_loss > 0})
        self.noise = noise
        self.loss = loss
        self.sampling = sampling.with_zero_terminal_snr() if noise.zero_terminal_snr else sampling
        """With the schedule as trained, which the network's timesteps must be told by."""

    def draw(
        self,
        latent: Float[Tensor, "B C ..."],
        generator: Generator,
        resolution_px: tuple[int, int],
    ) -> Noised:
        """Returns a batch made noisy, at levels and with noise that are drawn sample by sample.

        What a sample gets depends on the generator's state before it, not on its batch.

        Args:
            latent: Clean latents, as the model takes them in.
            generator: On the CPU, whatever the device of the latents.
            resolution_px: Height and width of the images.
        """
        levels: list[NoiseLevel] = []
        noises: list[Tensor] = []
        perturbations: list[Tensor] = []
        for one in latent:
            time = draw_time(self.noise, generator)
            levels.append(noise_level(self.noise, self.sampling, time, resolution_px))
            noises.append(draw_noise(self.noise, one, generator))
            perturbation = draw_perturbation(self.noise, one, generator)
            if perturbation is not None:
                perturbations.append(perturbation)
        perturbed = torch.stack(perturbations) if perturbations else None
        return self._noised(latent, levels, torch.stack(noises), perturbed)

    def fixed(
        self,
        latent: Float[Tensor, "B C ..."],
        seed: int,
        levels: Sequence[float] = FIXED_LEVELS,
    ) -> list[Noised]:
        """Returns a batch made noisy at given levels, with plain noise: the same at every call.

        All samples of the batch get the same noise, so that none depends on its place.

        Args:
            latent: Clean latents.
            seed: Of the noise.
            levels: In 0..1, as in `Noised.level`.
        """
        generator = torch.Generator().manual_seed(seed)
        count = len(latent)
        return [
            self._noised(
                latent,
                [level_of(self.sampling, level)] * count,
                torch.randn((1, *latent.shape[1:]), generator=generator).expand_as(latent),
                None,
            )
            for level in levels
        ]

    def losses(
        self,
        noised: Noised,
        latent: Float[Tensor, "B C ..."],
        denoised: Float[Tensor, "B C ..."],
        mask: Float[Tensor, "B ..."] | None = None,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Returns the loss of each sample, in float32; that of the batch is their mean.

        The order is that of sd-scripts: cost of each element, weight of flow, mask, mean over the
        sample, weight of the sample, weights by signal-to-noise ratio.

        Args:
            noised: What the network was given.
            latent: What it should have found: x_0, or the estimate of a network to be matched, for
                noise without a perturbation.
            denoised: The x_0 estimate from its output.
            mask: 0..1, in the size of the latents, with one channel or all.
            weights: Of the samples, `prior_loss_weight` for regularisation images.
        """
        target = latent.float()
        if noised.perturbation is not None:
            target = target + self.sampling.drift(noised.sigma, noised.perturbation)
        residual = self.sampling.residual(noised.sigma, denoised.float(), target)
        loss = elementwise(self.loss, residual, noised.sigma, noised.level)
        if self.sampling.kind == "flow":
            loss = loss * spread(flow_weight(self.loss, noised.sigma), loss)
        losses = masked_mean(self.loss, loss, None if mask is None else mask.float())
        if weights is not None:
            losses = losses * weights
        if self.sampling.kind != "flow":
            snr = self.sampling.snr(noised.sigma)
            losses = losses * snr_weight(self.loss, self.sampling.kind, snr)
        return losses

    def _noised(
        self,
        latent: Tensor,
        levels: Sequence[NoiseLevel],
        noise: Tensor,
        perturbation: Tensor | None,
    ) -> Noised:
        device = latent.device
        noise = noise.to(device)
        perturbation = None if perturbation is None else perturbation.to(device)
        sigma = torch.tensor([one.sigma for one in levels], device=device)
        level = torch.tensor([one.level for one in levels])
        given = noise if perturbation is None else noise + perturbation
        noisy = self.sampling.noisy(spread(sigma, latent), given, latent.float())
        return Noised(noisy, noise, perturbation, sigma, level)


def _only_discrete(noise: NoiseConfig, loss: LossConfig) -> dict[str, bool]:
    return {
        "noise_offset": noise.noise_offset > 0,
        "multires_noise_iterations": noise.multires_noise_iterations > 0,
        "zero_terminal_snr (flow ends in pure noise anyway)": noise.zero_terminal_snr,
        "min_snr_gamma": loss.min_snr_gamma > 0,
        "debiased_estimation_loss": loss.debiased_estimation_loss,
        "scale_v_pred_loss_like_noise_pred": loss.scale_v_pred_loss_like_noise_pred,
        "v_pred_like_loss": loss.v_pred_like_loss > 0,
        'huber_schedule "snr"': loss.has_threshold and loss.huber_schedule == "snr",
    }


def _only_flow(noise: NoiseConfig, loss: LossConfig) -> dict[str, bool]:
    return {
        f'weighting "{loss.weighting}"': loss.weighting != "none",
        f'shift "{noise.shift}"': noise.shift in ("constant", "resolution"),
    }


def _only_v(noise: NoiseConfig, loss: LossConfig) -> dict[str, bool]:
    return {
        "zero_terminal_snr": noise.zero_terminal_snr,
        "scale_v_pred_loss_like_noise_pred": loss.scale_v_pred_loss_like_noise_pred,
    }


def _refuse(models: str, asked: dict[str, bool]) -> None:
    """Raises an error that names what is asked for and has no meaning."""
    names = [name for name, is_asked in asked.items() if is_asked]
    if names:
        raise TrainingError(
            f"This has no meaning for {models}: {', '.join(names)}. Turn it off, or choose another "
            "value."
        )
