"""What all rotations share: matrices made from skew ones, and how they act on a layer.

A rotation multiplies a weight by an orthogonal matrix R made of small blocks: its rows (the output
side) or its flattened columns (the input side). It can stretch the rows g after that:

    outputs: W' = g * (R W)        inputs: W' = g * (W R^T)

Everything is computed with R - 1 (here a `turn`) and g - 1 (a `stretch`): the difference of two
nearly equal numbers would lose the digits of a small rotation. A rotation never touches the bias.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Role, Work, widened
from .forms import Whole

Side = Literal["outputs", "inputs"]
R = TypeVar("R", bound="Rotation")

CONSTRAINT = Role("alpha", (".alpha",), required=False, shared=True, scalar=True)
"""The role that is a scale elsewhere: here it limits how far the blocks may turn."""


@dataclass(frozen=True, eq=False)
class Rotation(Adapter):
    """A method that rotates one side of a weight and may stretch its rows."""

    needs_weight = True
    side: ClassVar[Side] = "outputs"

    turn: Float[Tensor, "..."] | None = field(default=None, kw_only=True)
    """R - 1 of every block; made by `prepared`."""
    stretch: Float[Tensor, " rows"] | None = field(default=None, kw_only=True)
    """g - 1; made by `prepared`."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Rows, or numbers in a row, that the blocks turn; of one that is shared, its own."""

    @abstractmethod
    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R - 1 of every block, in float32 or better, for a weight of `shape`.

        Raises:
            ShapeError: The blocks do not fit the weight.
            UndecidedError: The file does not say which rotation it means.
        """

    @abstractmethod
    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis; `back` takes the transpose of R."""

    def gain(self, shape: tuple[int, ...]) -> Float[Tensor, "..."] | None:
        """Returns g, one number per row of a weight of `shape`, or None where rows keep length."""
        del shape
        return None

    @property
    def span(self) -> int | None:
        """Number of neighbouring rows that are mixed with each other; None for all of them."""
        return None

    def prepared(self: R, weight: Float[Tensor, "O ..."]) -> R:
        """Returns the adapter with its matrices; only the shape of `weight` is read."""
        shape = tuple(weight.shape)
        if len(shape) < 2:
            raise ShapeError(f"a rotation needs a matrix or a kernel, the weight is {list(shape)}")
        turn, gain = self.made_turn(shape), self.gain(shape)
        return replace(self, turn=turn, stretch=None if gain is None else _stretch(gain, shape))

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns W' - W; without values in `weight`, only its shape is right."""
        ready = self if self.turn is not None else self.prepared(weight)
        base = widened(weight)
        if self.side == "outputs":
            change = ready.turned(base, 0)
        else:
            change = ready.turned(base.flatten(1), 1).reshape(base.shape)
        if ready.stretch is None:
            return change
        return change + ready.stretch.reshape(-1, *[1] * (base.ndim - 1)) * (base + change)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change by rotating the output without its bias, or by the layer on (R - 1) x.

        Two layers need the weight: kernels on the input side, since an input value meets another
        block at every place of the kernel; and groups on the output side that share a block.
        """
        ready = self if self.turn is not None else self.prepared(layer.blank)
        if not ready._acts_on_channels(layer):
            return super(Rotation, ready).delta_output(x, y, layer)
        axis = layer.channel_axis(y)
        if self.side == "inputs":
            change = layer.product(ready.turned(x, axis, back=True))
        else:
            change = ready.turned(layer.unbiased(y), axis)
        if ready.stretch is None:
            return change
        stretch = layer.over_channels(ready.stretch.to(y.dtype), y)
        return change + stretch * (layer.unbiased(y) + change)

    def relative_norm(self) -> float:
        """Returns that of g R - 1 for the outputs; those of R - 1 and g - 1, in squares, for inputs."""
        outputs = self.side == "outputs"
        shape = (self.length, 1) if outputs else (1, self.length)
        gain = self.gain(shape)
        ready = replace(self, turn=self.made_turn(shape))
        base = _probe(self.length)
        change = ready.turned(base, 0)
        if gain is None:
            return Whole(change).norm()
        stretch = widened(gain).reshape(-1, 1) - 1
        if not outputs:
            return math.hypot(Whole(change).norm(), Whole(stretch).norm())
        if stretch.shape[0] != self.length:
            raise ShapeError(f"{stretch.shape[0]} rows are stretched and {self.length} turned")
        return Whole(change + stretch * (base + change)).norm()

    def work(self, layer: Layer, positions: int) -> Work:
        """Returns the work of turning the weight, or the outputs, or the inputs of a second product."""
        numbers = math.prod(layer.weight_shape)
        ready = self if self.turn is not None else self.prepared(layer.blank)
        assert ready.turn is not None
        side = layer.weight_shape[0] if self.side == "outputs" else numbers // layer.weight_shape[0]
        stages = math.prod(ready.turn.shape[:-3])
        each = stages * ready.turn.shape[-1] if ready.turn.ndim > 2 else ready.turn.numel() / side
        if not ready._acts_on_channels(layer):
            return Work(numbers * each, numbers * each + positions * numbers)
        again = 0 if self.side == "outputs" else positions * numbers
        return Work(numbers * each, positions * side * each + again)

    def _acts_on_channels(self, layer: Layer) -> bool:
        if self.side == "inputs":
            return not layer.has_kernel
        per_group = layer.weight_shape[0] // layer.groups
        return layer.groups == 1 or (self.span is not None and per_group % self.span == 0)


def skew_of(blocks: Float[Tensor, "... D D"]) -> Float[Tensor, "... D D"]:
    """Returns B - B^T, in float32 or better."""
    blocks = widened(blocks)
    return blocks - blocks.mT


def skew_from_vectors(vectors: Float[Tensor, "N E"], size: int) -> Float[Tensor, "N D D"]:
    """Returns matrices whose strict upper triangles are `vectors`, row by row; minus that below."""
    vectors = widened(vectors)
    rows, columns = torch.triu_indices(size, size, 1, device=vectors.device)
    upper = vectors.new_zeros(vectors.shape[0], size, size)
    upper = upper.index_put((torch.arange(vectors.shape[0])[:, None], rows, columns), vectors)
    return upper - upper.mT


def limited(skew: Float[Tensor, "... D D"], limit: float | None) -> Float[Tensor, "... D D"]:
    """Returns the matrices shrunk so that the norm over all of them is `limit` at most."""
    if limit is None:
        return skew
    return skew * (limit / (torch.linalg.vector_norm(skew) + 1e-8)).clamp(max=1.0)


def projected(blocks: Float[Tensor, "N D D"], eps: float | None) -> Float[Tensor, "N D D"]:
    """Returns each block shrunk to the norm eps / sqrt N at most, as PEFT's `coft` does."""
    if eps is None:
        return blocks
    norms = torch.linalg.vector_norm(blocks, dim=(1, 2), keepdim=True)
    return blocks * (eps / blocks.shape[0] ** 0.5 / norms).clamp(max=1.0)


