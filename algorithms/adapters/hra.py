"""HRA: the weight behind a chain of reflections of its input.

    W' = W H_0 H_1 ... H_{R-1}        H_r = I - 2 u_r u_r^T / (u_r^T u_r)

The product of reflections is I - U T U^T with a small triangular T (the compact form of Schreiber
and Van Loan 1989), U with columns of length 1. With `apply_GS` the u are made orthogonal first, and T
is 2 I. The output changes as if the input did, so no number of the weight is read for it.

Source: HRA, Yuan et al. 2024, arXiv 2405.17484, section 3.
On disk: PEFT's `hra_u`, `[I, R]`, for a convolution `[I * kernel, R]` with the kernel flattened;
`apply_GS` stands in the configuration only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .forms import Product
from .linalg import low_rank


@dataclass(frozen=True, eq=False)
class Hra(Adapter):
    """The normals of the reflections, one in each column."""

    name = "HRA"
    roles = (Role("u", (".hra_u", ".hra_u.*")),)
    settings = ("orthogonal",)
    needs_weight = True

    u: Float[Tensor, "D R"]
    orthogonal: bool = False
    """Whether the normals are made orthogonal to each other first."""
    fold: Float[Tensor, "R R"] | None = None
    """T; with it, `u` has columns of length 1. Made by `prepared`."""

    @property
    def rank(self) -> int:
        """R, the number of reflections."""
        return self.u.shape[1]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns what the reflections change.

        Raises:
            ShapeError: The normals are of another length than the rows of the weight.
        """
        rows = widened(weight).flatten(1)
        if self.u.shape[0] != rows.shape[1]:
            raise ShapeError(
                f"the reflections are of {self.u.shape[0]} inputs, the weight is {list(weight.shape)}"
            )
        u, fold = (part.to(rows.dtype) for part in self._compact)
        return low_rank(-(rows @ u @ fold), u.T, tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Hra":
        """Returns the adapter with the compact form of its reflections."""
        del weight
        u, fold = self._compact
        return replace(self, u=u, fold=fold)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the layer on the change of its input; a kernel takes the way over the weight."""
        if layer.groups != 1 or self.u.shape[0] != layer.weight_shape[1]:
            return super().delta_output(x, y, layer)
        axis = layer.channel_axis(x)
        u, fold = (part.to(x.dtype) for part in self._compact)
        change = -(x.movedim(axis, -1) @ u @ fold.T @ u.T)
        return layer.product(change.movedim(-1, axis))

    def relative_norm(self) -> float:
        """Returns that of the chain of reflections less 1."""
        u, fold = self._compact
        return Product(u @ fold, u.T).norm()

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Hra]":
        """Returns the adapter with the configuration's word on orthogonal normals."""
        del corrections
        orthogonal = origin.flag("apply_GS")
        if orthogonal is None:
            return Completion(self, assumed="reflections that are not made orthogonal")
        return Completion(replace(self, orthogonal=orthogonal))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Hra":
        """Returns pairs of equal reflections, which undo each other, along single inputs."""
        _, *inputs = layer.weight_shape
        size = torch.Size(inputs).numel()
        axes = torch.randperm(size, generator=generator)[: config.rank // 2]
        return cls(torch.eye(size)[:, axes.repeat_interleave(2)])

    @property
    def _compact(self) -> tuple[Float[Tensor, "D R"], Float[Tensor, "R R"]]:
        """Returns U and T."""
        if self.fold is not None:
            return self.u, self.fold
        u = widened(self.u)
        one = torch.eye(self.rank, dtype=u.dtype, device=u.device)
        if self.orthogonal:
            return torch.linalg.qr(u)[0], 2 * one
        u = u / torch.linalg.vector_norm(u, dim=0)
        inverse = torch.triu(u.T @ u, diagonal=1) + one / 2
        return u, torch.linalg.solve_triangular(inverse, one, upper=True)
