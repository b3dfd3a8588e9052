"""Noise levels are drawn from the distributions they should be, and lie in the range asked for."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.model_sampling import (
    SMALLEST_FLOW_SIGMA,
    ModelSampling,
)
from anyadapter.algorithms.training.timesteps import (
    NoiseLevel,
    TimestepConfig,
    draw_time,
    level_of,
    noise_level,
    resolution_shift,
    shifted,
)
from checking import annotations_unchecked
from model_samplings import MIXES, sampling_of, sd_sigmas

COUNT = 40_000
SQUARE_PX = (1024, 1024)
MODE = [0.047, 0.055, 0.068, 0.1, 0.23, 0.23, 0.101, 0.069, 0.055, 0.046]
LOGIT_NORMAL = [0.014, 0.069, 0.115, 0.144, 0.158, 0.158, 0.144, 0.115, 0.069, 0.014]


def times(config: TimestepConfig, count: int = COUNT) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    with annotations_unchecked():
        return torch.tensor([draw_time(config, generator) for _ in range(count)])


def flow_with_shift(factor: float) -> ModelSampling:
    return ModelSampling(
        "flow", None, *MIXES["flow"], lambda t: factor * t / (1 + (factor - 1) * t)
    )


@pytest.mark.parametrize(
    ("config", "deciles"),
    [
        (TimestepConfig(), [0.1] * 10),
        (TimestepConfig(timestep_sampling="mode"), MODE),
        (TimestepConfig(timestep_sampling="logit_normal"), LOGIT_NORMAL),
        (TimestepConfig(timestep_sampling="sigmoid"), LOGIT_NORMAL),
    ],
    ids=["uniform", "mode", "logit normal", "sigmoid"],
)
def test_tenths_of_times_are_as_in_the_table(config: TimestepConfig, deciles: list[float]) -> None:
    shares = torch.histc(times(config), bins=10, min=0, max=1) / COUNT
    expected = torch.tensor(deciles)
    sampling_error = (expected * (1 - expected) / COUNT).sqrt()
    # Four deviations, and half a digit of the table and of the experiment that it is from.
    assert ((shares - expected).abs() < 4 * sampling_error + 1e-3).all()


@pytest.mark.parametrize(
    ("config", "mean", "deviation"),
    [
        (TimestepConfig(timestep_sampling="sigmoid", sigmoid_scale=2.0), 0.0, 2.0),
        (TimestepConfig(timestep_sampling="logit_normal", logit_mean=0.7, logit_std=0.5), 0.7, 0.5),
    ],
    ids=["sigmoid", "logit normal"],
)
def test_parameters_are_those_of_the_normal_below(
    config: TimestepConfig, mean: float, deviation: float
) -> None:
    found = times(config, 10_000).logit()
    assert float(found.mean()) == pytest.approx(mean, abs=4 * deviation / 100)
    assert float(found.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * 10_000))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.75])
def test_mode_stays_between_0_and_1(scale: float) -> None:
    found = times(TimestepConfig(timestep_sampling="mode", mode_scale=scale), 5_000)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_mean_of_a_sigmoid_shifted_by_3_is_as_in_the_table() -> None:
    drawn = times(TimestepConfig(timestep_sampling="sigmoid"))
    found = torch.tensor([shifted(float(time), 3.0) for time in drawn])
    assert float(found.mean()) == pytest.approx(0.714, abs=4 * float(found.std()) / 200)


@pytest.mark.parametrize(
    ("side_px", "mu", "factor"), [(512, 0.63, 1.878), (768, 0.8467, 2.332), (1024, 1.15, 3.158)]
)
def test_the_shift_of_flux_is_as_in_the_table(side_px: int, mu: float, factor: float) -> None:
    found = resolution_shift(side_px, side_px)
    assert math.log(found) == pytest.approx(mu, abs=5e-5)
    assert found == pytest.approx(factor, abs=5e-4)


def test_a_shift_is_e_to_the_mu_of_flux() -> None:
    mu, sigma = 1.15, 0.3
    expected = math.exp(mu) / (math.exp(mu) + 1 / sigma - 1)
    assert shifted(sigma, math.exp(mu)) == pytest.approx(expected)


def test_a_timestep_of_a_schedule_is_a_whole_one() -> None:
    found = noise_level(TimestepConfig(), sampling_of("eps"), 0.25049, SQUARE_PX)
    assert found == NoiseLevel(float(sd_sigmas()[250]), 0.25)


@pytest.mark.parametrize(
    ("time", "timestep"), [(0.0, 100), (0.5, 500), (0.999999, 899), (1.0, 899)]
)
def test_the_range_of_timesteps_ends_before_its_end(time: float, timestep: int) -> None:
    config = TimestepConfig(min_timestep=100, max_timestep=900)
    found = noise_level(config, sampling_of("v"), time, SQUARE_PX)
    assert found == NoiseLevel(float(sd_sigmas()[timestep]), timestep / 1000)


def test_a_schedule_that_is_too_short_for_the_range_gives_its_nearest_timestep() -> None:
    short = replace(sampling_of("eps"), sigmas=sd_sigmas()[::50])
    config = TimestepConfig(min_timestep=410, max_timestep=420)
    for time in (0.0, 1.0):
        assert noise_level(config, short, time, SQUARE_PX).level == 8 / 20


def test_every_timestep_of_a_range_is_drawn_as_often() -> None:
    config = TimestepConfig(min_timestep=10, max_timestep=20)
    sampling = sampling_of("eps")
    with annotations_unchecked():
        levels = [
            noise_level(config, sampling, float(time), SQUARE_PX).level for time in times(config)
        ]
    counts = torch.tensor(levels).mul(1000).round().long().bincount(minlength=20)
    assert counts[:10].sum() == 0
    assert (counts[10:] / COUNT - 0.1).abs().max() < 4 * math.sqrt(0.09 / COUNT)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TimestepConfig(), shifted(0.4, 2.0)),
        (TimestepConfig(shift="none"), 0.4),
        (TimestepConfig(shift="constant"), shifted(0.4, 3.0)),
        (TimestepConfig(shift="resolution"), shifted(0.4, math.exp(1.15))),
        (TimestepConfig(shift="none", min_timestep=500), 0.7),
        (TimestepConfig(shift="none", min_timestep=100, max_timestep=600), 0.3),
    ],
    ids=["the model's own", "none", "constant", "by size", "upper half", "a range"],
)
def test_a_time_of_flow_is_shifted_and_then_squeezed_into_the_range(
    config: TimestepConfig, expected: float
) -> None:
    found = noise_level(config, flow_with_shift(2.0), 0.4, SQUARE_PX)
    assert found.sigma == pytest.approx(expected, rel=1e-6)
    assert found.level == found.sigma


def test_a_flow_model_without_a_map_of_its_own_has_no_shift() -> None:
    assert noise_level(TimestepConfig(), sampling_of("flow"), 0.4, SQUARE_PX).sigma == 0.4


@pytest.mark.parametrize("shift", ["model", "none", "constant", "resolution"])
def test_flow_never_has_less_noise_than_can_be_trained(shift) -> None:
    found = noise_level(TimestepConfig(shift=shift), flow_with_shift(2.0), 0.0, SQUARE_PX)
    assert found.sigma == SMALLEST_FLOW_SIGMA


@pytest.mark.parametrize(("level", "timestep"), [(0.0, 0), (0.2, 200), (0.8, 800), (1.0, 999)])
def test_a_level_is_a_timestep_of_the_schedule(level: float, timestep: int) -> None:
    found = level_of(sampling_of("eps"), level)
    assert found == NoiseLevel(float(sd_sigmas()[timestep]), timestep / 1000)


def test_a_level_of_flow_is_a_sigma() -> None:
    assert level_of(sampling_of("flow"), 0.2) == NoiseLevel(0.2, 0.2)


def test_the_settings_can_be_written_and_read() -> None:
    config = TimestepConfig(timestep_sampling="mode", shift="constant", min_timestep=5)
    assert TimestepConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_timestep": 500, "max_timestep": 500}, "no range"),
        ({"min_timestep": -1}, "no range"),
        ({"max_timestep": 1001}, "no range"),
        ({"sigmoid_scale": 0.0}, "sigmoid_scale"),
        ({"logit_std": math.nan}, "logit_std"),
        ({"logit_mean": math.inf}, "logit_mean"),
        ({"discrete_flow_shift": -3.0}, "discrete_flow_shift"),
        ({"mode_scale": 1.8}, "mode_scale"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TimestepConfig(**settings)
