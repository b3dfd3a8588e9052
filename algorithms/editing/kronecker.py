"""The Kronecker product of two matrices that is nearest to a change.

    min over w1, w2 of ||dW - w1 ⊗ w2||

The blocks of dW, each as a row, make a matrix whose best copy of rank 1 is the answer.
Source: Van Loan and Pitsianis 1993, Approximation with Kronecker products, section 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.forms import Whole
from ..errors import ShapeError
from ..shapes import Float
from .decomposition import REACH, decomposed, projection_error
from .size import Size

GROWTH = 3e-5
"""Share by which a step must raise what is kept, or the search ends."""
MOST_STEPS = 200
"""Measured on noise, the slowest case: 30 to 100 steps, each of one product with two vectors."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sides of a Kronecker product, of the same norm."""

    w1: Float[Tensor, "a c"]
    w2: Float[Tensor, "b d ..."]
    error: float
    """Norm of the change less this product (Frobenius)."""
    norm: float
    """Norm of the change."""


def nearest_kronecker(change: Float[Tensor, "O I ..."], left: tuple[int, int], seed: str) -> Pair:
    """Returns the nearest Kronecker product; the kernel is that of the second side.

    Args:
        change: A matrix or a kernel.
        left: Rows and columns of the first side.
        seed: Any text, as the name of the layer; the same one gives the same bits.

    Raises:
        EditingError: The change has numbers that are not finite.
        ShapeError: The first side does not divide the change.
    """
    outputs, inputs, *kernel = change.shape
    a, c = left
    if outputs % a or inputs % c:
        raise ShapeError(f"no blocks of a weight {list(change.shape)} are {a} by {c} in number")
    b, d = outputs // a, inputs // c
    blocks = change.reshape(a, b, c, d, *kernel).transpose(1, 2).reshape(a * c, -1)
    found = decomposed(Whole(blocks), Size(rank=1), seed)
    norm = found.norm
    if norm and not REACH[0] < norm < REACH[1]:
        pair = nearest_kronecker((change.double() / norm).to(change.dtype), left, seed)
        w1, w2 = (one * norm**0.5 for one in (pair.w1, pair.w2))
        return Pair(w1, w2, pair.error * norm, norm)
    up, down, error = found.up, found.down, found.error
    if found.norm:
        up, down, kept = _sharpened(blocks, down)
        error = projection_error(blocks, up, down, found.norm, kept)
    return Pair(up.reshape(a, c), down.reshape(b, d, *kernel), error, found.norm)


def _sharpened(
    blocks: Float[Tensor, "O C"], down: Float[Tensor, "1 C"]
) -> tuple[Tensor, Tensor, float]:
    """Returns the leading direction by power iterations, and the squared norm of what it keeps.

    Of a change without any structure many directions are about as long, among which random ones
    alone find one that keeps a tenth less.
    """
    row, kept = down[0] / torch.linalg.vector_norm(down), 0.0
    column = blocks @ row
    for _ in range(MOST_STEPS):
        column = column / torch.linalg.vector_norm(column)
        row = column @ blocks
        length, before = torch.linalg.vector_norm(row), kept
        kept = float(row.double().square().sum())
        if kept - before <= GROWTH * kept:
            break
        row = row / length
        column = blocks @ row
    root = torch.linalg.vector_norm(row).sqrt()
    return (column * root)[:, None], (row / root)[None], kept