LARGEST_IN_STACK = 96
"""Measured with PyTorch 2.13 on a CPU: stacks of matrices of 160 rows and more are factorised wrong
(or not at all) on two threads, in either precision; up to 128 rows, and one by one, they are right."""


def cayley(skew: Float[Tensor, "... D D"]) -> Float[Tensor, "... D D"]:
    """Returns R - 1 for Cayley's R = (1 + Q) (1 - Q)^-1, which is 2 Q (1 - Q)^-1.

    R is orthogonal, and the R of -Q is its transpose.
    """
    size = skew.shape[-1]
    identity = torch.eye(size, dtype=skew.dtype, device=skew.device)
    if size <= LARGEST_IN_STACK:
        return torch.linalg.solve(identity - skew, 2 * skew)  # Q and (1 - Q)^-1 commute
    each = [torch.linalg.solve(identity - one, 2 * one) for one in skew.reshape(-1, size, size)]
    return torch.stack(each).reshape(skew.shape)


def cayley_neumann(
    skew: Float[Tensor, "N D D"], terms: int, *, doubled: bool = False
) -> Float[Tensor, "N D D"]:
    """Returns R - 1 for PEFT's series of Cayley's R, which is orthogonal as far as Q is small.

    With 5 terms it is 2 Q + 2 Q^2 + 2 Q^3 + Q^4; three terms give the same as four, as in PEFT.

    Args:
        skew: Q.
        terms: How many, counting the 1.
        doubled: Whether the last power counts twice as well, as in PEFT 0.16 and 0.17.
    """
    if terms < 2:
        return torch.zeros_like(skew)
    highest = terms - 1 if doubled or terms == 2 else max(terms - 1, 3)
    total, power = 2 * skew, skew
    for exponent in range(2, highest + 1):
        power = power @ skew
        total = total + (1 if exponent == highest and not doubled else 2) * power
    return total


