"""Rounding by chance: unbiased, and what it saves from being lost."""

import pytest
import torch
from torch import nn

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.rounding import round_stochastically
from anyadapter.algorithms.training.rounding import WideParameters


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
each_dtype = pytest.mark.parametrize("dtype", NARROW)


@each_dtype
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("low", [1.0, "smallest", 0.0], ids=["normal", "subnormal", "zero"])
def test_the_share_of_values_rounded_up_is_their_distance_from_below(
    dtype: torch.dtype, sign: float, low: float | str
):
    count, numbers = 1 << 16, torch.finfo(dtype)
    least = numbers.smallest_normal * numbers.eps
    low = 5 * least if low == "smallest" else float(low)
    high = low + (numbers.eps if low == 1 else least)
    values = torch.full((count,), sign * (low + 0.3 * (high - low)))
    rounded = round_stochastically(values, dtype, generator())
    assert rounded.dtype == dtype
    assert set(rounded.float().tolist()) == {sign * low, sign * high}
    # Five standard deviations of a share of 0.3.
    assert (rounded.float() == sign * high).float().mean().item() == pytest.approx(
        0.3, abs=5 * (0.3 * 0.7 / count) ** 0.5
    )


@each_dtype
def test_the_mean_of_rounded_values_is_theirs(dtype: torch.dtype):
    torch.manual_seed(1)
    values = torch.randn(200).repeat(4000, 1)
    mean = round_stochastically(values, dtype, generator()).double().mean(0)
    numbers = torch.finfo(dtype)
    # Five standard deviations: that of one value is at most half a step of it.
    most = (values[0].abs() * numbers.eps).clamp(min=numbers.smallest_normal * numbers.eps) / 2
    assert ((mean - values[0]).abs() <= 5 * most / 4000**0.5).all()


@each_dtype
def test_values_that_are_of_the_narrow_kind_already_stay_as_they_are(dtype: torch.dtype):
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = (bits if dtype.itemsize == 2 else bits.to(torch.int8)).view(dtype)
    every = every[every.float().isfinite()]
    rounded = round_stochastically(every.float(), dtype, generator())
    assert torch.equal(rounded.float(), every.float())


@each_dtype
def test_infinity_and_nan_stay_what_they_are(dtype: torch.dtype):
    most = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([torch.tensor([float("inf"), float("-inf"), float("nan")]), most])
    rounded = round_stochastically(values, dtype, generator())
    expected = values.to(dtype).float()
    assert torch.equal(rounded.float().nan_to_num(7, 8, 9), expected.nan_to_num(7, 8, 9))


@each_dtype
def test_what_is_beyond_the_largest_number_becomes_that(dtype: torch.dtype):
    most = torch.finfo(dtype).max
    values = torch.tensor([most, -most]).mul(1 + 2.0**-20).clamp(-3.4e38, 3.4e38).repeat(1000)
    rounded = round_stochastically(values, dtype, generator()).float()
    assert rounded.abs().max() <= most
    assert rounded.isfinite().all()


def test_the_same_seed_rounds_alike_and_another_does_not():
    values = torch.randn(100)
    first = round_stochastically(values, torch.bfloat16, generator())
    assert torch.equal(round_stochastically(values, torch.bfloat16, generator()), first)
    assert not torch.equal(round_stochastically(values, torch.bfloat16, generator(1)), first)


def test_plain_bfloat16_stalls_where_rounding_by_chance_goes_on():
    """A step of 0.001 from 1 is a quarter of half the distance to the next bfloat16."""
    plain, rounded = (nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(2))
    wide = WideParameters([rounded], seed=3)
    with wide.filled():
        by_chance = torch.optim.SGD([wide.of(rounded)], lr=0.001)
    to_the_nearest = torch.optim.SGD([plain], lr=0.001)
    for step in range(200):
        plain.grad, rounded.grad = torch.ones_like(plain), torch.ones_like(rounded)
        to_the_nearest.step()
        with wide.filled(step):
            by_chance.step()
    assert (plain == 1).all()
    # 200 steps go down by 0.2; a mean of 64 walks of variance 200 * 0.001 * 2^-8 is off by 0.0035.
    assert rounded.float().mean().item() == pytest.approx(0.8, abs=5 * 0.0035)


def test_stand_ins_are_float32_while_filled_and_empty_otherwise():
    parameter = nn.Parameter(torch.randn(4, 3, dtype=torch.bfloat16))
    parameter.grad = torch.randn(4, 3, dtype=torch.bfloat16)
    wide = WideParameters([parameter], seed=0)
    stand_in = wide.of(parameter)
    with wide.filled():
        assert stand_in.grad is not None
        assert torch.equal(stand_in, parameter.float())
        assert torch.equal(stand_in.grad, parameter.grad.float())
    assert stand_in.numel() == 0
    assert stand_in.grad is None


def test_filling_without_a_change_leaves_the_parameters_exactly():
    parameter = nn.Parameter(torch.randn(50, dtype=torch.bfloat16))
    before = parameter.detach().clone()
    wide = WideParameters([parameter], seed=0)
    for step in (None, 5):
        with wide.filled(step):
            pass
        assert torch.equal(parameter, before)


def test_an_exception_within_a_step_leaves_the_parameters_and_frees_the_stand_ins():
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    wide = WideParameters([parameter], seed=0)
    with pytest.raises(RuntimeError, match="size of tensor"), wide.filled(0):
        wide.of(parameter).data.fill_(1.0).add_(torch.zeros(4))
    assert (parameter == 0).all()
    assert wide.of(parameter).numel() == 0


def test_float32_parameters_stand_for_themselves():
    parameter = nn.Parameter(torch.zeros(3))
    assert WideParameters([parameter], seed=0).of(parameter) is parameter


def test_float16_parameters_are_refused():
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    with pytest.raises(TrainingError, match=r"torch\.float16 cannot be trained"):
        WideParameters([parameter], seed=0)
