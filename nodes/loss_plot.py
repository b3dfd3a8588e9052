"""The losses of a training as a picture: every step pale, their smoothed course, and the validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..algorithms.analysis.series import Stretch, smoothed, thinned, usual_range
from .drawing import (
    BAND,
    FAINT,
    GRID,
    INK,
    LARGE,
    LINE,
    MARGIN,
    SMALL,
    Canvas,
    Colour,
    number,
    text_width,
)
from .host.images import Images, as_image

VALIDATION: Colour = (200, 96, 16)
SPAN = 0.05
"""Over which share of the steps losses are smoothed."""
SMALLEST = (320, 200)
DOT = 3.0
TICK_GAP_PX = 44

Place = tuple[float, float]


def draw_losses(
    losses: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    size: tuple[int, int] = (960, 540),
) -> Images:
    """Returns the curve as an IMAGE.

    Args:
        losses: (Step, loss), by step, ascending. What is no number is a gap.
        validation: The same of pictures that were not trained on.
        size: (Width, height) in pixels, at least 320 x 200.
    """
    width, height = (max(one, least) for one, least in zip(size, SMALLEST, strict=True))
    canvas = Canvas(width, height)
    steps = [Stretch.of(step, loss) for step, loss in losses]
    span = SPAN * (steps[-1].step - steps[0].step) if steps else 0.0
    means = smoothed(steps, span)
    canvas.text(MARGIN, MARGIN + 8, _title(steps, means, validation), LARGE)
    axes = _Axes.of(steps, validation, width, height)
    axes.draw(canvas)
    stretches = thinned(steps, max(round(axes.width), 1))
    for run in _runs([place for one in stretches for place in axes.span(one)]):
        _line(canvas, run, BAND, 1)
    for run in _runs([axes.place(one.step, mean) for one, mean in zip(steps, means, strict=True)]):
        _line(canvas, run, LINE, 2)
    held_out = [axes.place(step, loss) for step, loss in validation]
    for run in _runs(held_out):
        _line(canvas, run, VALIDATION, 1.5)
    for place in held_out:
        if place is not None:
            _dot(canvas, place, VALIDATION)
    _draw_legend(canvas, validated=bool(validation))
    return as_image(canvas.finished())


def _title(
    steps: Sequence[Stretch], means: Sequence[float], validation: Sequence[tuple[int, float]]
) -> str:
    known = [
        (one.step, mean) for one, mean in zip(steps, means, strict=True) if math.isfinite(mean)
    ]
    if not known:
        return "No loss was a number" if steps else "No steps"
    step, loss = known[-1]
    title = f"Loss {number(loss)} at step {step}"
    measured = [one for _, one in validation if math.isfinite(one)]
    return f"{title}, validation {number(measured[-1])}" if measured else title


@dataclass(frozen=True)
class _Axes:
    """Where steps and losses lie in the picture."""

    left: int
    top: int
    width: int
    height: int
    steps: tuple[float, ...]
    """Marks on the axis of steps."""
    losses: tuple[float, ...]
    """Marks on the axis of losses; the first and the last are its ends."""
    first: int
    last: int

    @classmethod
    def of(
        cls,
        steps: Sequence[Stretch],
        validation: Sequence[tuple[int, float]],
        width: int,
        height: int,
    ) -> _Axes:
        top, below = MARGIN + 54, 46
        across = [one.step for one in steps] + [step for step, _ in validation]
        first, last = (min(across), max(across)) if across else (0, 1)
        values = [one.loss for one in steps] + [loss for _, loss in validation]
        inner_height = height - top - below
        marks = ticks(*usual_range(values), max(inner_height // TICK_GAP_PX, 2))
        left = MARGIN + max(text_width(words, SMALL) for words in _labels(marks)) + 10
        inner_width = width - left - MARGIN - 8
        inside = [
            mark
            for mark in ticks(first, max(last, first + 1), max(inner_width // 110, 2))
            if first <= mark <= last and mark == int(mark)
        ]
        return cls(left, top, inner_width, inner_height, tuple(inside), marks, first, last)

    def place(self, step: float, loss: float) -> Place | None:
        """Returns where a loss lies; None for no number."""
        return (self.x(step), self.y(loss)) if math.isfinite(loss) else None

    def x(self, step: float) -> float:
        """Returns where a step lies across the picture."""
        share = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return self.left + share * self.width

    def y(self, loss: float) -> float:
        """Returns how far down a loss lies, at the edge if it is beyond."""
        low, high = self.losses[0], self.losses[-1]
        share = min(max((loss - low) / (high - low), 0.0), 1.0)
        return self.top + (1 - share) * self.height

    def span(self, one: Stretch) -> list[Place | None]:
        """Returns where the line of all steps goes: up and down where one place is for several."""
        ends = [one.loss] if one.low == one.high else [one.high, one.low]
        return [self.place(one.step, loss) for loss in ends]

    def draw(self, canvas: Canvas) -> None:
        """Draws lines and labels."""
        right, bottom = self.left + self.width, self.top + self.height
        for mark, words in zip(self.losses, _labels(self.losses), strict=True):
            y = self.y(mark)
            canvas.line([(self.left, y), (right, y)], GRID)
            canvas.text(self.left - 8, y, words, SMALL, FAINT, anchor="r")
        for mark in self.steps:
            x = self.x(mark)
            canvas.line([(x, bottom), (x, bottom + 4)], FAINT)
            canvas.text(x, bottom + 14, f"{mark:.0f}", SMALL, FAINT, anchor="m")
        canvas.line([(self.left, bottom), (right, bottom)], FAINT)
        canvas.text(self.left + self.width / 2, bottom + 32, "Step", SMALL, FAINT, anchor="m")


def ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Returns round numbers that enclose a range, evenly spaced.

    Args:
        low: The lower end.
        high: The upper end; the range is widened where it is the same.
        count: About how many.
    """
    if math.isclose(low, high, rel_tol=1e-6):
        widening = abs(low) / 10 or 1.0
        low, high = low - widening, high + widening
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{index * step:.10g}") for index in range(first, last + 1))


