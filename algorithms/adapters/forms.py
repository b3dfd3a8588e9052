"""The forms of a change that its tensors tell without a weight, each with its norm and spectrum.

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

    @abstractmethod
    def singular_values(self) -> Float[Tensor, " S"]:
        """Returns the singular values, largest first; zeros at the end may be left out."""

    @property
    @abstractmethod
    def work(self) -> int:
        """About how many multiplications the singular values take."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""

    @property
    @abstractmethod
    def matrix(self) -> Float[Tensor, "O C"]:
        """The change as a matrix, built where it is not there."""

    @abstractmethod
    def times(self, factor: float) -> "Form":
        """Returns the change times a number."""


@dataclass(frozen=True, eq=False)
class Whole(Form):
    """A change that has no smaller form."""

    tensor: Float[Tensor, "..."]

    def norm(self) -> float:
        """Returns the Frobenius norm."""
        return float(torch.linalg.vector_norm(self.tensor))

    def singular_values(self) -> Float[Tensor, " S"]:
        """Returns the roots of the eigenvalues of the smaller Gram matrix.

        In a fraction of the time of a decomposition, and in float64, since it squares the values.
        """
        matrix = self.matrix.double()
        if matrix.shape[0] > matrix.shape[1]:
            matrix = matrix.T
        values = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0)
        floor = values[:1] * max(matrix.shape) * torch.finfo(values.dtype).eps
        return torch.where(values > floor, values, torch.zeros_like(values)).sqrt()

    @property
    def work(self) -> int:
        """That of the Gram matrix and its eigenvalues."""
        short, long = sorted(self.matrix.shape)
        return _work_of_whole(short, long)

    @property
    def sizes(self) -> tuple[int, int]:
        """Those of the matrix."""
        return self.tensor.shape[0], self.tensor.shape[1:].numel()

    @property
    def matrix(self) -> Float[Tensor, "O C"]:
        """The change as a matrix; what has one axis, as the scale of a norm, is one column."""
        return self.tensor.flatten(1) if self.tensor.ndim > 1 else self.tensor[:, None]

    def times(self, factor: float) -> "Whole":
        """Returns the change times a number."""
        return Whole(self.tensor * factor)


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

    def singular_values(self) -> Float[Tensor, " S"]:
        """Returns those of the product of both triangular factors."""
        (rows, rank), columns = self.left.shape, self.right.shape[1]
        if rank >= min(rows, columns):
            return Whole(self.left @ self.right).singular_values()
        left = torch.linalg.qr(self.left, mode="r")[1]
        right = torch.linalg.qr(self.right.T, mode="r")[1]
        return torch.linalg.svdvals(left @ right.T)

    @property
    def work(self) -> int:
        """That of both factorisations."""
        (rows, rank), columns = self.left.shape, self.right.shape[1]
        if rank >= min(rows, columns):
            return _work_of_whole(*sorted((rows, columns)))
        return 2 * rank**2 * (rows + columns + rank)

    @property
    def sizes(self) -> tuple[int, int]:
        """Those outside of the product."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def matrix(self) -> Float[Tensor, "O C"]:
        """The product."""
        return self.left @ self.right

    def times(self, factor: float) -> "Product":
        """Returns the change times a number."""
        return Product(self.left * factor, self.right)


@dataclass(frozen=True, eq=False)
class Hadamard(Form):
    """(first.left @ first.right) ⊙ (second.left @ second.right)."""

    first: Product
    second: Product

    def norm(self) -> float:
        """Returns the norm of the product over the pairs of ranks, or the sum over some rows each."""
        rows, columns = self.sizes
        ranks = self.first.left.shape[1] + self.second.left.shape[1]
        if self._pairs**2 * (rows + columns) < ranks * rows * columns:
            return self.over_pairs().norm()
        step = max(CHUNK // max(columns, 1), 1)
        total = 0.0
        for start in range(0, rows, step):
            one, other = (
                half.left[start : start + step] @ half.right for half in (self.first, self.second)
            )
            total += Whole(one.mul_(other)).norm() ** 2
        return total**0.5

    def singular_values(self) -> Float[Tensor, " S"]:
        """Returns those of the product over the pairs of ranks, or of the whole."""
        return self.smaller().singular_values()

    @property
    def work(self) -> int:
        """That of the smaller form."""
        short, long = sorted(self.sizes)
        pairs = self._pairs
        if 2 * pairs < short:
            return 2 * pairs**2 * (short + long + pairs)
        return _work_of_whole(short, long)

    def over_pairs(self) -> Product:
        """Returns the same as one product, whose ranks are the pairs of both.

        left[o, (r, q)] = first.left[o, r] second.left[o, q], and
        right[(r, q), c] = first.right[r, c] second.right[q, c]
        """
        one, other = self.first, self.second
        left = one.left[:, :, None] * other.left[:, None, :]
        right = one.right[:, None, :] * other.right[None, :, :]
        return Product(left.flatten(1), right.flatten(0, 1))

    @property
    def _pairs(self) -> int:
        return self.first.left.shape[1] * self.second.left.shape[1]

    def smaller(self) -> Form:
        """Returns the form that takes less work."""
        return self.over_pairs() if 2 * self._pairs < min(self.sizes) else Whole(self.matrix)

    @property
    def sizes(self) -> tuple[int, int]:
        """Those of both products."""
        return self.first.sizes

    @property
    def matrix(self) -> Float[Tensor, "O C"]:
        """The elementwise product."""
        return self.first.matrix.mul_(self.second.matrix)

    def times(self, factor: float) -> "Hadamard":
        """Returns the change times a number."""
        return Hadamard(self.first.times(factor), self.second)


@dataclass(frozen=True, eq=False)
class Kronecker(Form):
    """left ⊗ right."""

    left: Float[Tensor, "a c"]
    right: Float[Tensor, "b d"]

    def norm(self) -> float:
        """Returns the product of both norms."""
        return Whole(self.left).norm() * Whole(self.right).norm()

    def singular_values(self) -> Float[Tensor, " S"]:
        """Returns the products of those of both sides."""
        left, right = Whole(self.left).singular_values(), Whole(self.right).singular_values()
        return torch.outer(left, right).flatten().sort(descending=True).values

    @property
    def work(self) -> int:
        """That of both sides."""
        return Whole(self.left).work + Whole(self.right).work

    @property
    def sizes(self) -> tuple[int, int]:
        """The products of those of both sides."""
        (a, c), (b, d) = self.left.shape, self.right.shape
        return a * b, c * d

    @property
    def matrix(self) -> Float[Tensor, "O C"]:
        """The Kronecker product."""
        return torch.kron(self.left, self.right)

    def times(self, factor: float) -> "Kronecker":
        """Returns the change times a number."""
        return Kronecker(self.left * factor, self.right)


NOTHING = Whole(torch.zeros(0, 0))
"""The form of a change of the bias alone."""


def _work_of_whole(short: int, long: int) -> int:
    """Returns the work of a Gram matrix and its eigenvalues: measured, these are about 8 products."""
    return short**2 * (long + 8 * short)
