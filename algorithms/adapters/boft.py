"""BOFT: one side of a weight rotated in stages, each of which mixes rows that lie further apart.

    R = R_m ... R_2 R_1        R_i = P_i^T diag(C(Q_i)) P_i        W' = g * (R W) or g * (W R^T)

P_i is a butterfly permutation: within 2^i blocks it brings rows of the first half and of the
second half together in one block.

    LyCORIS   `oft_blocks` of 4 axes   Q = B - B^T        on outputs, C(Q); rows alternate
    PEFT      `boft_R`, `boft_s`       Q = (B - B^T) / 2  on inputs, C(-Q), g = boft_s; half blocks
                                                          alternate
Source: BOFT, Liu et al. 2023, arXiv 2311.06243, section 4; the permutations are the tools' own.
Departs from LyCORIS and ComfyUI 0.28 at strengths other than 1: they blend each stage with the
identity, here the result at strength s lies on the line from W to W'.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import InitialConfig, Role
from .oft import BLOCKS, RESCALE, new_rescale
from .rotation import (
    CONSTRAINT,
    Rotation,
    block_product,
    cayley,
    even_split,
    limited,
    require_blocks,
    skew_of,
)

Stages = Callable[[Tensor, Tensor], Tensor]
"""Turns of every stage and vectors -> what all stages change of the vectors."""


@dataclass(frozen=True, eq=False)
class Boft(Rotation):
    """BOFT of LyCORIS, on the outputs."""

    name = "BOFT"
    roles = (BLOCKS, RESCALE, CONSTRAINT)

    oft_blocks: Float[Tensor, "M N D D"]
    rescale: Float[Tensor, "..."] | None = None
    alpha: float | None = None
    """The constraint: times the number of outputs, it limits the norm of Q over all stages; 0 is
    free."""

    @property
    def span(self) -> int:
        """Rows that the last stage mixes."""
        stages, _, size, _ = self.oft_blocks.shape
        return 2 ** (stages - 1) * size

    @property
    def length(self) -> int:
        """Rows of all blocks."""
        return self.oft_blocks.shape[1] * self.oft_blocks.shape[2]

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R_i - 1 of every stage and block."""
        _require_stages(self.oft_blocks, shape[0], "outputs")
        limit = self.alpha * shape[0] if self.alpha and self.alpha > 0 else None
        return cayley(limited(skew_of(self.oft_blocks), limit))

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis."""
        assert self.turn is not None
        return butterfly(self.turn, tensor, axis, chunk=1, back=back)

    def gain(self, shape: tuple[int, ...]) -> Float[Tensor, "..."] | None:
        """Returns `rescale`."""
        del shape
        return self.rescale

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Boft":
        """Returns zero blocks with all the stages that LyCORIS gives them.

        Raises:
            ShapeError: The outputs are no power of two times an even size up to `rank`.
        """
        del generator
        outputs = layer.weight_shape[0]
        count, size = _power_of_two_split(outputs, config.rank)
        blocks = torch.zeros(count.bit_length(), count, size, size)
        return cls(blocks, new_rescale(layer, config), config.constraint)


@dataclass(frozen=True, eq=False)
class PeftBoft(Rotation):
    """BOFT of PEFT, on the inputs, with stretched rows."""

    name = "BOFT (PEFT)"
    roles = (Role("boft_R", (".boft_R", ".boft_R.*")), Role("boft_s", (".boft_s", ".boft_s.*")))
    side = "inputs"

    boft_R: Float[Tensor, "M N D D"]  # noqa: N815
    boft_s: Float[Tensor, "..."]

    @property
    def length(self) -> int:
        """Inputs of all blocks."""
        return self.boft_R.shape[1] * self.boft_R.shape[2]

    def made_turn(self, shape: tuple[int, ...]) -> Tensor:
        """Returns R_i - 1 of every stage and block."""
        _require_stages(self.boft_R, math.prod(shape[1:]), "inputs")
        return cayley(-skew_of(self.boft_R) / 2)

    def turned(self, tensor: Tensor, axis: int, *, back: bool = False) -> Tensor:
        """Returns (R - 1) times the vectors along an axis."""
        assert self.turn is not None
        half = max(self.turn.shape[-1] // 2, 1)
        return butterfly(self.turn, tensor, axis, chunk=half, back=back)

    def gain(self, shape: tuple[int, ...]) -> Float[Tensor, "..."] | None:
        """Returns `boft_s`."""
        del shape
        return self.boft_s

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "PeftBoft":
        """Returns zero blocks in one stage, which is all that PEFT trains without CUDA.

        Raises:
            ShapeError: The inputs cannot be split into blocks.
        """
        del generator
        columns = math.prod(layer.weight_shape[1:])
        size = even_split(columns, config.rank)
        blocks = torch.zeros(1, columns // size, size, size)
        return cls(blocks, torch.ones(layer.weight_shape[0], 1))


def butterfly(
    turns: Float[Tensor, "M N D D"],
    tensor: Float[Tensor, "..."],
    axis: int,
    *,
    chunk: int,
    back: bool,
) -> Float[Tensor, "..."]:
    """Returns (R - 1) times the vectors along an axis, for R of several stages.

    Args:
        turns: R_i - 1 of every stage and block.
        tensor: The vectors.
        axis: Where they lie.
        chunk: How many neighbours a permutation keeps together.
        back: Whether the transpose of R is meant.
    """
    stages = partial(_through_stages, chunk=chunk, back=back)
    last = tensor.movedim(axis, -1)
    change = _Stages.apply(stages, turns, last) if torch.is_grad_enabled() else stages(turns, last)
    return change.movedim(-1, axis)


class _Stages(torch.autograd.Function):
    """All stages, of which only the vectors that go in are kept for the gradients.

    Autograd would keep those that come out of each stage: 8 times as many on 1280 outputs.
    """

    @staticmethod
    def forward(ctx: Any, stages: Stages, turns: Tensor, last: Tensor) -> Tensor:
        ctx.stages = stages
        ctx.save_for_backward(turns, last)
        return stages(turns, last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pull_back = torch.func.vjp(ctx.stages, *ctx.saved_tensors)[1]
        return None, *pull_back(gradients[0])


def _through_stages(
    turns: Float[Tensor, "M N D D"], last: Tensor, *, chunk: int, back: bool
) -> Tensor:
    """Returns (R - 1) times the vectors along the last axis."""
    change = torch.zeros_like(last)
    order = range(turns.shape[0])
    for stage in reversed(order) if back else order:
        blocks = turns[stage].mT if back else turns[stage]
        change = change + _stage(blocks, last + change, stage, chunk)
    return change


def _stage(blocks: Float[Tensor, "N D D"], last: Tensor, stage: int, chunk: int) -> Tensor:
    """Returns (R_i - 1) times the vectors along the last axis."""
    pairs = 2**stage * (blocks.shape[-1] // 2) // chunk
    if pairs <= 1:
        return block_product(blocks, last, -1)
    mixed = last.unflatten(-1, (-1, 2, pairs, chunk)).transpose(-3, -2).flatten(-4)
    product = block_product(blocks, mixed, -1)
    return product.unflatten(-1, (-1, pairs, 2, chunk)).transpose(-3, -2).flatten(-4)


def _require_stages(blocks: Float[Tensor, "M N D D"], length: int, what: str) -> None:
    """Checks that the blocks of every stage cover a side of a weight, and can be paired.

    Raises:
        ShapeError: They do not.
    """
    stages, count, size, _ = blocks.shape
    require_blocks(count, size, length, what)
    if stages < 1 or (stages > 1 and (size % 2 or count % 2 ** (stages - 1))):
        raise ShapeError(f"{count} blocks of {size} cannot be mixed in {stages} stages")


def _power_of_two_split(length: int, wanted: int) -> tuple[int, int]:
    """Returns number and size of blocks: a power of two, and the largest even size up to `wanted`.

    Raises:
        ShapeError: There is none.
    """
    sizes = [length >> power for power in range(length.bit_length()) if length % 2**power == 0]
    fitting = [size for size in sizes if size % 2 == 0 and size <= wanted]
    if not fitting:
        smallest = min((size for size in sizes if size % 2 == 0), default=None)
        hint = f"choose a rank of {smallest} or more" if smallest else "it is odd"
        raise ShapeError(
            f"BOFT splits outputs into a power of two of even blocks, which {length} outputs "
            f"with blocks of {wanted} at most do not allow: {hint}."
        )
    return length // max(fitting), max(fitting)
