"""The curve of losses: taking together and smoothing lose nothing that counts."""

import math
import random

import pytest

from anyadapter.algorithms.analysis.series import Stretch, smoothed, thinned, usual_range


def noisy(count: int, first: int = 1) -> list[Stretch]:
    draw = random.Random(3)
    return [
        Stretch.of(step, 0.1 + draw.expovariate(10) + 1 / step, 1e-4 / step)
        for step in range(first, first + count)
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000, 5003])
def test_there_are_no_more_than_asked_for_and_not_needlessly_few(count: int):
    found = thinned(noisy(count), 64)
    assert min(count, 32) <= len(found) <= 64


def test_few_are_left_as_they_are():
    stretches = noisy(60)
    assert thinned(stretches, 64) == stretches


def test_mean_lowest_highest_and_last_are_kept():
    stretches = noisy(5003, first=977)
    found = thinned(stretches, 50)
    losses = [one.loss for one in stretches]
    assert sum(one.count for one in found) == 5003
    assert sum(one.loss * one.count for one in found) / 5003 == pytest.approx(
        sum(losses) / 5003, rel=1e-12
    )
    assert min(one.low for one in found) == min(losses)
    assert max(one.high for one in found) == max(losses)
    assert (found[-1].step, found[-1].rate) == (stretches[-1].step, stretches[-1].rate)


def test_thinning_on_the_way_changes_nothing():
    stretches = noisy(3000)
    on_the_way: list[Stretch] = []
    for one in stretches:
        on_the_way.append(one)
        if len(on_the_way) > 200:
            on_the_way = thinned(on_the_way, 100)
    once = thinned(stretches, 100)
    again = thinned(on_the_way, 100)
    assert [(one.step, one.count, one.low, one.high) for one in again] == [
        (one.step, one.count, one.low, one.high) for one in once
    ]
    assert [one.loss for one in again] == pytest.approx([one.loss for one in once], rel=1e-12)


def test_a_gap_stays_a_gap_and_spoils_no_mean():
    stretches = [Stretch.of(step, math.inf if step in (2, 4, 5) else 1.0) for step in range(8)]
    found = thinned(stretches, 4)
    assert [one.loss for one in found] == [1.0, 1.0, pytest.approx(math.nan, nan_ok=True), 1.0]
    assert [one.count for one in found] == [2, 1, 0, 2]


def test_smoothing_follows_its_formula():
    stretches = [Stretch.of(step, loss) for step, loss in ((1, 2.0), (2, 1.0), (6, 4.0))]
    a, b, c = (1 - math.exp(-gap / 5) for gap in (1, 1, 4))
    second = (2 * a * (1 - b) + 1 * b) / (a * (1 - b) + b)
    third = (2 * a * (1 - b) * (1 - c) + 1 * b * (1 - c) + 4 * c) / (
        a * (1 - b) * (1 - c) + b * (1 - c) + c
    )
    assert smoothed(stretches, 5.0) == pytest.approx([2.0, second, third], rel=1e-12)


def test_a_constant_is_smoothed_to_itself():
    constant = [Stretch.of(step, 0.125) for step in (3, 4, 9, 100)]
    assert smoothed(constant, 7.0) == pytest.approx([0.125] * 4, rel=1e-12)


def test_no_span_smooths_nothing():
    stretches = noisy(20)
    assert smoothed(stretches, 0.0) == [one.loss for one in stretches]
    assert smoothed([], 5.0) == []


def test_what_is_no_number_is_left_out_of_the_mean():
    losses = [1.0, math.nan, 3.0]
    found = smoothed([Stretch.of(step, loss) for step, loss in enumerate(losses)], 2.0)
    assert math.isnan(found[1])
    assert 1 < found[2] < 3


def test_a_thinned_curve_is_smoothed_to_nearly_the_same():
    stretches = noisy(8192)
    whole = dict(zip([one.step for one in stretches], smoothed(stretches, 400.0), strict=True))
    few = thinned(stretches, 600)
    found = smoothed(few, 400.0)
    # Of a curve between 0.2 and 1.1; the first stretches hold the steep beginning.
    assert [whole[one.step] for one in few][20:] == pytest.approx(found[20:], rel=0.02)


def test_a_spike_lies_outside_and_the_fall_at_the_beginning_inside():
    falling = [0.1 + math.exp(-step / 30) for step in range(100)]
    assert usual_range(falling) == (min(falling), max(falling))
    assert usual_range([*falling, 50.0, math.nan]) == (min(falling), max(falling))


def test_ranges_of_next_to_nothing():
    assert usual_range([]) == (0.0, 1.0)
    assert usual_range([math.nan]) == (0.0, 1.0)
    assert usual_range([0.3]) == usual_range([0.3] * 9) == (0.3, 0.3)
