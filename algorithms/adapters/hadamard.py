"""The elementwise product of two products, which is built again for its gradients, and not kept.

    W = (a1 @ b1) ⊙ (a2 @ b2)

Autograd by itself would keep both products, each as large as the weight, and the layer that applies
W would keep W. Here the four factors and the input are all that is kept: of a linear layer of 1024 x
1024 in float32 that is 12 MiB less. Source of the idea: LyCORIS `HadaWeight`.
"""

from typing import Any

import torch
from torch import Tensor

from ..layers import Layer
from ..shapes import Float
from .linalg import require_product

Factors = tuple[Tensor, Tensor, Tensor, Tensor]
"""a1 `[O, M]`, b1 `[M, C]`, a2 `[O, N]` and b2 `[N, C]`, with C the inputs times the kernel."""


def hadamard(factors: Factors, shape: tuple[int, ...]) -> Float[Tensor, "O ..."]:
    """Returns the product in the shape of a weight.

    Raises:
        ShapeError: It does not have as many rows and columns.
    """
    _require_halves(factors, shape)
    product = _Product.apply(*factors) if torch.is_grad_enabled() else _product(*factors)
    return product.reshape(shape)


def hadamard_output(
    x: Float[Tensor, "B ..."], layer: Layer, factors: Factors
) -> Float[Tensor, "B ..."]:
    """Returns what a layer makes of `x` with the product as its weight.

    Raises:
        ShapeError: The product does not have as many rows and columns as the layer's weight.
    """
    _require_halves(factors, layer.weight_shape)
    if torch.is_grad_enabled():
        return _Applied.apply(layer, x, *factors)
    return layer.apply(x, _as_weight(_product(*factors), layer, x))


class _Product(torch.autograd.Function):
    """The product as a matrix."""

    @staticmethod
    def forward(ctx: Any, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        return _product(*factors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Factors:
        a1, b1, a2, b2 = ctx.saved_tensors
        of_first = _of_half(gradients[0], a1, b1, a2 @ b2)
        return *of_first, *_of_half(gradients[0], a2, b2, a1 @ b1)


class _Applied(torch.autograd.Function):
    """A layer with the product as its weight."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, *factors: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, *factors)
        return layer.apply(x, _as_weight(_product(*factors), layer, x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, a1, b1, a2, b2 = ctx.saved_tensors
        first, second = a1 @ b1, a2 @ b2
        weight = _as_weight(first * second, ctx.layer, x)
        of_input = ctx.needs_input_grad[1]
        of_x, of_weight = ctx.layer.gradients(gradients[0], x, weight, of_input=of_input)
        del weight
        of_product = of_weight.reshape(first.shape).to(first.dtype)
        of_first = _of_half(of_product, a1, b1, second)
        return None, of_x, *of_first, *_of_half(of_product, a2, b2, first)


def _product(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    # In place: the time of a large product is that of new memory for it.
    return (a1 @ b1).mul_(a2 @ b2)


def _as_weight(product: Tensor, layer: Layer, x: Tensor) -> Tensor:
    return product.reshape(layer.weight_shape).to(x.dtype)


def _of_half(gradient: Tensor, a: Tensor, b: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the factors of one half for that of the product.

    With G = dL/dW and Q the other half they are (G ⊙ Q) bᵀ and aᵀ (G ⊙ Q).
    """
    of_half = gradient * other
    return of_half @ b.T, a.T @ of_half


def _require_halves(factors: Factors, shape: tuple[int, ...]) -> None:
    """Checks that both halves have as many rows and columns as a weight.

    Raises:
        ShapeError: One has not.
    """
    a1, b1, a2, b2 = factors
    require_product(a1, b1, shape)
    require_product(a2, b2, shape)
