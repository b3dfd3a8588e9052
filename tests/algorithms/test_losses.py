"""The cost of a residual and the weight of a sample are those of the tables of the reference."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.losses import (
    LossConfig,
    elementwise,
    flow_weight,
    huber_threshold,
    masked_mean,
    snr_weight,
)
from anyadapter.algorithms.training.model_sampling import Kind
from model_samplings import sampling_of, sd_sigmas

TIMESTEPS = torch.tensor([0, 100, 250, 500, 750, 999])
SIGMAS = sd_sigmas()[TIMESTEPS]
SNR = sampling_of("eps").snr(SIGMAS)
MIN_SNR = LossConfig(min_snr_gamma=5.0)
DEBIASED = LossConfig(debiased_estimation_loss=True)
LIKE_NOISE = LossConfig(scale_v_pred_loss_like_noise_pred=True)
LIKE_V = LossConfig(v_pred_like_loss=0.5)
HUBER_SNR = LossConfig(loss_type="huber")
HUBER_EXPONENTIAL = LossConfig(loss_type="huber", huber_schedule="exponential")


def numbers(table: str) -> Tensor:
    return torch.tensor([float(number) for number in table.split()])


@pytest.mark.parametrize(
    ("config", "kind", "table", "last_digit"),
    [
        (MIN_SNR, "eps", ".00425 .59145 1 1 1 1", 1e-5),
        (MIN_SNR, "v", ".00425 .52888 .67379 .27633 .05617 .00466", 1e-5),
        (DEBIASED, "eps", ".0316 .3439 .6958 1.6183 4.0992 14.6146", 1e-4),
        (DEBIASED, "v", ".001 .10578 .32621 .72367 .94383 .99534", 1e-5),
    ],
    ids=["min-SNR, eps", "min-SNR, v", "debiased, eps", "debiased, v"],
)
def test_weights_are_those_of_the_table(
    config: LossConfig, kind: Kind, table: str, last_digit: float
) -> None:
    found = snr_weight(config, kind, SNR)
    assert_close(found, numbers(table), rtol=0, atol=0.51 * last_digit)


@pytest.mark.parametrize(
    ("config", "table"),
    [
        (HUBER_SNR, ".9497 .5983 .413 .2313 .1346 .1037"),
        (HUBER_EXPONENTIAL, "1 .7943 .5623 .3162 .1778 .1002"),
    ],
    ids=["snr", "exponential"],
)
def test_thresholds_are_those_of_the_table(config: LossConfig, table: str) -> None:
    found = huber_threshold(config, SIGMAS, TIMESTEPS / 1000)
    assert_close(found, numbers(table), rtol=0, atol=5.1e-5)


def test_a_constant_threshold_is_scaled() -> None:
    config = LossConfig(loss_type="huber", huber_schedule="constant", huber_c=0.2, huber_scale=3.0)
    assert_close(huber_threshold(config, SIGMAS, TIMESTEPS / 1000), torch.full((6,), 0.6))


def test_an_exponential_threshold_is_scaled_and_that_of_snr_is_not() -> None:
    level = TIMESTEPS / 1000
    scaled = [
        LossConfig(loss_type="huber", huber_schedule=schedule, huber_scale=2.0)
        for schedule in ("exponential", "snr")
    ]
    once = [huber_threshold(one, SIGMAS, level) for one in (HUBER_EXPONENTIAL, HUBER_SNR)]
    twice = [huber_threshold(one, SIGMAS, level) for one in scaled]
    assert_close(twice[0], 2 * once[0])
    assert_close(twice[1], once[1])


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_thresholds_are_on_the_device_of_sigma(schedule: str) -> None:
    config = LossConfig(loss_type="huber", huber_schedule=schedule)
    assert huber_threshold(config, SIGMAS.to("meta"), TIMESTEPS / 1000).is_meta


def test_scaling_v_like_noise_is_the_formula() -> None:
    assert_close(snr_weight(LIKE_NOISE, "v", SNR), SNR / (SNR + 1))


def test_a_loss_like_that_of_v_is_added() -> None:
    assert_close(snr_weight(LIKE_V, "eps", SNR), 1 + 0.5 * (SNR + 1) / SNR)


def test_weights_multiply() -> None:
    both = LossConfig(min_snr_gamma=5.0, debiased_estimation_loss=True)
    expected = snr_weight(MIN_SNR, "eps", SNR) * snr_weight(DEBIASED, "eps", SNR)
    assert_close(snr_weight(both, "eps", SNR), expected)


def test_without_settings_all_weights_are_1() -> None:
    assert torch.equal(snr_weight(LossConfig(), "eps", SNR), torch.ones(6))
    assert torch.equal(flow_weight(LossConfig(), SIGMAS), torch.ones(6))


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("config", [MIN_SNR, DEBIASED, LIKE_NOISE, LIKE_V])
def test_pure_noise_has_a_finite_weight(config: LossConfig, kind: Kind) -> None:
    assert snr_weight(config, kind, torch.zeros(1)).isfinite().all()


def test_min_snr_does_not_change_the_weight_of_pure_noise() -> None:
    assert snr_weight(MIN_SNR, "eps", torch.zeros(1)).tolist() == [1.0]


def test_weights_of_flow_are_the_formulas() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0])
    by_sigma = flow_weight(LossConfig(weighting="sigma_sqrt"), sigma)
    assert_close(by_sigma, torch.tensor([100.0, 4.0, 1.0]))
    cosmap = flow_weight(LossConfig(weighting="cosmap"), sigma)
    assert_close(cosmap, 2 / torch.pi / torch.tensor([0.82, 0.5, 1.0]))


@pytest.mark.parametrize(
    ("loss_type", "cost"),
    [
        ("l2", lambda d, _: d**2),
        ("l1", lambda d, _: abs(d)),
        ("huber", lambda d, c: 2 * c * (math.sqrt(d**2 + c**2) - c)),
        ("smooth_l1", lambda d, c: 2 * (math.sqrt(d**2 + c**2) - c)),
    ],
)
def test_the_cost_of_an_element_is_the_formula(loss_type, cost) -> None:
    config = LossConfig(loss_type=loss_type, huber_schedule="exponential")
    levels = [0.0, 0.4, 0.999]
    residual = torch.randn(3, 4)
    found = elementwise(config, residual, torch.ones(3), torch.tensor(levels))
    expected = [
        [cost(d, math.exp(math.log(0.1) * level)) for d in row]
        for level, row in zip(levels, residual.tolist(), strict=True)
    ]
    assert_close(found, torch.tensor(expected))


def test_huber_is_a_square_near_0_and_a_line_far_away() -> None:
    config = LossConfig(loss_type="huber", huber_schedule="constant")
    residual = torch.tensor([[1e-3, 1e3]])
    found = elementwise(config, residual, torch.ones(1), torch.zeros(1))
    assert_close(found, torch.tensor([[1e-6, 200.0]]), rtol=1e-3, atol=1e-8)


def test_a_mask_multiplies_before_the_mean() -> None:
    loss = torch.rand(2, 4, 3, 5)
    mask = torch.rand(2, 1, 3, 5)
    found = masked_mean(LossConfig(), loss, mask)
    assert_close(found, (loss * mask).mean(dim=(1, 2, 3)))


def test_outside_of_the_mask_at_least_the_unmasked_weight_counts() -> None:
    mask = torch.tensor([[[0.0, 0.05, 0.5, 1.0]]])
    found = masked_mean(LossConfig(unmasked_weight=0.1), torch.ones(1, 1, 4), mask)
    assert_close(found, torch.tensor([0.425]))


def test_a_normalised_mask_does_not_make_a_loss_smaller() -> None:
    loss = torch.full((2, 4, 3, 5), 0.7)
    mask = torch.rand(2, 1, 3, 5)
    found = masked_mean(LossConfig(normalize_mask=True), loss, mask)
    assert_close(found, torch.full((2,), 0.7))


def test_a_mask_that_hides_everything_costs_nothing() -> None:
    loss = torch.ones(2, 4, 3, 5)
    found = masked_mean(LossConfig(normalize_mask=True), loss, torch.zeros(2, 1, 3, 5))
    assert found.tolist() == [0.0, 0.0]


def test_the_settings_can_be_written_and_read() -> None:
    config = LossConfig(loss_type="huber", min_snr_gamma=5.0, normalize_mask=True)
    assert LossConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"huber_c": 0.0}, "huber_c"),
        ({"huber_scale": math.inf}, "huber_scale"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma"),
        ({"v_pred_like_loss": math.nan}, "v_pred_like_loss"),
        ({"prior_loss_weight": -0.5}, "prior_loss_weight"),
        ({"unmasked_weight": 1.5}, "unmasked_weight"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        LossConfig(**settings)
