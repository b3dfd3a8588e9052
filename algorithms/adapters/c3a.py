"""C3A: a weight of circulant blocks, which is a circular convolution of pieces of the input.

    dW[m b + j, n b + l] = kernel[m, n, (l - j) mod b] / I

Source: C3A, Chen et al. 2024, arXiv 2407.19342, section 3; division by the inputs as in PEFT.
On disk: PEFT's `c3a_kernel`, `[O / b, I / b, b]`.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened
from .forms import Whole
from .linalg import matrix_sizes


@dataclass(frozen=True, eq=False)
class C3a(Adapter):
    """The first row of each block."""

    name = "C3A"
    roles = (Role("kernel", (".c3a_kernel", ".c3a_kernel.*")),)
    additive = True

    kernel: Float[Tensor, "M N D"]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the blocks written out; only the shape of `weight` is read."""
        inputs = self._require(tuple(weight.shape))
        places = torch.arange(self.kernel.shape[2], device=self.kernel.device)
        shifted = (places[None, :] - places[:, None]) % self.kernel.shape[2]
        blocks = widened(self.kernel)[:, :, shifted].transpose(1, 2)
        return blocks.reshape(weight.shape) / inputs

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the convolution by fast Fourier transforms, in float32 or better."""
        if layer.kind != "linear":
            return super().delta_output(x, y, layer)
        inputs = self._require(layer.weight_shape)
        pieces = widened(x).reshape(*x.shape[:-1], self.kernel.shape[1], -1)
        kernel = torch.fft.rfft(widened(self.kernel)).conj()
        spectrum = torch.einsum("...nf, mnf -> ...mf", torch.fft.rfft(pieces), kernel)
        change = torch.fft.irfft(spectrum, n=self.kernel.shape[2]).flatten(-2)
        return (change / inputs).to(x.dtype)

    def form(self) -> Whole:
        """Returns the blocks written out."""
        rows, columns, size = self.kernel.shape
        return Whole(self.delta_weight(torch.empty(rows * size, columns * size, device="meta")))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "C3a":
        """Returns zeros in blocks of the largest size up to the rank that divides both sides."""
        del generator
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        sizes = range(config.rank, 0, -1)
        size = next(size for size in sizes if outputs % size == 0 and inputs % size == 0)
        return cls(torch.zeros(outputs // size, inputs // size, size))

    def _require(self, shape: tuple[int, ...]) -> int:
        """Returns the number of inputs.

        Raises:
            ShapeError: The blocks do not fill the weight.
        """
        sizes = matrix_sizes(shape, self.name)
        rows, columns, size = self.kernel.shape
        if sizes != (rows * size, columns * size):
            raise ShapeError(
                f"it is {rows} x {columns} blocks of {size}, the weight is {list(shape)}"
            )
        return sizes[1]
