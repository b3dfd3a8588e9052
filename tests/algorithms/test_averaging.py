"""The moving average of parameters: values by hand, its start and interval, and its state."""

import pytest
import torch
from torch import nn

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.averaging import Average


def follow(average: Average, parameter: nn.Parameter, values: list[float]) -> None:
    """Sets the parameter to each value in turn, as if steps had done it."""
    for step, value in enumerate(values, start=1):
        parameter.data.fill_(value)
        average.update(step)


def test_the_average_is_that_calculated_by_hand():
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    average = Average([parameter], decay=0.75)
    follow(average, parameter, [4.0, 8.0])
    average.put_in()
    # 0 -> 0.25 * 4 = 1 -> 0.75 * 1 + 0.25 * 8
    assert parameter.tolist() == [2.75, 2.75]


def test_it_begins_with_the_parameters_after_the_first_steps():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average([parameter], decay=0.5, start=2)
    follow(average, parameter, [100.0, 4.0, 8.0])
    average.put_in()
    assert parameter.item() == 6.0


def test_before_its_start_it_leaves_the_parameters_as_they_are():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average([parameter], decay=0.5, start=10)
    follow(average, parameter, [3.0, 5.0])
    average.put_in()
    assert parameter.item() == 5.0


def test_between_intervals_steps_do_not_count():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average([parameter], decay=0.5, interval=2)
    follow(average, parameter, [100.0, 4.0, 100.0, 8.0, 100.0])
    average.put_in()
    # 0 -> 0.5 * 4 = 2 -> 0.5 * 2 + 0.5 * 8
    assert parameter.item() == 5.0


def test_the_average_of_bfloat16_parameters_keeps_what_they_cannot_hold():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = Average([parameter], decay=0.99)
    follow(average, parameter, [1.0078125] * 3)
    (value,) = average.state()["values"]
    assert value.item() == pytest.approx(1 + 0.0078125 * (1 - 0.99**3), rel=1e-7)


def test_a_loaded_average_goes_on_as_the_saved_one_and_apart_from_it():
    parameter, other = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    average, resumed = Average([parameter], 0.9), Average([other], 0.9)
    follow(average, parameter, [1.0, 2.0])
    resumed.load(average.state())
    for one, values in ((average, parameter), (resumed, other)):
        values.data.fill_(5.0)
        one.update(3)
        one.put_in()
    assert torch.equal(other, parameter)


def test_an_average_that_has_not_begun_is_loaded_as_such():
    parameter = nn.Parameter(torch.zeros(1))
    begun, waiting = Average([parameter], 0.5), Average([parameter], 0.5, start=5)
    begun.load(waiting.state())
    assert begun.state() == {"values": None}


def test_an_average_of_other_shapes_is_refused():
    small, large = (Average([nn.Parameter(torch.zeros(size))], 0.5) for size in (2, 3))
    with pytest.raises(TrainingError, match="other shapes"):
        large.load(small.state())
