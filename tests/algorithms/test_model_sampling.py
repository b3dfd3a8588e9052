"""What a network's output stands for, told from the x_0 estimate, and the schedule it is told by."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.model_sampling import (
    SMALLEST_ALPHA_BAR,
    SMALLEST_FLOW_SIGMA,
    Kind,
    ModelSampling,
    kind_of,
    spread,
    zero_terminal,
)
from model_samplings import KINDS, MIXES, added, sampling_of, sd_alpha_bars, sd_sigmas

SIGMAS: dict[Kind, list[float]] = {
    "eps": [0.0292, 0.3, 1.0, 14.6],
    "v": [0.0292, 0.3, 1.0, 4518.0],
    "flow": [SMALLEST_FLOW_SIGMA, 0.1, 0.5, 1.0],
}


def native_target(kind: Kind, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
    """The network's target, as the papers have it."""
    if kind == "eps":
        return noise
    if kind == "flow":
        return noise - latent
    alpha_bar = 1 / (sigma**2 + 1)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latent


def estimates(kind: Kind, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """σ, latent, x_t, x_0 estimate and output - target of a random output."""
    sigma = torch.tensor(SIGMAS[kind], dtype=dtype)
    latent, noise, output = torch.randn((3, len(sigma), 4, 16, 16)).to(dtype)
    sampling = sampling_of(kind)
    level = spread(sigma, latent)
    noisy = sampling.noisy(level, noise, latent)
    denoised = sampling.denoised(level, output, noisy)
    return sigma, latent, noisy, denoised, output - native_target(kind, level, noise, latent)


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_is_output_minus_target(kind: Kind) -> None:
    sigma, latent, _, denoised, expected = estimates(kind, torch.float64)
    found = sampling_of(kind).residual(sigma, denoised, latent)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_of_the_residual_is_no_greater_than_promised(kind: Kind) -> None:
    sigma, latent, noisy, denoised, expected = estimates(kind, torch.float32)
    found = sampling_of(kind).residual(sigma, denoised, latent)
    gain = spread(sigma / (sigma**2 + 1).sqrt() if kind == "v" else sigma, latent)
    bound = 2**-22 * torch.maximum(noisy.abs(), latent.abs()) / gain
    assert ((found - expected).abs() <= bound + 2**-22 * expected.abs()).all()


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("eps", lambda sigma: sigma**2),
        ("v", lambda sigma: sigma**2 / (sigma**2 + 1)),
        ("flow", lambda sigma: sigma**2),
    ],
)
def test_the_loss_of_x_0_estimates_is_the_native_one_times_the_factor_of_the_reference(
    kind: Kind, factor
) -> None:
    sigma, latent, _, denoised, _ = estimates(kind, torch.float64)
    native = sampling_of(kind).residual(sigma, denoised, latent).square().flatten(1).mean(1)
    assert_close((denoised - latent).square().flatten(1).mean(1), factor(sigma) * native)


@pytest.mark.parametrize("kind", KINDS)
def test_drift_is_what_more_noise_in_the_input_does_to_the_estimate(kind: Kind) -> None:
    sigma, latent, noisy, _, _ = estimates(kind, torch.float64)
    sampling = sampling_of(kind)
    level = spread(sigma, latent)
    more, output = torch.randn((2, *latent.shape)).double()
    moved = noisy + level * more
    expected = sampling.denoised(level, output, moved) - sampling.denoised(level, output, noisy)
    assert_close(sampling.drift(sigma, more), expected, rtol=1e-8, atol=1e-8)


def test_the_snr_of_a_schedule_is_that_of_its_alpha_bars() -> None:
    alpha_bars = sd_alpha_bars()
    found = sampling_of("eps").snr(sd_sigmas())
    assert_close(found, alpha_bars / (1 - alpha_bars), rtol=1e-6, atol=0)


def test_the_snr_of_stable_diffusion_is_as_in_the_table() -> None:
    found = sampling_of("v").snr(sd_sigmas())[[0, 100, 250, 500, 750, 999]]
    expected = torch.tensor([1175.44, 8.45387, 2.06553, 0.38185, 0.05951, 0.00468])
    assert_close(found, expected, rtol=5e-6, atol=5.1e-6)


def test_the_snr_of_flow_is_signal_over_noise_squared() -> None:
    found = sampling_of("flow").snr(torch.tensor([0.25, 0.5, 1.0]))
    assert found.tolist() == [9.0, 1.0, 0.0]


def test_zero_terminal_snr_is_the_formula_of_the_paper() -> None:
    root = sd_alpha_bars().double().sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    found = 1 / (zero_terminal(sd_sigmas()).double() ** 2 + 1)
    assert_close(found[:-1].sqrt(), expected[:-1], rtol=1e-5, atol=0)
    assert_close(found[-1].item(), SMALLEST_ALPHA_BAR, rtol=1e-6, atol=0)


def test_zero_terminal_snr_keeps_the_first_step_and_the_order() -> None:
    before, after = sd_sigmas(), zero_terminal(sd_sigmas())
    assert after[0] == pytest.approx(float(before[0]), rel=1e-5)
    assert after.diff().min() > 0
    assert after.dtype == torch.float32


def test_a_schedule_that_ends_in_pure_noise_stays_as_it_is() -> None:
    once = zero_terminal(sd_sigmas())
    assert zero_terminal(once) is once


def test_only_the_schedule_changes_with_zero_terminal_snr() -> None:
    before = sampling_of("v")
    after = before.with_zero_terminal_snr()
    assert torch.equal(after.sigmas, zero_terminal(before.sigmas))
    assert (after.kind, after.noisy) == (before.kind, before.noisy)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_told_by_numbers(kind: Kind) -> None:
    assert kind_of(*MIXES[kind]) == kind


def predicts_the_picture(sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor:
    del sigma, noisy
    return output


def edm(sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor:
    return noisy / (sigma**2 + 1) + output * sigma / (sigma**2 + 1).sqrt()


@pytest.mark.parametrize("denoised", [predicts_the_picture, edm])
def test_another_kind_is_refused(denoised) -> None:
    with pytest.raises(TrainingError, match="neither noise"):
        kind_of(added, denoised)


def test_the_refusal_tells_what_was_found() -> None:
    with pytest.raises(
        TrainingError, match=r"sigma 0\.5 .* 0\.5 noise \+ 1 latent, .* 1 output \+ 0"
    ):
        kind_of(added, predicts_the_picture)


def test_only_flow_goes_without_a_schedule() -> None:
    with pytest.raises(AssertionError):
        ModelSampling("eps", None, *MIXES["eps"])
