"""The rule of strength: what adapters make of a weight or a bias, and how strong they are when.

    W' = W + sum of s_i * delta_weight_i(W)        y' = y + sum of s_i * delta_output_i(x, y, layer)

Every change is computed from the base and the changes are added, so the order of adapters does not
matter, both ways of applying them agree for every method, and strength 0 is exactly the base.
The outputs are the matter of `plan.py`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters.base import Adapter, widened
from .layers import Rows
from .schedule import Schedule
from .shapes import Float


@dataclass(frozen=True, eq=False)
class Placed:
    """An adapter on a layer, or on some of its rows, at the user's strength."""

    adapter: Adapter
    strength: float
    rows: Rows | None = None


@dataclass(frozen=True)
class Request:
    """What a conditioning asks of adapters: a factor on their strength wherever it is used."""

    adapter: str
    """Name of the file; empty for all."""
    strength: float
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Dial:
    """What sets the strength of one file on one model: node x schedule x conditioning."""

    strength: float
    name: str = ""
    """Of the file, by which a conditioning can ask for it."""
    schedule: Schedule | None = None
    on_request: bool = False
    """Whether it acts only on conditionings that ask for it."""

    def at(self, progress: float, requests: Sequence[Request] = ()) -> float:
        """Returns the strength at a moment of sampling, for one element of the batch.

        Args:
            progress: 0 at the first step, 1 at the end.
            requests: Those of its conditioning; one by name counts before one for all, and of two
                alike the later one.
        """
        strength = self.strength * _factor(self.schedule, progress)
        found: Request | None = None
        for request in requests:
            if request.adapter == self.name or (
                not request.adapter and (found is None or not found.adapter)
            ):
                found = request
        if found is None:
            return 0.0 if self.on_request else strength
        return strength * found.strength * _factor(found.schedule, progress)


def _factor(schedule: Schedule | None, progress: float) -> float:
    return 1.0 if schedule is None else schedule.at(progress)


Levels = tuple[tuple[float, ...], ...]
"""For each dial, one strength or one for each element of the batch."""
Hung = tuple[int, float]
"""The place of an adapter's dial, and the factor of its block."""


class Moment:
    """The strengths of all files on a model, for one call of it."""

    def __init__(self, levels: Levels) -> None:
        """Takes the strengths of every dial."""
        self.levels = levels
        self._found: dict[tuple[Hung, ...], Strengths] = {}

    def strengths(self, hung: "tuple[Hung, ...]") -> "Strengths":
        """Returns the strengths of adapters that hang on dials, for each adapter its own."""
        if hung not in self._found:
            self._found[hung] = Strengths(
                [[level * factor for level in self.levels[dial]] for dial, factor in hung]
            )
        return self._found[hung]


class Strengths:
    """The strengths of the adapters of a layer at one moment of sampling.

    Python's numbers, by which is decided what need not be computed, and the same as a small tensor,
    which is computed with: a new strength is new numbers, and nothing else is new.
    """

    def __init__(self, numbers: Sequence[Sequence[float]]) -> None:
        """Takes, for each adapter, one number or one for each element of the batch.

        Adapters with one number for all beside some with several get it for each element.
        """
        elements = max((len(each) for each in numbers), default=1)
        self.numbers = tuple(
            tuple(each) if len(each) == elements else (*each,) * elements for each in numbers
        )
        """`[adapters][elements]`."""
        if all(len(set(each)) == 1 for each in self.numbers):
            self.numbers = tuple(each[:1] for each in self.numbers)
        self.elements = len(self.numbers[0]) if self.numbers else 1
        """How many strengths an adapter has: 1, or the size of the batch."""
        self.are_zero = not any(any(each) for each in self.numbers)
        self._tensors: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._runs: list[tuple[int, Strengths]] = []  # a cached property cannot be compiled

    @property
    def are_equal(self) -> bool:
        """Whether all elements of the batch have the same."""
        return self.elements == 1

    def tensor(self, like: Tensor) -> Float[Tensor, "B adapters"]:
        """Returns them on the device and in the dtype of a tensor; `B` is 1 where all are equal."""
        where = (like.device, like.dtype)
        if where not in self._tensors:
            rows = list(zip(*self.numbers, strict=True))
            self._tensors[where] = torch.tensor(rows, device=like.device, dtype=like.dtype)
        return self._tensors[where]

    def runs(self) -> list[tuple[int, "Strengths"]]:
        """Returns neighbours in the batch with the same strengths: how many, and which."""
        if not self._runs:
            for row, same in itertools.groupby(zip(*self.numbers, strict=True)):
                self._runs.append((len(list(same)), Strengths([[number] for number in row])))
        return self._runs


def merged_weight(
    weight: Float[Tensor, "O ..."], placed: Sequence[Placed]
) -> Float[Tensor, "O ..."]:
    """Returns a new weight with all changes, in the dtype of `weight`; computed in float32 up.

    It is larger than `weight` where an adapter makes it so: those that do not act on its corner.
    """
    base = widened(weight)
    total = base.clone()
    for item in placed:
        if item.strength == 0:
            continue
        part = base if item.rows is None else item.rows.take(base)
        shape = item.adapter.grown(tuple(part.shape))
        if shape != tuple(part.shape):
            part = _filled_up(part, shape)
            total = _filled_up(total, tuple(map(max, total.shape, shape)))
        change = item.adapter.delta_weight(part)
        if change is not None:
            _add(total, change * item.strength, item.rows)
    return total.to(weight.dtype)


def merged_bias(
    bias: Float[Tensor, " O"] | None, outputs: int, placed: Sequence[Placed]
) -> Float[Tensor, " O"] | None:
    """Returns a new bias with all changes, or None if there was none and none is made.

    Args:
        bias: The base bias.
        outputs: Length of a bias, for a layer that has none yet.
        placed: The adapters.
    """
    base = None if bias is None else widened(bias)
    total = None if base is None else base.clone()
    for item in placed:
        if item.strength == 0:
            continue
        part = base if base is None or item.rows is None else item.rows.take(base)
        change = item.adapter.delta_bias(part)
        if change is not None:
            total = change.new_zeros(outputs) if total is None else total
            _add(total, change * item.strength, item.rows)
    return total if total is None or bias is None else total.to(bias.dtype)


def _filled_up(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns `tensor` with zeros after its last row and column."""
    missing = [larger - size for larger, size in zip(shape, tensor.shape, strict=True)]
    return F.pad(tensor, [side for size in reversed(missing) for side in (0, size)])


def _add(total: Tensor, change: Tensor, rows: Rows | None) -> None:
    """Adds `change` in place, to all of `total` (or its corner) or to some of its rows."""
    if rows is None:
        total[tuple(slice(size) for size in change.shape)].add_(change)
    else:
        rows.add(total, change)
