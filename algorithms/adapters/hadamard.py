"""The elementwise product of two products, which is built again for its gradients, and not kept.

    W = (a1 @ b1) ⊙ (a2 @ b2)

Autograd by itself would keep both products, each as large as the weight, and the layer that applies
W would keep W. Here the four factors and the input are all that is kept: of a linear layer of 1024 x
1024 in float32 that is 12 MiB less. Source of the idea: LyCORIS `HadaWeight`.
"""

from collections.abc import Sequence
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
    return layer.apply(x, _weight(layer, x, factors))


class _Product(torch.autograd.Function):
    """The product as a matrix."""

    @staticmethod
    def forward(ctx: Any, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        return _product(*factors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Factors:
        return _of_factors(gradients[0], ctx.saved_tensors)


class _Applied(torch.autograd.Function):
    """A layer with the product as its weight."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, *factors: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, *factors)
        return layer.apply(x, _weight(layer, x, factors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        weight = _weight(ctx.layer, x, factors)
        of_x, of_weight = _of_layer(ctx.layer, x, weight, gradients[0])
        of_weight = of_weight.reshape(factors[0].shape[0], -1).to(factors[0].dtype)
        return None, of_x, *_of_factors(of_weight, factors)


def _product(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    # In place: the time of a large product is that of new memory for it.
    return (a1 @ b1).mul_(a2 @ b2)


def _weight(layer: Layer, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    return _product(*factors).reshape(layer.weight_shape).to(x.dtype)


def _of_factors(gradient: Tensor, factors: Sequence[Tensor]) -> Factors:
    """Returns the gradients of the factors for that of the product.

    With G = dL/dW, P = a1 b1 and Q = a2 b2 they are (G ⊙ Q) b1ᵀ, a1ᵀ (G ⊙ Q), (G ⊙ P) b2ᵀ and
    a2ᵀ (G ⊙ P).
    """
    a1, b1, a2, b2 = factors
    of_first = gradient * (a2 @ b2)
    of_a1, of_b1 = of_first @ b1.T, a1.T @ of_first
    del of_first  # it is as large as the weight
    of_second = gradient * (a1 @ b1)
    return of_a1, of_b1, of_second @ b2.T, a2.T @ of_second


def _of_layer(layer: Layer, x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of an input and a weight for that of the output."""
    if layer.kind == "linear":
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)
    pull_back = torch.func.vjp(layer.apply, x, weight)[1]
    return pull_back(gradient)


def _require_halves(factors: Factors, shape: tuple[int, ...]) -> None:
    """Checks that both halves have as many rows and columns as a weight.

    Raises:
        ShapeError: One has not.
    """
    a1, b1, a2, b2 = factors
    require_product(a1, b1, shape)
    require_product(a2, b2, shape)
