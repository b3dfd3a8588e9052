"""Products of factors that several methods share."""

import math

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..shapes import Float


def low_rank(
    up: Float[Tensor, "O R ..."], down: Float[Tensor, "R I ..."], shape: tuple[int, ...]
) -> Float[Tensor, "O ..."]:
    """Returns `up @ down` in the shape of a weight.

    Both factors are flattened after their first axis, which is right for every mixture of linear
    and convolution factors: 1x1 kernels on a linear weight, and matrices on a convolution.

    Raises:
        ShapeError: The product is not of `shape`.
    """
    up, down = up.flatten(1), down.flatten(1)
    require_product(up, down, shape)
    return (up @ down).reshape(shape)


def require_product(
    up: Float[Tensor, "O R"], down: Float[Tensor, "R I"], shape: tuple[int, ...]
) -> None:
    """Checks that `up @ down` has as many rows and columns as a weight.

    Raises:
        ShapeError: It has not.
    """
    columns = 1
    for size in shape[1:]:
        columns *= size
    if (up.shape[0], down.shape[1]) != (shape[0], columns):
        raise ShapeError(
            f"the adapter changes {up.shape[0]} x {down.shape[1]} numbers, "
            f"the weight has {shape[0]} x {columns} {list(shape)}"
        )


def tucker(
    up: Float[Tensor, "O M"],
    core: Float[Tensor, "M R *K"],
    down: Float[Tensor, "R I"],
    shape: tuple[int, ...],
) -> Float[Tensor, "O I *K"]:
    """Returns the kernel `sum over m, r of up[o, m] core[m, r, *k] down[r, i]`.

    Raises:
        ShapeError: The kernel is not of `shape`.
    """
    kernel = torch.einsum("om, mr..., ri -> oi...", up, core, down)
    if kernel.shape != shape:
        raise ShapeError(f"the adapter changes a kernel {list(kernel.shape)}, not {list(shape)}")
    return kernel


def kaiming(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Returns `kaiming_uniform_` with a = sqrt 5: uniform within 1 / sqrt(fan in)."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