def _labels(marks: Sequence[float]) -> list[str]:
    """Returns marks with as many decimals as the one that needs most."""
    for decimals in range(6):
        if all(math.isclose(round(mark, decimals), mark, abs_tol=1e-9) for mark in marks):
            return [f"{mark:.{decimals}f}" for mark in marks]
    return [number(mark) for mark in marks]


def _runs(places: Iterable[Place | None]) -> list[list[Place]]:
    """Returns what lies between gaps."""
    runs: list[list[Place]] = [[]]
    for place in places:
        if place is not None:
            runs[-1].append(place)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(canvas: Canvas, run: Sequence[Place], colour: Colour, width: float) -> None:
    """Draws a line, or a dot where it has one point only."""
    if len(run) == 1:
        _dot(canvas, run[0], colour)
    else:
        canvas.line(run, colour, width)


def _dot(canvas: Canvas, place: Place, colour: Colour) -> None:
    turns = [index * math.tau / 16 for index in range(16)]
    canvas.area(
        [(place[0] + DOT * math.cos(turn), place[1] + DOT * math.sin(turn)) for turn in turns],
        colour,
    )


def _draw_legend(canvas: Canvas, *, validated: bool) -> None:
    """Says below the title which line is what."""
    x, y = float(MARGIN), MARGIN + 34
    shown = [("each step", BAND), ("smoothed", LINE)]
    for words, colour in [*shown, ("validation", VALIDATION)] if validated else shown:
        canvas.line([(x, y), (x + 18, y)], colour, 3)
        canvas.text(x + 24, y, words, SMALL, INK)
        x += 24 + text_width(words, SMALL) + 20
