"""The best low-rank copy of a change, from its smallest form, with the error that it makes.

    dW ~ up @ down,   up = U sqrt(S),   down = sqrt(S) V^T,   S the largest singular values

What has few ranks by itself is decomposed by QR of its factors and the SVD of the small product
between them, a Kronecker product by those of both sides. What has no smaller form is first projected
on the range of its largest directions, found by random vectors and power iterations.
Source: Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1; where the rank
follows from an error, the range grows by blocks as in Yu, Gu and Li 2018, arXiv 1606.09402.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..adapters.base import widened
from ..adapters.forms import CHUNK, Form, Hadamard, Kronecker, Product, Whole
from ..errors import EditingError
from ..shapes import Float
from .seeds import generator_of
from .size import Size

OVERSAMPLING = 16
"""Random directions beyond the wanted rank, and a quarter of it more."""
POWER_ITERATIONS = 2
"""Measured on spectra that fall off slowly: the error is within 1 % of the least one."""
FIRST_BLOCK = 48
"""Directions with which the search begins where an error decides the rank."""
RANDOM_SHARE = 0.3
"""Of all directions: where more are wanted, all are computed, which then takes no longer."""
FINEST = 1e-5
"""Share of the squared norm that float32 can tell as a difference of two sums; less is summed itself."""
REACH = (1e-12, 1e12)
"""Norms between which float32 holds all squares that are needed; others are brought to 1 first."""
CANCELS = 1e-2
"""Of the squared norm: what is left of it below here is computed anew, not as a difference."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A low-rank copy of a change; both factors have the same share of the singular values."""

    up: Float[Tensor, "O R"]
    down: Float[Tensor, "R C"]
    error: float
    """Norm of the change less this copy (Frobenius)."""
    norm: float
    """Norm of the change."""


