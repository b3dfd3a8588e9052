"""Products of factors, their sizes and starts, that several methods share."""

import math

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float, Integer


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


def through_core(
    core: Float[Tensor, "M R ..."], down: Float[Tensor, "R I"]
) -> Float[Tensor, "M C"]:
    """Returns `sum over r of core[m, r, *k] down[r, i]`, the inputs and the kernel flattened."""
    return torch.einsum("mr..., ri -> mi...", core, down).flatten(1)


def kronecker(
    left: Float[Tensor, "a c"], right: Float[Tensor, "b d *K"]
) -> Float[Tensor, "O I *K"]:
    """Returns the Kronecker product over the first two axes, with the kernel of `right`.

    K[i * b + j, p * d + q, *k] = left[i, p] * right[j, q, *k]
    """
    blocks = torch.einsum("ac, bd... -> abcd...", left, right)
    return blocks.flatten(2, 3).flatten(0, 1)


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """Returns two numbers whose product is `size`, the smaller one first.

    Source: LyCORIS `functional.general.factorization`, which sizes LoKr's factors and OFT's blocks.

    Args:
        size: Number of rows or columns of a weight.
        factor: The wanted one of both. Where it does not divide `size`, the nearest smaller divisor
            takes its place, no larger than the root; -1 asks for the most square split.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    largest = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = next((number for number in range(largest, 1, -1) if size % number == 0), 1)
    return small, size // small


def core_like(core: Float[Tensor, "M R ..."], kernel: tuple[int, ...]) -> Float[Tensor, "M R ..."]:
    """Returns a Tucker core with the axes of a kernel: PEFT stores `[M, R, k, 1]` for conv1d."""
    return core.squeeze(-1) if core.shape[2:] == (*kernel, 1) else core


def kaiming(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Returns `kaiming_uniform_` with a = sqrt 5: uniform within 1 / sqrt(fan in)."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def low_rank_output(
    x: Float[Tensor, "B ..."],
    layer: Layer,
    up: Float[Tensor, "O R"],
    down: Float[Tensor, "R I"],
) -> Float[Tensor, "B ..."]:
    """Returns what a layer makes of `x` with the weight `up @ down`, which is not built.

    A grouped convolution takes the way over the weight: a product of the two layers would mix
    the groups.

    Raises:
        ShapeError: The product does not have as many rows and columns as the layer's weight.
    """
    require_product(up, down, layer.weight_shape)
    if not layer.chains:
        return layer.apply(x, (up @ down).reshape(layer.weight_shape))
    kernel = down.reshape(down.shape[0], *layer.weight_shape[1:])
    return layer.pointwise(layer.apply(x, kernel), up)


def matrix_sizes(shape: tuple[int, ...], method: str) -> tuple[int, int]:
    """Returns outputs and inputs of a linear layer or a 1x1 convolution.

    Args:
        shape: Shape of the weight.
        method: Name of a method that exists on such layers only.

    Raises:
        ShapeError: The weight is of another kind.
    """
    if len(shape) < 2 or set(shape[2:]) - {1}:
        raise ShapeError(f"{method} exists on linear layers, and the weight is {list(shape)}")
    return shape[0], shape[1]


def require_places(places: Integer[Tensor, "..."], count: int) -> None:
    """Checks that places lie among `count` numbers; on a GPU one outside would stop everything.

    Raises:
        ShapeError: One does not.
    """
    highest = int(places.max())
    if highest >= count:
        raise ShapeError(f"its numbers stand at places up to {highest}, but there are {count}")
