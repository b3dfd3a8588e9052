"""Schedules of the learning rate: its factor at a step, by the step's number alone.

The first step is number 0. While warming up the factor is `step / warmup`; after it a shape falls from
1 over the progress `p = (step - warmup) / (total - warmup)`. Names, shapes and the ramp from 0 are those
of sd-scripts (from transformers' `optimization.py`); `rex` is OneTrainer's, after Chen et al. 2021,
arXiv 2107.04197. Departures: `minimum` is a ratio for `polynomial` too, which there ends at a rate of
1e-7, and a warm-up starts from 0 for `warmup_stable_decay` too.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import TrainingError

ScheduleName = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
    "rex",
]

DEFAULT_TIMESCALE = 10_000
"""Of `inverse_sqrt` without a warm-up, as in transformers."""


@dataclass(frozen=True)
class ScheduleConfig:
    """A schedule by its name and numbers; a shape that has no use for a number ignores it.

    Raises:
        TrainingError: A value has no meaning.
    """

    name: ScheduleName = "constant"
    warmup: float = 0.0
    """Steps, or below 1 a fraction of all steps."""
    decay: float = 0.1
    """Steps that `warmup_stable_decay` falls in, or below 1 a fraction of all steps."""
    minimum: float = 0.0
    """Factor that a falling shape ends at."""
    cycles: float = 1.0
    """Restarts of `cosine_with_restarts`; half waves of `cosine_with_min_lr` and
    `warmup_stable_decay`."""
    power: float = 1.0
    """Of `polynomial`."""
    timescale: float = 0.0
    """Of `inverse_sqrt`, in steps; 0 is the length of the warm-up."""

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise TrainingError(
                f'There is no schedule "{self.name}". Choose one of '
                f"{', '.join(get_args(ScheduleName))}."
            )
        for field in ("warmup", "decay", "minimum", "timescale"):
            _check_number(field, getattr(self, field), above_zero=False)
        for field in ("cycles", "power"):
            _check_number(field, getattr(self, field), above_zero=True)
        if self.minimum > 1:
            raise TrainingError(
                f"The minimum of a schedule is a factor from 0 to 1, but it is {self.minimum}."
            )
        if self.name == "constant" and self.warmup:
            raise TrainingError(
                "The schedule constant has no warm-up. Choose constant_with_warmup, or set the "
                "warm-up to 0."
            )

    def check(self, total_steps: int) -> None:
        """Checks that a training of `total_steps` is long enough for the schedule.

        Raises:
            TrainingError: It would end before its warm-up or its decay could.
        """
        parts = {"warm-up": length_in_steps(self.warmup, total_steps)}
        if self.name == "warmup_stable_decay":
            parts["decay"] = length_in_steps(self.decay, total_steps)
        if sum(parts.values()) > total_steps:
            written = " and ".join(f"a {part} of {steps} steps" for part, steps in parts.items())
            raise TrainingError(
                f"The schedule {self.name} has {written}, but the training has only {total_steps}. "
                "Shorten them, or write them as fractions below 1."
            )


def _check_number(field: str, value: float, *, above_zero: bool) -> None:
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise TrainingError(
            f"The {field} of a schedule must be a number {'above' if above_zero else 'from'} 0"
            f"{'' if above_zero else ' on'}, but it is {value}."
        )


def length_in_steps(length: float, total_steps: int) -> int:
    """Returns a number of steps; below 1 the length is a fraction of all steps, rounded down."""
    return int(length * total_steps if length < 1 else length)


def factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Returns the factor on the learning rate at a step, the first of which is 0."""
    warmup = length_in_steps(config.warmup, total_steps)
    if step < warmup:
        return step / warmup
    if config.name in ("constant", "constant_with_warmup"):
        return 1.0
    if config.name == "inverse_sqrt":
        return inverse_sqrt(step, warmup, config.timescale)
    if config.name == "warmup_stable_decay":
        decay = length_in_steps(config.decay, total_steps)
        warmup = max(warmup, total_steps - decay)
    progress = min(max(step - warmup, 0) / max(total_steps - warmup, 1), 1.0)
    return config.minimum + (1.0 - config.minimum) * _shape(config, progress)


def _shape(config: ScheduleConfig, progress: float) -> float:
    if config.name == "linear":
        return 1.0 - progress
    if config.name == "cosine":
        return cosine(progress)
    if config.name == "cosine_with_restarts":
        return cosine_with_restarts(progress, config.cycles)
    if config.name == "polynomial":
        return (1.0 - progress) ** config.power
    if config.name == "rex":
        return rex(progress)
    return cosine(progress, config.cycles)


def cosine(progress: float, half_waves: float = 1.0) -> float:
    """Returns `(1 + cos(pi n p)) / 2`."""
    return 0.5 * (1.0 + math.cos(math.pi * half_waves * progress))


def cosine_with_restarts(progress: float, cycles: float) -> float:
    """Returns half a wave of the cosine, begun anew `cycles` times, and 0 at the end."""
    return 0.0 if progress >= 1.0 else cosine(cycles * progress % 1.0)


def rex(progress: float) -> float:
    """Returns `(1 - p) / (0.1 + 0.9 (1 - p))`: nearly flat at first, steep at the end."""
    return (1.0 - progress) / (0.1 + 0.9 * (1.0 - progress))


def inverse_sqrt(step: int, warmup: int, timescale: float) -> float:
    """Returns `sqrt(t / (step - warmup + t))`, which is 1 where the warm-up ends and never 0."""
    timescale = timescale or float(warmup) or float(DEFAULT_TIMESCALE)
    return math.sqrt(timescale / (step - warmup + timescale))
