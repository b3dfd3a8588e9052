"""A batch costs what the formulas of the papers say, and no sample depends on the others."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.losses import LossConfig
from anyadapter.algorithms.training.model_sampling import Kind, spread, zero_terminal
from anyadapter.algorithms.training.noise import NoiseConfig
from anyadapter.algorithms.training.objective import Noised, Objective
from model_samplings import KINDS, sampling_of, sd_sigmas

RESOLUTION_PX = (64, 48)
LATENT = torch.randn((6, 4, 8, 6), generator=torch.Generator().manual_seed(1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def network(x: Tensor) -> Tensor:
    """Stands for a network: any function of its input."""
    return torch.sin(3 * x) + 0.2


def objective(kind: Kind, noise: NoiseConfig = NoiseConfig(), **loss: Any) -> Objective:  # noqa: B008
    return Objective(sampling_of(kind), noise, LossConfig(**loss))


def denoised(by: Objective, noised: Noised) -> Tensor:
    """The x_0 estimate, by the way of the host."""
    sigma = spread(noised.sigma, noised.noisy)
    scale = 1.0 if by.sampling.kind == "flow" else (sigma**2 + 1).sqrt()
    return by.sampling.denoised(sigma, network(noised.noisy / scale), noised.noisy)


def losses(by: Objective, noised: Noised, latent: Tensor = LATENT, **given: Tensor) -> Tensor:
    return by.losses(noised, latent, denoised(by, noised), **given)


def distances(kind: Kind, noised: Noised) -> tuple[Tensor, Tensor]:
    """Output - target and ᾱ (of flow, σ) in the scaling of the papers, in float64."""
    latent, noise, sigma = LATENT.double(), noised.noise.double(), noised.sigma.double()
    given = noise if noised.perturbation is None else noise + noised.perturbation
    level = spread(sigma, latent)
    if kind == "flow":
        return network((1 - level) * latent + level * given) - (noise - latent), sigma
    alpha_bar = 1 / (level**2 + 1)
    signal, disturbance = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    output = network(signal * latent + disturbance * given)
    target = signal * noise - disturbance * latent if kind == "v" else noise
    return output - target, alpha_bar.flatten()


def mean(loss: Tensor) -> Tensor:
    return loss.mean(dim=(1, 2, 3))


def snr(alpha_bar: Tensor) -> Tensor:
    return alpha_bar / (1 - alpha_bar)


def pseudo_huber(d: Tensor, c: Tensor) -> Tensor:
    return 2 * ((d**2 + c[:, None, None, None] ** 2).sqrt() - c[:, None, None, None])


def threshold_by_snr(alpha_bar: Tensor) -> Tensor:
    return 0.9 / (1 + ((1 - alpha_bar) / alpha_bar).sqrt()) ** 2 + 0.1


WEIGHTS = [
    ("eps", {}, lambda d, _: mean(d**2)),
    ("v", {}, lambda d, _: mean(d**2)),
    ("flow", {}, lambda d, _: mean(d**2)),
    ("eps", {"loss_type": "l1"}, lambda d, _: mean(d.abs())),
    ("eps", {"min_snr_gamma": 5.0}, lambda d, a: mean(d**2) * snr(a).clamp(max=5) / snr(a)),
    ("v", {"min_snr_gamma": 5.0}, lambda d, a: mean(d**2) * snr(a).clamp(max=5) / (snr(a) + 1)),
    (
        "eps",
        {"debiased_estimation_loss": True},
        lambda d, a: mean(d**2) / snr(a).clamp(max=1000).sqrt(),
    ),
    (
        "v",
        {"debiased_estimation_loss": True},
        lambda d, a: mean(d**2) / (snr(a).clamp(max=1000) + 1),
    ),
    (
        "v",
        {"scale_v_pred_loss_like_noise_pred": True},
        lambda d, a: mean(d**2) * snr(a) / (snr(a) + 1),
    ),
    (
        "eps",
        {"v_pred_like_loss": 0.3},
        lambda d, a: mean(d**2) + mean(d**2) / (snr(a) / (snr(a) + 1)) * 0.3,
    ),
    ("flow", {"weighting": "sigma_sqrt"}, lambda d, s: mean(d**2) * s**-2.0),
    (
        "flow",
        {"weighting": "cosmap"},
        lambda d, s: mean(d**2) * 2 / (math.pi * (1 - 2 * s + 2 * s**2)),
    ),
    ("v", {"loss_type": "smooth_l1"}, lambda d, a: mean(pseudo_huber(d, threshold_by_snr(a)))),
    (
        "eps",
        {"loss_type": "huber", "min_snr_gamma": 1.0},
        lambda d, a: (
            threshold_by_snr(a)
            * mean(pseudo_huber(d, threshold_by_snr(a)))
            * (snr(a).clamp(max=1) / snr(a))
        ),
    ),
    (
        "flow",
        {"loss_type": "smooth_l1", "huber_schedule": "exponential"},
        lambda d, s: mean(pseudo_huber(d, 0.1**s)),
    ),
]
WEIGHT_NAMES = [f"{kind}, {', '.join(loss) or 'plain'}" for kind, loss, _ in WEIGHTS]


@pytest.mark.parametrize("gamma", [0.0, 0.1], ids=["", "perturbed"])
@pytest.mark.parametrize(("kind", "loss", "formula"), WEIGHTS, ids=WEIGHT_NAMES)
def test_a_sample_costs_what_the_formulas_say(kind: Kind, loss, formula, gamma: float) -> None:
    by = objective(kind, NoiseConfig(ip_noise_gamma=gamma), **loss)
    noised = by.draw(LATENT, generator(), RESOLUTION_PX)
    expected = formula(*distances(kind, noised))
    # Rounding of float32, which a small σ magnifies: see `ModelSampling.residual`.
    assert_close(losses(by, noised).double(), expected, rtol=2e-5, atol=0)


def test_masks_and_weights_come_in_the_order_of_sd_scripts() -> None:
    by = objective("eps", min_snr_gamma=5.0, unmasked_weight=0.1)
    noised = by.draw(LATENT, generator(), RESOLUTION_PX)
    mask, weights = torch.rand(6, 1, 8, 6), torch.rand(6)
    distance, alpha_bar = distances("eps", noised)
    expected = mean(distance**2 * mask.clamp(0.1, 1)) * weights
    expected = expected * snr(alpha_bar).clamp(max=5) / snr(alpha_bar)
    found = losses(by, noised, mask=mask, weights=weights)
    assert_close(found.double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_that_is_the_latent_costs_nothing(kind: Kind) -> None:
    by = objective(kind)
    noised = by.draw(LATENT, generator(), RESOLUTION_PX)
    assert by.losses(noised, LATENT, LATENT).tolist() == [0.0] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_native_loss(kind: Kind) -> None:
    by = objective(kind)
    noised = by.draw(LATENT, generator(), RESOLUTION_PX)
    output = torch.randn(LATENT.shape).requires_grad_()
    sigma = spread(noised.sigma, LATENT)
    by.losses(noised, LATENT, by.sampling.denoised(sigma, output, noised.noisy)).sum().backward()
    base = (sigma**2 + 1).sqrt()
    target = {
        "eps": noised.noise,
        "v": (noised.noise - sigma * LATENT) / base,
        "flow": noised.noise - LATENT,
    }[kind]
    expected = 2 * (output.detach() - target) / LATENT[0].numel()
    assert_close(output.grad, expected, rtol=1e-4, atol=1e-6)


NOISES = [
    NoiseConfig(),
    NoiseConfig(timestep_sampling="sigmoid"),
    NoiseConfig(timestep_sampling="mode", ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True),
    NoiseConfig(noise_offset=0.1, noise_offset_random_strength=True, adaptive_noise_scale=0.1),
    NoiseConfig(multires_noise_iterations=6),
]


def tensors(noised: Noised) -> dict[str, Tensor]:
    values = {field.name: getattr(noised, field.name) for field in fields(noised)}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    "noise", NOISES, ids=["plain", "sigmoid", "perturbed", "offset", "multires"]
)
def test_a_batch_of_6_equals_two_of_3(noise: NoiseConfig) -> None:
    by = objective("eps", noise, min_snr_gamma=5.0)
    whole = by.draw(LATENT, generator(), RESOLUTION_PX)
    source = generator()
    halves = [by.draw(half, source, RESOLUTION_PX) for half in LATENT.split(3)]
    for name, value in tensors(whole).items():
        assert torch.equal(value, torch.cat([tensors(half)[name] for half in halves])), name
    parts = [losses(by, half, latent) for half, latent in zip(halves, LATENT.split(3), strict=True)]
    assert_close(losses(by, whole), torch.cat(parts), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_float32_whatever_the_latents_are(kind: Kind) -> None:
    by = objective(kind, NoiseConfig(ip_noise_gamma=0.1))
    latent = LATENT.bfloat16()
    noised = by.draw(latent, generator(), RESOLUTION_PX)
    assert {value.dtype for value in tensors(noised).values()} == {torch.float32}
    assert by.losses(noised, latent, latent, mask=latent[:, :1]).dtype == torch.float32


def test_levels_stay_on_the_cpu_wherever_the_latents_are() -> None:
    (noised,) = objective("v").fixed(LATENT.to("meta"), seed=0, levels=(0.4,))
    assert noised.noisy.is_meta
    assert noised.sigma.is_meta
    assert noised.level.tolist() == pytest.approx([0.4] * 6)


def test_noise_levels_are_those_of_the_schedule() -> None:
    noised = objective("v").draw(LATENT, generator(), RESOLUTION_PX)
    timesteps = (noised.level * 1000).round().long()
    assert torch.equal(noised.sigma, sd_sigmas()[timesteps])


def test_a_level_of_flow_is_its_sigma() -> None:
    noised = objective("flow").draw(LATENT, generator(), RESOLUTION_PX)
    assert torch.equal(noised.level, noised.sigma)


def test_the_shift_by_size_is_that_of_the_images() -> None:
    plain, by_size = (
        objective("flow", NoiseConfig(shift=shift)).draw(LATENT, generator(), (1024, 1024)).sigma
        for shift in ("none", "resolution")
    )
    factor = math.exp(1.15)
    assert_close(by_size, factor * plain / (1 + (factor - 1) * plain))


def test_the_network_gets_a_video_and_a_sound_too() -> None:
    for shape in ((2, 4, 3, 8, 6), (2, 4, 16)):
        latent = torch.randn(shape)
        by = objective("flow", weighting="cosmap")
        noised = by.draw(latent, generator(), RESOLUTION_PX)
        assert losses(by, noised, latent).shape == (2,)


def test_the_schedule_with_zero_terminal_snr_is_the_one_that_is_trained() -> None:
    by = objective("v", NoiseConfig(zero_terminal_snr=True, min_timestep=999), min_snr_gamma=5.0)
    noised = by.draw(LATENT, generator(), RESOLUTION_PX)
    assert torch.equal(by.sampling.sigmas, zero_terminal(sd_sigmas()))
    assert noised.sigma.tolist() == pytest.approx([4518.7] * 6, rel=1e-4)
    distance, alpha_bar = distances("v", noised)
    expected = mean(distance**2) * snr(alpha_bar) / (snr(alpha_bar) + 1)
    assert_close(losses(by, noised).double(), expected, rtol=1e-3, atol=0)


def test_the_loss_at_the_smallest_sigma_of_flow_keeps_its_digits() -> None:
    by = objective("flow")
    (noised,) = by.fixed(LATENT, seed=0, levels=(0.0,))
    distance, sigma = distances("flow", noised)
    assert sigma.tolist() == pytest.approx([1e-3] * 6)
    assert_close(losses(by, noised).double(), mean(distance**2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_has_the_same_noise_and_levels_each_time(kind: Kind) -> None:
    noise = NoiseConfig(noise_offset=0.0 if kind == "flow" else 0.1, ip_noise_gamma=0.1)
    by = objective(kind, noise)
    first, second = by.fixed(LATENT, seed=3), by.fixed(LATENT, seed=3)
    assert [noised.level[0].item() for noised in first] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before.noisy, after.noisy)


def test_validation_noise_is_plain_and_does_not_depend_on_the_batch() -> None:
    by = objective("eps", NoiseConfig(multires_noise_iterations=6, ip_noise_gamma=0.1))
    whole, alone = by.fixed(LATENT, seed=3), by.fixed(LATENT[2:3], seed=3)
    for noised, one in zip(whole, alone, strict=True):
        assert noised.perturbation is None
        assert torch.equal(noised.noisy[2:3], one.noisy)
    source = torch.Generator().manual_seed(3)
    assert torch.equal(whole[0].noise[:1], torch.randn((1, 4, 8, 6), generator=source))


def test_validation_noise_differs_between_levels_and_seeds() -> None:
    by = objective("eps")
    noises = [noised.noise for seed in (0, 1) for noised in by.fixed(LATENT, seed)]
    assert len({float(noise[0, 0, 0, 0]) for noise in noises}) == 8


REFUSED = [
    ("flow", {"noise_offset": 0.1}, {}, "noise_offset"),
    ("flow", {"multires_noise_iterations": 6}, {}, "multires_noise_iterations"),
    ("flow", {"zero_terminal_snr": True}, {}, "zero_terminal_snr"),
    ("flow", {}, {"min_snr_gamma": 5.0}, "min_snr_gamma"),
    ("flow", {}, {"debiased_estimation_loss": True}, "debiased_estimation_loss"),
    ("flow", {}, {"scale_v_pred_loss_like_noise_pred": True}, "scale_v_pred"),
    ("flow", {}, {"v_pred_like_loss": 0.1}, "v_pred_like_loss"),
    ("flow", {}, {"loss_type": "huber"}, "huber_schedule"),
    ("eps", {}, {"weighting": "cosmap"}, "cosmap"),
    ("v", {"shift": "constant"}, {}, "constant"),
    ("eps", {"shift": "resolution"}, {}, "resolution"),
    ("eps", {"zero_terminal_snr": True}, {}, "zero_terminal_snr"),
    ("eps", {}, {"scale_v_pred_loss_like_noise_pred": True}, "scale_v_pred"),
    ("v", {}, {"v_pred_like_loss": 0.1}, "v_pred_like_loss"),
]


@pytest.mark.parametrize(("kind", "noise", "loss", "named"), REFUSED)
def test_what_has_no_meaning_for_a_model_is_refused(kind: Kind, noise, loss, named: str) -> None:
    with pytest.raises(TrainingError, match=named):
        objective(kind, NoiseConfig(**noise), **loss)


def test_a_refusal_names_all_that_has_no_meaning() -> None:
    with pytest.raises(TrainingError, match=r"noise_offset, min_snr_gamma\."):
        objective("flow", NoiseConfig(noise_offset=0.1), min_snr_gamma=5.0)
