"""Schedules of the learning rate: values by hand, and those of transformers, which sd-scripts uses."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import pytest
import torch
import transformers

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.schedules import (
    ScheduleConfig,
    ScheduleName,
    factor,
    length_in_steps,
)

HALF_ROOT = math.sqrt(0.5)

BY_HAND: list[tuple[ScheduleConfig, list[float]]] = [
    (ScheduleConfig("constant"), [1, 1, 1, 1, 1]),
    (ScheduleConfig("constant_with_warmup", warmup=4.0), [0, 0.5, 1, 1, 1]),
    (ScheduleConfig("linear"), [1, 0.75, 0.5, 0.25, 0]),
    (ScheduleConfig("linear", warmup=4.0), [0, 0.5, 1, 0.5, 0]),
    (ScheduleConfig("linear", warmup=0.25, minimum=0.5), [0, 1, 0.5 + 1 / 3, 0.5 + 1 / 6, 0.5]),
    (ScheduleConfig("cosine"), [1, (1 + HALF_ROOT) / 2, 0.5, (1 - HALF_ROOT) / 2, 0]),
    (ScheduleConfig("cosine", warmup=4.0), [0, 0.5, 1, 0.5, 0]),
    (ScheduleConfig("cosine_with_restarts", cycles=2.0), [1, 0.5, 1, 0.5, 0]),
    (ScheduleConfig("polynomial", power=2.0), [1, 0.5625, 0.25, 0.0625, 0]),
    (ScheduleConfig("inverse_sqrt", timescale=2.0), [1, HALF_ROOT, 3**-0.5, 0.5, 5**-0.5]),
    (ScheduleConfig("inverse_sqrt", warmup=2.0), [0, 1, HALF_ROOT, 3**-0.5, 0.5]),
    (ScheduleConfig("cosine_with_min_lr", minimum=0.2, warmup=4.0), [0, 0.5, 1, 0.6, 0.2]),
    (ScheduleConfig("cosine_with_min_lr", cycles=2.0), [1, 0.5, 0, 0.5, 1]),
    (ScheduleConfig("warmup_stable_decay", warmup=2.0, decay=0.5), [0, 1, 1, 0.5, 0]),
    (ScheduleConfig("warmup_stable_decay", decay=4.0, minimum=0.2), [1, 1, 1, 0.6, 0.2]),
    (ScheduleConfig("rex"), [1, 0.75 / 0.775, 0.5 / 0.55, 0.25 / 0.325, 0]),
]
"""At steps 0, 2, 4, 6 and 8 of 8."""


def written(config: ScheduleConfig) -> str:
    return "-".join(f"{value}" for value in asdict(config).values())


@pytest.mark.parametrize(("config", "factors"), BY_HAND, ids=[written(one) for one, _ in BY_HAND])
def test_factors_are_those_calculated_by_hand(config: ScheduleConfig, factors: list[float]):
    found = [factor(config, step, 8) for step in (0, 2, 4, 6, 8)]
    assert found == pytest.approx(factors, rel=1e-15, abs=1e-15)


def test_every_schedule_is_calculated_by_hand():
    assert {config.name for config, _ in BY_HAND} == set(get_args(ScheduleName))


Make = Callable[[Any], torch.optim.lr_scheduler.LambdaLR]

THEIRS: list[tuple[ScheduleConfig, Make]] = [
    (
        ScheduleConfig("constant_with_warmup", warmup=5.0),
        lambda o: transformers.get_constant_schedule_with_warmup(o, 5),
    ),
    (
        ScheduleConfig("linear", warmup=5.0),
        lambda o: transformers.get_linear_schedule_with_warmup(o, 5, 40),
    ),
    (
        ScheduleConfig("cosine", warmup=5.0),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, 5, 40),
    ),
    (
        ScheduleConfig("cosine_with_restarts", warmup=5.0, cycles=3.0),
        lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 5, 40, 3),
    ),
    (
        ScheduleConfig("polynomial", warmup=5.0, power=1.7, minimum=0.25),
        lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
            o, 5, 40, lr_end=0.25, power=1.7
        ),
    ),
    (
        ScheduleConfig("inverse_sqrt", warmup=5.0),
        lambda o: transformers.get_inverse_sqrt_schedule(o, 5),
    ),
    (ScheduleConfig("inverse_sqrt"), lambda o: transformers.get_inverse_sqrt_schedule(o, 0)),
    (
        ScheduleConfig("inverse_sqrt", warmup=5.0, timescale=9.0),
        lambda o: transformers.get_inverse_sqrt_schedule(o, 5, 9),
    ),
    (
        ScheduleConfig("cosine_with_min_lr", warmup=5.0, minimum=0.1, cycles=3.0),
        lambda o: transformers.get_scheduler(
            "cosine_with_min_lr",
            o,
            5,
            40,
            scheduler_specific_kwargs={"min_lr_rate": 0.1, "num_cycles": 1.5},
        ),
    ),
    (
        ScheduleConfig("warmup_stable_decay", warmup=5.0, decay=0.25),
        lambda o: transformers.get_wsd_schedule(o, 5, 10, num_stable_steps=25),
    ),
]


@pytest.mark.parametrize(("config", "make"), THEIRS, ids=[written(one) for one, _ in THEIRS])
def test_factors_are_those_of_transformers(config: ScheduleConfig, make: Make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (theirs,) = make(optimizer).lr_lambdas
    for step in range(41):
        assert factor(config, step, 40) == pytest.approx(theirs(step), rel=1e-14, abs=1e-15)


def test_after_the_last_step_the_factor_is_that_of_the_last():
    assert factor(ScheduleConfig("cosine", minimum=0.1), 12, 8) == 0.1


def test_a_length_is_in_steps_or_below_1_a_fraction():
    assert [length_in_steps(length, 150) for length in (0.0, 0.1, 0.999, 1.0, 20.0)] == [
        0,
        15,
        149,
        1,
        20,
    ]


def test_one_step_is_a_whole_training():
    assert [factor(ScheduleConfig(name), 0, 1) for name in ("linear", "cosine", "rex")] == [1, 1, 1]


def test_a_schedule_comes_back_from_json():
    config = ScheduleConfig("polynomial", warmup=0.1, power=2.0)
    assert ScheduleConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("warmup", -1.0),
        ("warmup", math.nan),
        ("decay", math.inf),
        ("minimum", -0.1),
        ("timescale", -1.0),
        ("cycles", 0.0),
        ("power", 0.0),
    ],
)
def test_a_number_without_meaning_is_refused(field: str, value: float):
    with pytest.raises(TrainingError, match=f"The {field} of a schedule must be"):
        ScheduleConfig("linear", **{field: value})


def test_a_minimum_above_1_is_refused():
    with pytest.raises(TrainingError, match="from 0 to 1"):
        ScheduleConfig("linear", minimum=1.5)


def test_constant_with_a_warmup_is_refused_and_says_what_to_choose():
    with pytest.raises(TrainingError, match="constant_with_warmup"):
        ScheduleConfig("constant", warmup=10.0)


@pytest.mark.parametrize(
    ("config", "mistake"),
    [
        (ScheduleConfig("linear", warmup=9.0), "a warm-up of 9 steps, but .* only 8"),
        (
            ScheduleConfig("warmup_stable_decay", warmup=4.0, decay=5.0),
            "a warm-up of 4 steps and a decay of 5 steps",
        ),
    ],
)
def test_a_training_shorter_than_its_schedule_is_refused(config: ScheduleConfig, mistake: str):
    with pytest.raises(TrainingError, match=mistake):
        config.check(8)
