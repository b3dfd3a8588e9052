"""Schedule: a factor on the strength over the progress of sampling, as points on a curve.

Progress is 0 at the first step, where noise is greatest, and 1 at the end. Before its first point and
after its last one the curve keeps their values. Two points at one progress are a jump, and at that
progress itself the later one counts.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from .errors import ScheduleError

Point = tuple[float, float]
"""Progress and value."""

Interpolation = Literal["linear", "cosine", "monotone cubic", "step"]
"""The way from point to point: straight; level at each point; smooth through all points, without
overshooting; the value of a point until the next one."""

Preset = Literal["constant", "linear", "cosine", "window", "points"]

LARGEST_FACTOR = 1000.0
CLOSEST_POINTS = 1e-6
"""Points nearer than this are taken for a slip, and the slopes of a cubic lose all their digits."""

HOW_TO_WRITE = (
    'write "progress:value", such as "0.5:0.3" or "50%:0.3", one to a line or with commas between, '
    "and decimals with a point"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*%?", re.ASCII | re.IGNORECASE)

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class Schedule:
    """A factor on the strength, from the first step of sampling to the last."""

    points: tuple[Point, ...]
    """In order of progress."""
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        if not self.points:
            raise ScheduleError(f"A schedule needs at least one point: {HOW_TO_WRITE}.")
        for number, (progress, value) in enumerate(self.points, start=1):
            _check_point(f"Point {number} ({_written((progress, value))})", progress, value)
        for number in range(2, len(self.points) + 1):
            _check_order(number, self.points[max(number - 3, 0) : number])

    @classmethod
    def constant(cls, value: float) -> "Schedule":
        """Returns the schedule with the same factor at every step."""
        return cls(((0.0, value),))

    @classmethod
    def ramp(
        cls, start: float, end: float, first: float, last: float, interpolation: Interpolation
    ) -> "Schedule":
        """Returns the schedule that goes from `first` at `start` to `last` at `end`."""
        _check_span(start, end)
        return cls(((start, first), (end, last)), interpolation)

    @classmethod
    def window(cls, start: float, end: float, inside: float, outside: float) -> "Schedule":
        """Returns the schedule with one value from `start` to just before `end`, and another else.

        So windows that follow each other count every step once. A window that ends at 1
        takes in the very end.
        """
        _check_span(start, end)
        if start == end:
            return cls.constant(outside)
        points: list[Point] = [(start, inside), (end, inside)]
        if start > 0:
            points.insert(0, (start, outside))
        if end < 1:
            points.append((end, outside))
        return cls(tuple(points))

    @classmethod
    def from_text(cls, text: str, interpolation: Interpolation = "linear") -> "Schedule":
        """Returns the schedule through points such as `0:1, 50%:0.3, 1:0`, also one to a line.

        Raises:
            ScheduleError: Something is no point, or the points make no curve; the message tells
                the line and the point.
        """
        points: list[Point] = []
        for line_number, line in enumerate(text.splitlines(), start=1):
            for piece in filter(None, map(str.strip, line.split(","))):
                place = f'Point {len(points) + 1} in line {line_number} ("{piece}")'
                points.append(_read_point(place, piece))
        return cls(tuple(points), interpolation)

    def as_text(self) -> str:
        """Returns the points as `from_text` reads them."""
        return ", ".join(map(_written, self.points))

    def at(self, progress: float) -> float:
        """Returns the factor at a progress; before 0 and after 1 it is that at 0 and at 1."""
        if math.isnan(progress):
            raise ScheduleError("The progress of sampling is not a number.")
        return self._value(progress, bisect_right(self.points, progress, key=_progress))

    def sample(self, count: int) -> list[Point]:
        """Returns points to draw straight lines through.

        They are `count` even ones and the schedule's own; a jump has two at the same progress.
        """
        even = (step / (count - 1) for step in range(count))
        sampled: list[Point] = []
        for progress in sorted({*even, *map(_progress, self.points)}):
            until = self._value(progress, bisect_left(self.points, progress, key=_progress))
            for point in ((progress, until), (progress, self.at(progress))):
                if sampled[-1:] != [point]:
                    sampled.append(point)
        return sampled

    def _value(self, progress: float, following: int) -> float:
        """Returns the value just before the point with the index `following`, or far before it."""
        if following == 0:
            return self.points[0][1]
        if following == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[following - 1 : following + 1]
        share = (progress - x0) / (x1 - x0)
        if self.interpolation == "step":
            return y0
        if self.interpolation == "monotone cubic":
            value = self._cubic(following - 1, share)
        else:
            if self.interpolation == "cosine":
                share = (1 - math.cos(math.pi * share)) / 2
            value = (1 - share) * y0 + share * y1
        return min(max(value, min(y0, y1)), max(y0, y1))  # rounding may lead out

    def _cubic(self, index: int, share: float) -> float:
        """Returns the cubic from point `index` to the next one that has the slopes of both."""
        (x0, y0), (x1, y1) = self.points[index : index + 2]
        width = x1 - x0
        rest = 1 - share
        return (
            (1 + 2 * share) * rest**2 * y0
            + share * rest**2 * width * self._slope(index)
            + (3 - 2 * share) * share**2 * y1
            - share**2 * rest * width * self._slope(index + 1)
        )

    def _slope(self, index: int) -> float:
        """Returns the slope of the monotone cubic at a point.

        Source: Fritsch and Butland 1984, "A method for constructing local monotone piecewise cubic
        interpolants"; at ends and jumps the one-sided rule of Moler's `pchip`.
        """
        left, right = self._secant(index - 1), self._secant(index)
        if left is not None and right is not None:
            return _weighted_harmonic_mean(left, right)
        if right is not None:
            return _end_slope(right, self._secant(index + 1))
        assert left is not None
        return _end_slope(left, self._secant(index - 2))

    def _secant(self, index: int) -> "Secant | None":
        """Returns the line from a point to the next; None at the ends and for a jump."""
        if not 0 <= index < len(self.points) - 1:
            return None
        (x0, y0), (x1, y1) = self.points[index : index + 2]
        return None if x0 == x1 else Secant(x1 - x0, (y1 - y0) / (x1 - x0))


@dataclass(frozen=True)
class Secant:
    """The straight line between two points."""

    width: float
    slope: float


def schedule_from_choices(
    preset: str,
    *,
    start: float,
    end: float,
    from_or_inside: float,
    to_or_outside: float,
    points: str,
    interpolation: str,
) -> Schedule:
    """Returns the schedule that a user chose; what a preset does not need is not read.

    Raises:
        ScheduleError: The choices describe no curve, or a name is not known.
    """
    chosen = _choice("preset", preset, get_args(Preset))
    if chosen == "constant":
        return Schedule.constant(from_or_inside)
    if chosen == "window":
        return Schedule.window(start, end, from_or_inside, to_or_outside)
    if chosen == "points":
        way = _choice("interpolation", interpolation, get_args(Interpolation))
        return Schedule.from_text(points, way)
    return Schedule.ramp(start, end, from_or_inside, to_or_outside, chosen)


def _choice(what: str, name: str, known: Sequence[Choice]) -> Choice:
    for choice in known:
        if choice == name:
            return choice
    raise ScheduleError(f'There is no {what} "{name}". Choose one of: {", ".join(known)}.')


def _progress(point: Point) -> float:
    return point[0]


def _written(point: Point) -> str:
    return ":".join(repr(float(number)).removesuffix(".0") for number in point)


def _read_point(place: str, piece: str) -> Point:
    progress, colon, value = map(str.strip, piece.partition(":"))
    if not colon:
        raise ScheduleError(f"{place} has no colon: {HOW_TO_WRITE}.")
    read = (_number(place, progress), _number(place, value))
    _check_point(place, *read)
    return read


def _number(place: str, text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise ScheduleError(f'{place}: "{text}" is not a number. Please {HOW_TO_WRITE}.')
    number = text.removesuffix("%")
    return float(number) if number == text else float(number) / 100


def _check_point(place: str, progress: float, value: float) -> None:
    if not 0 <= progress <= 1:
        raise ScheduleError(
            f"{place}: the progress must be from 0 (the first step) to 1 (the end), or from 0% "
            f"to 100%."
        )
    if not abs(value) <= LARGEST_FACTOR:
        raise ScheduleError(
            f"{place}: the value is a factor on the strength and must be a number from "
            f"-{LARGEST_FACTOR:.0f} to {LARGEST_FACTOR:.0f}."
        )


def _check_order(number: int, points: Sequence[Point]) -> None:
    """Checks the last of two or three points against those before it."""
    (before, _), (progress, _) = points[-2:]
    place = f"Point {number} ({_written(points[-1])})"
    if progress < before:
        raise ScheduleError(
            f"{place} lies before the point ahead of it ({_written(points[-2])}). "
            "Put the points in order of progress."
        )
    if before < progress < before + CLOSEST_POINTS:
        raise ScheduleError(
            f"{place} is too close to the point ahead of it ({_written(points[-2])}). "
            "For a jump give both the same progress."
        )
    if len(points) > 2 and points[-3][0] == progress:
        raise ScheduleError(
            f"{place} is the third one at its progress. A jump has two points: the value before it "
            "and the value from there on."
        )


def _check_span(start: float, end: float) -> None:
    if start > end:
        raise ScheduleError(
            f"The start ({start:g}) lies after the end ({end:g}). Exchange them, or raise the end."
        )


def _weighted_harmonic_mean(left: Secant, right: Secant) -> float:
    if left.slope * right.slope <= 0:
        return 0.0
    left_weight = left.width + 2 * right.width
    right_weight = 2 * left.width + right.width
    weights = left_weight + right_weight
    return weights / (left_weight / left.slope + right_weight / right.slope)


def _end_slope(near: Secant, far: Secant | None) -> float:
    """Returns the slope at the outer end of `near`, as of a parabola unless that would overshoot."""
    if far is None:
        return near.slope
    slope = (2 * near.width + far.width) * near.slope - near.width * far.slope
    slope /= near.width + far.width
    if slope * near.slope <= 0:
        return 0.0
    if near.slope * far.slope <= 0 and abs(slope) > 3 * abs(near.slope):
        return 3 * near.slope
    return slope