def block_product(
    blocks: Float[Tensor, "N D D"], tensor: Float[Tensor, "..."], axis: int
) -> Float[Tensor, "..."]:
    """Returns the block diagonal matrix of `blocks` times the vectors along an axis.

    Where an axis is longer than all blocks together, they repeat: one shared block, or the groups
    of a convolution.
    """
    count, size, _ = blocks.shape
    parts = tensor.unflatten(axis, (-1, count, size))
    axis %= tensor.ndim
    if axis == tensor.ndim - 1:
        product = torch.einsum("nij,...nj->...ni", blocks.to(tensor.dtype), parts)
    else:  # in place of the einsum, which would bring the axis to the end and back
        product = (blocks.to(tensor.dtype) @ parts.flatten(axis + 3)).reshape(parts.shape)
    return product.flatten(axis, axis + 2)


def require_blocks(count: int, size: int, length: int, what: str) -> None:
    """Checks that blocks cover a side of a weight.

    Raises:
        ShapeError: They do not.
    """
    if count * size != length:
        raise ShapeError(
            f"{count} blocks of {size} rotate {count * size} {what}, the weight has {length}"
        )


def even_split(length: int, wanted: int) -> int:
    """Returns the size of blocks for a new adapter: the largest divisor that is `wanted` at most.

    Raises:
        ShapeError: There is none but 1.
    """
    size = max(size for size in range(1, wanted + 1) if length % size == 0)
    require_turning(size, length)
    return size


def require_turning(size: int, length: int) -> None:
    """Checks that new blocks can turn at all.

    Raises:
        ShapeError: They hold one number.
    """
    if size < 2:
        raise ShapeError(
            f"{length} would be split into blocks of 1, which cannot turn: raise the rank"
        )


PROBES = 64
"""Columns of a base on which a rotation of more rows is measured."""


def _probe(length: int) -> Float[Tensor, "O C"]:
    """Returns a base of rows of length 1: the identity, or signs that stand for its columns.

    The squared norm of a change of the signs is that of the identity but for chance: its standard
    deviation is below sqrt(2 / PROBES) of it, and far below where many rows take part.
    """
    if length <= PROBES:
        return torch.eye(length)
    generator = torch.Generator().manual_seed(length)
    signs = torch.randint(0, 2, (length, PROBES), generator=generator) * 2 - 1
    return signs / PROBES**0.5


def _stretch(gain: Tensor, shape: tuple[int, ...]) -> Float[Tensor, " O"]:
    """Returns g - 1, one number for each row of a weight of `shape`."""
    if gain.numel() != shape[0]:
        raise ShapeError(f"{gain.numel()} rows are stretched, the weight has {shape[0]}")
    return widened(gain).flatten() - 1
