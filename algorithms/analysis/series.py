"""The losses of a training as a curve: taken together, smoothed, and in the range worth looking at."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Stretch:
    """One step of a training, or several in a row taken together."""

    step: int
    """The last of them."""
    loss: float
    """Their mean; NaN where none of them is a number."""
    rate: float
    """The learning rate of the last."""
    low: float
    """The lowest loss of them."""
    high: float
    """The highest loss of them."""
    count: int
    """How many of them are numbers."""

    @classmethod
    def of(cls, step: int, loss: float, rate: float = 0.0) -> "Stretch":
        """Returns one step."""
        loss = loss if math.isfinite(loss) else math.nan
        return cls(step, loss, rate, loss, loss, int(math.isfinite(loss)))


def thinned(stretches: Sequence[Stretch], most: int) -> list[Stretch]:
    """Returns at most `most` stretches for many, all over the same number of steps.

    That number is a power of two and counted from step 0, so that what was thinned before and went on
    is what it would be, had it been thinned only now.

    Args:
        stretches: By step, ascending.
        most: 1 or more.
    """
    width = 1
    while stretches and stretches[-1].step // width - stretches[0].step // width >= most:
        width *= 2
    return [_together([*one]) for _, one in groupby(stretches, lambda one: one.step // width)]


def _together(stretches: Sequence[Stretch]) -> Stretch:
    last = stretches[-1]
    known = [one for one in stretches if one.count]
    if not known:
        return last
    count = sum(one.count for one in known)
    return Stretch(
        last.step,
        math.fsum(one.loss * (one.count / count) for one in known),
        last.rate,
        min(one.low for one in known),
        max(one.high for one in known),
        count,
    )


def smoothed(stretches: Sequence[Stretch], span: float) -> list[float]:
    """Returns exponential means of the losses up to each stretch; NaN where the loss is NaN.

        mean_i = sum of w_j loss_j / sum of w_j, j ≤ i;   w_j = e^(-(t_i - t_j) / span) (1 - e^(-d_j / span))

    with `t` the steps and `d_j` the distance of a number from the one before it: stretches count by
    the steps they stand for, and the beginning is not drawn towards 0, as by the correction of the
    bias in Adam (Kingma and Ba 2015, arXiv 1412.6980, section 3).

    Args:
        stretches: By step, ascending.
        span: After so many steps a loss counts for 1/e of what it did; 0 smooths nothing.
    """
    if span <= 0:
        return [one.loss for one in stretches]
    means: list[float] = []
    total = weight = 0.0
    before = stretches[0].step - max(stretches[0].count, 1) if stretches else 0
    for one in stretches:
        if math.isnan(one.loss):
            means.append(math.nan)
            continue
        keep = math.exp(-max(one.step - before, 1) / span)
        total = keep * total + (1 - keep) * one.loss
        weight = keep * weight + (1 - keep)
        before = one.step
        means.append(total / weight)
    return means


def usual_range(values: Iterable[float]) -> tuple[float, float]:
    """Returns lowest and highest of the values that lie with the others: a spike is none of them.

    A value lies with the others up to half the distance between the 5 % and the 95 % quantile
    beyond these: further out single losses would take the room that their course needs.

    Args:
        values: Those that are no numbers do not count; (0, 1) where none is one.
    """
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return 0.0, 1.0
    cut = int(0.05 * (len(known) - 1) + 0.5)
    lower, upper = known[cut], known[-1 - cut]
    reach = (upper - lower) / 2
    inside = [value for value in known if lower - reach <= value <= upper + reach]
    return inside[0], inside[-1]
