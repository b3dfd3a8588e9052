"""The picture of losses: what a training does is seen in it, also where there is hardly anything."""

import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from anyadapter.nodes.drawing import BAND, INK, LINE
from anyadapter.nodes.loss_plot import VALIDATION, draw_losses, ticks

Pixels = NDArray[np.uint8]
FALLING = [(step, 0.1 + math.exp(-step / 60)) for step in range(1, 301)]


def drawn(
    losses: list[tuple[int, float]],
    validation: list[tuple[int, float]] | None = None,
    size: tuple[int, int] = (640, 360),
) -> Pixels:
    image = draw_losses(losses, validation or [], size)
    assert image.shape == (1, size[1], size[0], 3)
    return (image[0].numpy() * 255).round().astype(np.uint8)


def places(pixels: Pixels, colour: tuple[int, int, int]) -> tuple[NDArray[np.int_], ...]:
    """Rows and columns of a colour below the legend."""
    rows, columns = (pixels[60:] == colour).all(2).nonzero()
    return rows, columns


def test_a_loss_that_falls_falls_in_the_picture():
    rows, columns = places(drawn(FALLING), LINE)
    left, right = (rows[columns < 120].mean(), rows[columns > 560].mean())
    assert left < right - 100


def test_every_step_lies_behind_the_smoothed_line():
    draw = random.Random(1)
    noisy = [(step, loss + draw.uniform(-0.05, 0.05)) for step, loss in FALLING]
    pixels = drawn(noisy)
    assert len(places(pixels, BAND)[0]) > 300
    assert len(places(pixels, LINE)[0]) > 500


def test_validation_has_dots_and_a_line():
    pixels = drawn(FALLING, [(100, 0.4), (300, 0.2)])
    rows, columns = places(pixels, VALIDATION)
    assert np.ptp(columns) > 300
    assert rows[columns.argmax()] > rows[columns.argmin()]
    assert len(places(drawn(FALLING), VALIDATION)[0]) == 0


def test_a_spike_does_not_press_the_curve_to_the_ground():
    spiky = [*FALLING]
    spiky[150] = (151, math.inf)
    spiky[200] = (201, 1e6)
    heights = [np.ptp(places(drawn(losses), BAND)[0]) for losses in (FALLING, spiky)]
    assert heights[1] > 0.9 * heights[0]


@pytest.mark.parametrize(
    ("losses", "dots"),
    [
        ([(step, 0.125) for step in range(1, 101)], 1),
        ([(1, 0.3)], 1),
        ([(1, 0.0)], 1),
        ([(step, math.nan if 30 < step < 60 else 0.2) for step in range(1, 101)], 1),
        ([(1, math.nan)], 0),
        ([(1, math.nan), (2, 0.4), (3, math.nan)], 1),
        ([], 0),
    ],
    ids=["constant", "one step", "zero", "gap", "no number", "one number", "nothing"],
)
def test_hardly_anything_is_drawn_too(losses: list[tuple[int, float]], dots: int):
    pixels = drawn(losses)
    assert (len(places(pixels, LINE)[0]) > 0) == bool(dots)
    assert (pixels[:60] == INK).all(2).any()


def test_where_no_loss_is_a_number_there_is_a_gap():
    losses = [(step, math.nan if 30 < step < 60 else 0.2) for step in range(1, 101)]
    columns = np.unique(places(drawn(losses), LINE)[1])
    assert np.diff(columns).max() > 150


def test_a_long_training_is_drawn_in_its_width():
    losses = [(step, 0.1 + (step % 7) / 10) for step in range(1, 20_001)]
    assert len(places(drawn(losses), BAND)[0]) > 10_000


def test_a_size_too_small_to_read_is_not_made():
    assert draw_losses(FALLING, [], (10, 10)).shape == (1, 200, 320, 3)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 1.0, 4, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (0.11, 0.38, 3, (0.1, 0.2, 0.3, 0.4)),
        (0.5, 0.5, 2, (0.45, 0.5, 0.55)),
        (0.0, 0.0, 2, (-1.0, 0.0, 1.0)),
        (1, 400, 4, (0.0, 100.0, 200.0, 300.0, 400.0)),
    ],
)
def test_marks_are_round_and_enclose_the_range(
    low: float, high: float, count: int, expected: tuple[float, ...]
):
    assert ticks(low, high, count) == expected
