"""Noise of every kind has the size and the shape in space that its formula gives it."""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.noise import NoiseConfig, draw_noise, draw_perturbation

LATENT = torch.zeros(64, 8, 12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(config: NoiseConfig, latent: Tensor = LATENT) -> Tensor:
    return draw_noise(config, latent, generator())


def offset(config: NoiseConfig, latent: Tensor = LATENT) -> Tensor:
    """What is added to plain noise of the same seed: one number for each channel."""
    added = noise(config, latent) - noise(NoiseConfig(), latent)
    assert_close(added, added[:, :1, :1].expand_as(added), rtol=0, atol=1e-6)
    return added[:, 0, 0]


def test_plain_noise_is_normal() -> None:
    assert torch.equal(noise(NoiseConfig()), torch.randn(LATENT.shape, generator=generator()))


def test_noise_is_float32_whatever_the_latent_is() -> None:
    assert noise(NoiseConfig(noise_offset=0.1), LATENT.bfloat16()).dtype == torch.float32


def test_an_offset_is_normal_noise_for_each_channel() -> None:
    source = generator()
    torch.randn(LATENT.shape, generator=source)
    expected = 0.1 * torch.randn(len(LATENT), generator=source)
    assert_close(offset(NoiseConfig(noise_offset=0.1)), expected, rtol=0, atol=1e-6)


def test_an_offset_of_random_strength_is_smaller_by_a_uniform_factor() -> None:
    source = generator()
    torch.randn(LATENT.shape, generator=source)
    factor = float(torch.rand((), generator=source, dtype=torch.float64))
    expected = 0.1 * factor * torch.randn(len(LATENT), generator=source)
    found = offset(NoiseConfig(noise_offset=0.1, noise_offset_random_strength=True))
    assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_adaptive_offset_grows_with_the_mean_of_a_channel() -> None:
    means = torch.linspace(-2, 2, len(LATENT))
    latent = LATENT + means[:, None, None]
    plain = offset(NoiseConfig(noise_offset=0.1), latent)
    found = offset(NoiseConfig(noise_offset=0.1, adaptive_noise_scale=0.05), latent)
    assert_close(found, plain * (0.1 + 0.05 * means.abs()) / 0.1, rtol=0, atol=2e-6)


def test_an_adaptive_offset_is_never_below_0() -> None:
    config = NoiseConfig(noise_offset=0.1, adaptive_noise_scale=-0.1)
    assert torch.equal(noise(config, LATENT + 3), noise(NoiseConfig()))


def test_an_offset_of_a_video_is_the_same_in_all_frames() -> None:
    latent = torch.zeros(4, 3, 8, 8)
    added = noise(NoiseConfig(noise_offset=0.1), latent) - noise(NoiseConfig(), latent)
    assert_close(added, added[:, :1, :1, :1].expand_as(added), rtol=0, atol=1e-6)


def test_noise_of_several_resolutions_is_the_sum_of_the_formula() -> None:
    config = NoiseConfig(multires_noise_iterations=3, multires_noise_discount=0.5)
    source = generator()
    expected = torch.randn((1, 4, 32, 48), generator=source)
    for level in range(3):
        ratio = 2 + 2 * float(torch.rand((), generator=source, dtype=torch.float64))
        size = (int(32 / ratio**level), int(48 / ratio**level))
        coarse = torch.randn((1, 4, *size), generator=source)
        expected = expected + 0.5**level * F.interpolate(coarse, (32, 48), mode="bilinear")
    found = draw_noise(config, torch.zeros(4, 32, 48), generator())
    assert_close(found, (expected / expected.std())[0])


def test_noise_of_several_resolutions_has_a_deviation_of_1_in_each_sample() -> None:
    config = NoiseConfig(multires_noise_iterations=8, multires_noise_discount=1.0)
    found = noise(config)
    assert float(found.std()) == pytest.approx(1, abs=1e-5)
    assert float(found.mean(dim=(1, 2)).std()) > 0.2  # coarse parts; plain noise has 0.1


def test_resolutions_end_with_one_of_a_single_row() -> None:
    few, many = (
        NoiseConfig(multires_noise_iterations=count, multires_noise_discount=0.9)
        for count in (5, 1000)
    )
    assert torch.equal(noise(few), noise(many))


@pytest.mark.parametrize("shape", [(4, 3, 16, 24), (4, 64), (4, 1, 1)], ids=str)
def test_noise_of_several_resolutions_has_the_shape_of_the_latent(shape: tuple[int, ...]) -> None:
    found = noise(NoiseConfig(multires_noise_iterations=4), torch.zeros(shape))
    assert found.shape == shape
    assert found.isfinite().all()


def test_inputs_are_perturbed_by_noise_of_gamma() -> None:
    found = draw_perturbation(NoiseConfig(ip_noise_gamma=0.1), LATENT, generator())
    assert torch.equal(found, 0.1 * torch.randn(LATENT.shape, generator=generator()))


def test_the_strength_of_a_perturbation_may_be_random() -> None:
    config = NoiseConfig(ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True)
    deviations = torch.stack(
        [draw_perturbation(config, LATENT, generator(seed)).std() for seed in range(200)]
    )
    assert deviations.max() < 0.103
    assert float(deviations.mean()) == pytest.approx(0.05, abs=4 * 0.1 / math.sqrt(12 * 200))


def test_inputs_are_not_perturbed_unasked() -> None:
    assert draw_perturbation(NoiseConfig(), LATENT, generator()) is None


def test_the_settings_can_be_written_and_read() -> None:
    config = NoiseConfig(timestep_sampling="mode", noise_offset=0.05, adaptive_noise_scale=0.05)
    assert NoiseConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_offset": -0.1}, "noise_offset"),
        ({"noise_offset": math.nan}, "noise_offset"),
        ({"ip_noise_gamma": -0.1}, "ip_noise_gamma"),
        ({"multires_noise_iterations": -1}, "multires_noise_iterations"),
        ({"multires_noise_discount": 0.0}, "multires_noise_discount"),
        ({"adaptive_noise_scale": math.inf, "noise_offset": 0.1}, "finite"),
        ({"adaptive_noise_scale": 0.1}, "there is none"),
        ({"noise_offset": 0.1, "multires_noise_iterations": 6}, "both"),
        ({"max_timestep": 0}, "no range"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        NoiseConfig(**settings)