@dataclass(frozen=True, eq=False)
class _Directions:
    """Leading singular triples of a matrix, the largest first."""

    left: Float[Tensor, "O S"]
    values: Float[Tensor, " S"]
    right: Float[Tensor, "S C"]

    def factors(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns up and down with the first `count` of them."""
        roots = self.values[:count].sqrt()
        return self.left[:, :count] * roots, self.right[:count] * roots[:, None]

    def transposed(self) -> "_Directions":
        return _Directions(self.right.T, self.values, self.left.T)


def decomposed(form: Form, size: Size, seed: str) -> Factors:
    """Returns the best low-rank copy of a change.

    Where random directions are used it is the best one but for a share of the error: the error that
    is returned is that of this copy, computed and not estimated.

    Args:
        form: The change.
        size: How much of it is kept. No more than its rank is, and 1 at least: a change of nothing
            becomes one rank of zeros.
        seed: Any text, as the name of the layer; the same one gives the same bits, with the
            same number of threads.

    Returns:
        Factors in float64 where the change is, and else in float32.

    Raises:
        EditingError: The change has numbers that are not finite.
    """
    if isinstance(form, Hadamard):
        form = form.smaller()
    if isinstance(form, Product):
        rank = form.left.shape[1]
        if 2 * rank <= min(form.sizes):
            return _of_product(form, size, seed)
        size = replace(size, most=min(size.most or rank, rank))
        return _of_matrix(widened(form.left) @ widened(form.right), size, seed)
    if isinstance(form, Kronecker):
        return _of_kronecker(form, size, seed)
    assert isinstance(form, Whole), "there are four forms"
    return _of_matrix(widened(form.matrix), size, seed)


def _of_product(form: Product, size: Size, seed: str) -> Factors:
    """Decomposes a product by the triangles of its factors, in float64: they are small."""
    left, upper = torch.linalg.qr(form.left.double())
    right, lower = torch.linalg.qr(form.right.double().T)
    core = upper @ lower.T
    norm = _finite(float(torch.linalg.vector_norm(core)), seed)
    if norm == 0:
        return _nothing(form.left, form.right)
    inner, values, outer = torch.linalg.svd(core)
    found = _Directions(left @ inner, values, outer @ right.T)
    count = size.needed(values)
    up, down = (factor.to(widened(form.left).dtype) for factor in found.factors(count))
    error = float(torch.linalg.vector_norm(values[count:]))
    if error**2 < CANCELS * norm**2:
        # Nearly exact: the rounding of the factors counts too.
        error = _norm_by_triangles(
            torch.cat([form.left, -up], 1).double(), torch.cat([form.right, down]).double()
        )
    return Factors(up, down, error, norm)


def _norm_by_triangles(left: Float[Tensor, "O R"], right: Float[Tensor, "R C"]) -> float:
    """Returns the norm of left @ right, also where its terms nearly cancel."""
    upper, lower = (torch.linalg.qr(one, mode="r")[1] for one in (left, right.T))
    return float(torch.linalg.vector_norm(upper @ lower.T))


def _of_kronecker(form: Kronecker, size: Size, seed: str) -> Factors:
    """Decomposes both sides; only the kept ones of all pairs of directions are built."""
    generator = generator_of(seed)
    left, right = widened(form.left), widened(form.right)
    norm = _finite(_norm(left) * _norm(right), seed)
    if norm and not REACH[0] < norm < REACH[1]:
        sides = [(one.double() / _norm(one)).to(one.dtype) for one in (left, right)]
        found = _of_kronecker(Kronecker(*sides), size, seed)
        up, down = (one * norm**0.5 for one in (found.up, found.down))
        return Factors(up, down, found.error * norm, norm)
    if norm == 0:
        return _nothing(torch.kron(left[:, :1], right[:, :1]), torch.kron(left[:1], right[:1]))
    one, other = (_leading(side, size.fixed_rank, generator) for side in (left, right))
    values, order = torch.outer(one.values, other.values).flatten().sort(descending=True)
    count = size.needed(values)  # they are all there, unless the rank is wished for
    first, second = order[:count] // len(other.values), order[:count] % len(other.values)
    rows = one.left[:, None, first] * other.left[None, :, second]
    columns = one.right[first, :, None] * other.right[second, None, :]
    kept = _Directions(rows.flatten(0, 1), values[:count], columns.flatten(1))
    up, down = (factor.to(left.dtype) for factor in kept.factors(count))
    rest = norm**2 - float(values[:count].double().square().sum())
    if rest >= CANCELS * norm**2:
        return Factors(up, down, rest**0.5, norm)
    total = 0.0
    height = right.shape[0]
    for row, start in zip(left, range(0, up.shape[0], height), strict=True):
        exact = torch.kron(row[None].double(), right.double())
        exact -= up[start : start + height].double() @ down.double()
        total += float(exact.square().sum())
    return Factors(up, down, total**0.5, norm)


def _of_matrix(matrix: Float[Tensor, "O C"], size: Size, seed: str) -> Factors:
    """Decomposes a matrix along its leading directions."""
    norm = _finite(_norm(matrix), seed)
    if norm == 0:
        return _nothing(matrix, matrix)
    if not REACH[0] < norm < REACH[1]:
        found = _of_matrix((matrix.double() / norm).to(matrix.dtype), size, seed)
        up, down = (one * norm**0.5 for one in (found.up, found.down))
        return Factors(up, down, found.error * norm, norm)
    generator = generator_of(seed)
    if size.fixed_rank is not None:
        found = _leading(matrix, size.fixed_rank, generator)
        count = size.needed(found.values)
    else:
        found, count = _sufficient(matrix, size, norm, generator)
    up, down = found.factors(count)
    kept = float(found.values[:count].double().square().sum())
    return Factors(up, down, projection_error(matrix, up, down, norm, kept), norm)


def _leading(matrix: Float[Tensor, "O C"], wanted: int | None, generator: Generator) -> _Directions:
    """Returns the leading directions of a matrix: so many, or all of them for None."""
    shortest = min(matrix.shape)
    if wanted is None or _sampled(wanted) > RANDOM_SHARE * shortest:
        return _all(matrix)
    return _Range(matrix, generator).grown(_sampled(wanted)).directions()


def _sufficient(
    matrix: Float[Tensor, "O C"], size: Size, norm: float, generator: Generator
) -> tuple[_Directions, int]:
    """Returns so many leading directions that an error is reached, or all; and how many it takes."""
    limit = RANDOM_SHARE * min(matrix.shape)
    most = size.most or max(matrix.shape)
    found = _Range(matrix, generator)
    block = FIRST_BLOCK
    while found.count + block <= limit:
        found = found.grown(block)
        directions = found.directions()
        squares = directions.values.double().square()
        beyond = norm**2 - float(squares.sum())
        if (size.lost or 0.0) < FINEST:
            beyond = projection_error(matrix, found.basis, found.rest, norm, norm**2) ** 2
        needed = size.needed(directions.values, (float(squares.sum()) + max(beyond, 0.0)) ** 0.5)
        if _sampled(needed) <= found.count or _sampled(most) <= found.count:
            return directions, needed
        # Each direction beyond is at most as long as the last one: so many more it takes at least.
        missing = norm**2 * (1 - (size.lost or 0.0)) - float(squares.sum())
        more = missing / max(float(squares[-1]), norm**2 * 1e-30)
        if min(_sampled(most), found.count + more) > limit:
            break
        block = found.count
    directions = _all(matrix)
    return directions, size.needed(directions.values)


def _sampled(wanted: int) -> int:
    """Returns how many random directions find `wanted` ones."""
    return wanted + wanted // 4 + OVERSAMPLING


class _Range:
    """An orthonormal basis of nearly the range of the largest directions of a matrix."""

    def __init__(self, matrix: Float[Tensor, "O C"], generator: Generator) -> None:
        """Begins without directions."""
        self.matrix = matrix
        self.generator = generator
        self.basis = matrix.new_zeros(matrix.shape[0], 0)
        self.rest = matrix.new_zeros(0, matrix.shape[1])
        """The matrix as the basis sees it: basis^T @ matrix."""

    @property
    def count(self) -> int:
        """How many directions it has."""
        return self.basis.shape[1]

    def grown(self, block: int) -> "_Range":
        """Adds so many directions, outside of those that it has."""
        matrix = self.matrix
        start = torch.randn(matrix.shape[1], block, generator=self.generator, dtype=matrix.dtype)
        basis = self._outside(matrix @ start.to(matrix.device))
        for _ in range(POWER_ITERATIONS):
            across = torch.linalg.qr(matrix.T @ basis)[0]
            basis = self._outside(matrix @ across)
        self.basis = torch.cat([self.basis, basis], 1)
        self.rest = torch.cat([self.rest, basis.T @ matrix])
        return self

    def _outside(self, vectors: Float[Tensor, "O R"]) -> Float[Tensor, "O R"]:
        """Returns orthonormal directions, of `vectors` as far as those are not in the range yet.

        Taken off by products, what rounding leaves of vectors that are in the range would lie in it.
        """
        return torch.linalg.qr(torch.cat([self.basis, vectors], 1))[0][:, self.count :]

    def directions(self) -> _Directions:
        """Returns the singular triples of the matrix within the range."""
        return _projected(self.basis, self.rest)


def _all(matrix: Float[Tensor, "O C"]) -> _Directions:
    """Returns all singular triples of a matrix.

    In float32 from the eigenvectors of the Gram matrix in float64, which squares the values and is
    still as precise as float32 is, in a fraction of the time.
    """
    if matrix.dtype == torch.float64:
        return _Directions(*torch.linalg.svd(matrix, full_matrices=False))
    if matrix.shape[0] > matrix.shape[1]:
        return _all(matrix.T).transposed()
    return _projected(None, matrix)


def _projected(basis: Float[Tensor, "O S"] | None, rest: Float[Tensor, "S C"]) -> _Directions:
    """Returns the singular triples of basis @ rest by the Gram matrix of `rest`; None is identity."""
    if rest.dtype == torch.float64:
        inner, values, right = torch.linalg.svd(rest, full_matrices=False)
        return _Directions(inner if basis is None else basis @ inner, values, right)
    gram = rest.new_zeros(rest.shape[0], rest.shape[0], dtype=torch.float64)
    for chunk in rest.split(max(CHUNK * 4 // max(rest.shape[0], 1), 1), 1):
        wide = chunk.double()
        gram.addmm_(wide, wide.T)
    inner = torch.linalg.eigh(gram)[1].flip(1).to(rest.dtype)
    right = inner.T @ rest
    values = torch.linalg.vector_norm(right, dim=1)
    values, order = values.sort(descending=True)  # those that are but rounding may be out of order
    inner, right = inner[:, order], right[order]
    right = right / torch.where(values > 0, values, torch.ones_like(values))[:, None]
    return _Directions(inner if basis is None else basis @ inner, values, right)


def _nothing(rows: Float[Tensor, "O ..."], columns: Float[Tensor, "... C"]) -> Factors:
    """Returns one rank of zeros with as many rows and columns."""
    up, down = rows.new_zeros(rows.shape[0], 1), columns.new_zeros(1, columns.shape[-1])
    return Factors(widened(up), widened(down), 0.0, 0.0)


def _norm(matrix: Float[Tensor, "O C"]) -> float:
    """Returns the Frobenius norm, summed in float64."""
    step = max(CHUNK // max(matrix.shape[1], 1), 1)
    return math.hypot(*(float(rows.double().norm()) for rows in matrix.split(step)), 0.0)


def projection_error(
    matrix: Float[Tensor, "O C"],
    up: Float[Tensor, "O R"],
    down: Float[Tensor, "R C"],
    norm: float,
    kept: float,
) -> float:
    """Returns the norm of matrix - up @ down, where the product is a projection of the matrix.

    By Pythagoras, or where that cancels by the difference, some rows each, in float64.

    Args:
        matrix: The matrix.
        up: First factor.
        down: Second factor.
        norm: Norm of the matrix.
        kept: Squared norm of the product.
    """
    rest = norm**2 - kept
    if rest >= CANCELS * norm**2:
        return rest**0.5
    step = max(4 * CHUNK // max(matrix.shape[1], 1), 1)
    wide = down.double()
    total = 0.0
    for rows, ups in zip(matrix.split(step), up.split(step), strict=True):
        total += float((rows.double() - ups.double() @ wide).square_().sum())
    return total**0.5


def _finite(norm: float, seed: str) -> float:
    if not math.isfinite(norm):
        raise EditingError(f"The change of {seed} has numbers that are not finite.")
    return norm
