"""MiSS (once Bone): one small matrix repeated over the inputs.

    dW[o, i] = block[i mod R, o]

`MissBat` is the form `bat`, whose small matrices also multiply the weight.

Source: MiSS, Kang and Yin 2024, arXiv 2409.15371, sections 3 and 4.
On disk: PEFT's `miss_block` (`bone_block` before 0.18): `[R, O]`, or in the form `mini` `[R, M]`,
repeated over the outputs, which shapes alone tell.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened
from .linalg import matrix_sizes

BLOCK = Role("block", (".miss_block", ".miss_block.*", ".bone_block", ".bone_block.*"))


@dataclass(frozen=True, eq=False)
class Miss(Adapter):
    """A matrix whose rows are shared by every R-th input."""

    name = "MiSS"
    roles = (BLOCK,)
    additive = True

    block: Float[Tensor, "R M"]

    @property
    def rank(self) -> int:
        """R, the rows of the small matrix."""
        return self.block.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the repeated matrix; only the shape of `weight` is read."""
        outputs, inputs = matrix_sizes(tuple(weight.shape), self.name)
        times = -(-inputs // self.rank)
        rows = self._over(widened(self.block), outputs).repeat(times, 1)
        return rows[:inputs].T.reshape(weight.shape)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the small matrix on the sum over every R-th input."""
        if layer.kind != "linear":
            return super().delta_output(x, y, layer)
        outputs, inputs = layer.weight_shape
        padded = F.pad(x, (0, -inputs % self.rank))
        summed = padded.reshape(*x.shape[:-1], -1, self.rank).sum(-2)
        return summed @ self._over(self.block, outputs)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Miss":
        """Returns zeros."""
        del generator
        outputs, _ = matrix_sizes(layer.weight_shape, cls.name)
        return cls(torch.zeros(config.rank, outputs))

    def _over(self, block: Float[Tensor, "R M"], outputs: int) -> Float[Tensor, "R O"]:
        """Repeats the columns over all outputs.

        Raises:
            ShapeError: They do not fill the outputs evenly.
        """
        columns = block.shape[1]
        if outputs % columns:
            raise ShapeError(f"its matrix has {columns} columns, the weight {outputs} outputs")
        return block.repeat(1, outputs // columns)


@dataclass(frozen=True, eq=False)
class MissBat(Adapter):
    """One square matrix for each R outputs.

    dW_ab = W_ab block_a + block_a        for each block of R outputs a and R inputs b
    """

    name = "MiSS (bat)"
    roles = (BLOCK,)
    needs_weight = True

    block: Float[Tensor, "N D D"]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the change of each block of the weight.

        Raises:
            ShapeError: The weight is not made of such blocks.
        """
        outputs, inputs = matrix_sizes(tuple(weight.shape), self.name)
        count, size, _ = self.block.shape
        if outputs != count * size or inputs % size:
            raise ShapeError(
                f"it is {count} blocks of {size} outputs, the weight is {list(weight.shape)}"
            )
        base = widened(weight).reshape(count, size, inputs // size, size)
        block = widened(self.block).to(base.dtype)
        change = torch.einsum("aobi, aij -> aobj", base, block) + block[:, :, None]
        return change.reshape(weight.shape)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "MissBat":
        """Returns zeros in blocks of the largest size up to the rank that divides both sides."""
        del generator
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        sizes = range(config.rank, 0, -1)
        size = next(size for size in sizes if outputs % size == 0 and inputs % size == 0)
        return cls(torch.zeros(outputs // size, size, size))
