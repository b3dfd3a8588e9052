"""The forms of a change that its tensors tell without a weight, each with its norm.

A change is looked at as a matrix: outputs by the numbers of a row, the kernel flattened. None of the
norms builds more than a piece of it that fits into a cache.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..shapes import Float

CHUNK = 1 << 18
"""Numbers of an elementwise product that are built at a time: about what a core keeps in its cache."""


class Form(ABC):
    """A change of a weight in the smallest form that it has."""

    @abstractmethod
    def norm(self) -> float:
        """Returns the Frobenius norm."""


@dataclass(frozen=True, eq=False)
class Whole(Form):
    """A change that has no smaller form."""

    tensor: Float[Tensor, "..."]

    def norm(self) -> float:
        """Returns the Frobenius norm."""
        return float(torch.linalg.vector_norm(self.tensor, dtype=_wide(self.tensor)))


@dataclass(frozen=True, eq=False)
class Product(Form):
    """left @ right."""

    left: Float[Tensor, "O R"]
    right: Float[Tensor, "R C"]

    def norm(self) -> float:
        """Returns the root of tr((left^T left) (right right^T)), or the norm of a small product.

        In float64, as what is left of the sum can be much smaller than its terms.
        """
        (rows, rank), columns = self.left.shape, self.right.shape[1]
        if rank * (rows + columns) >= rows * columns:
            return Whole(self.left @ self.right).norm()
        left, right = self.left.double(), self.right.double()
        return max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0) ** 0.5


@dataclass(frozen=True, eq=False)
class Hadamard(Form):
    """(first.left @ first.right) ⊙ (second.left @ second.right)."""

    first: Product
    second: Product

    def norm(self) -> float:
        """Returns the norm of the product over the pairs of ranks, or the sum over some rows each."""
        rows, columns = self.first.left.shape[0], self.first.right.shape[1]
        ranks = (self.first.left.shape[1], self.second.left.shape[1])
        pairs = ranks[0] * ranks[1]
        if pairs**2 * (rows + columns) < sum(ranks) * rows * columns:
            return self.over_pairs().norm()
        step = max(CHUNK // max(columns, 1), 1)
        total = 0.0
        for start in range(0, rows, step):
            one, other = (
                half.left[start : start + step] @ half.right for half in (self.first, self.second)
            )
            total += Whole(one.mul_(other)).norm() ** 2
        return total**0.5

    def over_pairs(self) -> Product:
        """Returns the same as one product, whose ranks are the pairs of both."""
        one, other = self.first, self.second
        left = one.left[:, :, None] * other.left[:, None, :]
        right = one.right[:, None, :] * other.right[None, :, :]
        return Product(left.flatten(1), right.flatten(0, 1))


@dataclass(frozen=True, eq=False)
class Kronecker(Form):
    """left ⊗ right."""

    left: Float[Tensor, "a c"]
    right: Float[Tensor, "b d"]

    def norm(self) -> float:
        """Returns the product of both norms."""
        return Whole(self.left).norm() * Whole(self.right).norm()


NOTHING = Whole(torch.zeros(0, 0))
"""The form of a change of the bias alone."""


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
