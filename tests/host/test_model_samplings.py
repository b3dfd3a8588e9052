"""Training reads the host's samplings as they are, and its stand-ins in tests compute the same."""

import comfy.model_sampling as host
import pytest
import torch
from torch.testing import assert_close

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.model_sampling import Kind, kind_of, zero_terminal
from model_samplings import MIXES, sampling_of

CLASSES: list[tuple[Kind, type]] = [
    ("eps", host.EPS),
    ("v", host.V_PREDICTION),
    ("flow", host.CONST),
]
OTHERS = (host.EDM, host.X0, host.IMG_TO_IMG, host.COSMOS_RFLOW)


def made(sampling: type) -> host.EPS:
    one = sampling()
    one.sigma_data = 1.0
    return one


@pytest.mark.parametrize(("kind", "sampling"), CLASSES)
def test_kinds_are_told_from_the_maps_of_the_host(kind: Kind, sampling: type) -> None:
    one = made(sampling)
    assert kind_of(one.noise_scaling, one.calculate_denoised) == kind


@pytest.mark.parametrize("sampling", OTHERS)
def test_other_kinds_of_the_host_are_refused(sampling: type) -> None:
    one = made(sampling)
    with pytest.raises(TrainingError, match="neither noise"):
        kind_of(one.noise_scaling, one.calculate_denoised)


@pytest.mark.parametrize(("kind", "sampling"), CLASSES)
def test_stand_ins_compute_what_the_host_does(kind: Kind, sampling: type) -> None:
    one = made(sampling)
    sigma = torch.tensor([0.03, 0.5, 1.0]).reshape(3, 1, 1, 1)
    first, second = torch.randn((2, 3, 4, 5, 6))
    noisy, denoised = MIXES[kind]
    assert_close(noisy(sigma, first, second), one.noise_scaling(sigma, first, second))
    assert_close(denoised(sigma, first, second), one.calculate_denoised(sigma, first, second))


def test_the_schedule_of_stand_ins_is_that_of_the_host() -> None:
    # Half an ulp of ᾱ near 1 in float32 is 2^-25, which is 3.5e-5 of the first 1 - ᾱ, 0.00085.
    assert_close(
        sampling_of("eps").sigmas, host.ModelSamplingDiscrete().sigmas, rtol=3.5e-5, atol=0
    )


def test_a_schedule_moved_to_pure_noise_is_that_of_the_host() -> None:
    sigmas = host.ModelSamplingDiscrete().sigmas
    expected = host.rescale_zero_terminal_snr_sigmas(sigmas.double()).float()
    assert_close(zero_terminal(sigmas), expected, rtol=1e-6, atol=0)
