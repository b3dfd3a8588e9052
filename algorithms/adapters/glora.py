"""GLoRA: a low-rank change of the input before the weight, and one beside it.

    dW = (alpha / R) * (W @ a1 @ a2 + b1 @ b2)

Source: One-for-All (GLoRA), Chavan et al. 2023, arXiv 2306.07967, in the part that LyCORIS has
(`glora`): the terms A and B, no C, D, E. On a convolution A acts on the input channels.
On disk: `a1.weight` to `b2.weight` and `alpha`, in the order of factors of LyCORIS 3.0 and later
(`Glora`) or of the versions before (`GloraOld`); told apart by the shapes, on square layers by that
of the weight. PEFT's method of the same name is another one.
LyCORIS saves alpha as it is when it trains with rsLoRA, and reads it back a root of R too weak.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..errors import ShapeError, UndecidedError
from ..layers import Layer
from ..shapes import Float, axes_fit
from .base import (
    ALPHA,
    Adapter,
    Completion,
    InitialConfig,
    Origin,
    Role,
    scale_of,
    widened,
)
from .forms import Product
from .linalg import kaiming, low_rank, require_product, through_core, tucker

FACTORS = tuple(Role(name, (f".{name}.weight",)) for name in ("a1", "a2", "b1", "b2"))
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Glora(Adapter):
    """GLoRA in the order of LyCORIS 3.0 and later, or of a square layer in either order.

    There the shapes of rank 4 on 6 x 6 in one order are those of rank 6 on 4 x 4 in the other.
    """

    name = "GLoRA"
    roles = (*FACTORS, Role("bm", (".bm.weight",), required=False), ALPHA)
    needs_weight = True

    a1: Float[Tensor, "I R ..."]
    a2: Float[Tensor, "R I ..."]
    b1: Float[Tensor, "O R ..."]
    b2: Float[Tensor, "R I ..."]
    bm: Float[Tensor, "R R *K"] | None = None
    """Tucker core between `b1` and `b2`: LyCORIS declares it, and never writes it so far."""
    alpha: float | None = None

    @classmethod
    def fits(cls, shapes: Shapes) -> bool:
        """Whether the factors chain in this order, or in neither: then the misfit is told."""
        return axes_fit(cls, shapes) and (_chain_as_new(shapes) or not _chain_as_old(shapes))

    @property
    def rank(self) -> int:
        """R, the inner size of both products."""
        return min(self.a2.shape[:2])

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled sum of both products in the shape of `weight`."""
        shape = tuple(weight.shape)
        own = self._in_order(shape)
        b1, b2 = widened(own.b1).flatten(1), widened(own.b2)
        dtype = torch.promote_types(widened(weight).dtype, b1.dtype)
        a1, a2 = own.a1.flatten(1).to(dtype), own.a2.flatten(1).to(dtype)
        through = torch.einsum("oi..., ir -> or...", weight.to(dtype), a1)
        through = torch.einsum("or..., ri -> oi...", through, a2)
        if own.bm is None:
            beside = low_rank(b1, b2, shape)
        else:
            beside = tucker(b1, widened(own.bm), b2.flatten(1), shape)
        return (through + beside) * scale_of(self.alpha, own.a2.shape[0])

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the layer on `a1(a2(x))` plus `b1(b2(x))`, scaled, which needs no weight.

        A grouped convolution takes the way over the weight: the factors would mix the groups.
        """
        if not layer.chains:
            return super().delta_output(x, y, layer)
        shape = layer.weight_shape
        own = self._in_order(shape).to(x.device, x.dtype)
        rank = own.a2.shape[0]
        scale = scale_of(self.alpha, rank)
        changed = layer.pointwise(x, own.a2.flatten(1)) * scale
        through = layer.product(layer.pointwise(changed, own.a1.flatten(1)))
        b1, b2 = own.b1.flatten(1), own.b2.flatten(1)
        if own.bm is None:
            require_product(b1, b2, shape)
            hidden = layer.apply(x, b2.reshape(rank, *shape[1:]))
        else:
            hidden = layer.apply(layer.pointwise(x, b2), own.bm)
        return through + layer.pointwise(hidden * scale, b1)

    def relative_norm(self) -> float:
        """Returns that of both products together, in squares."""
        fits = self.a1.shape[0] >= self.a1.shape[1]
        own = self if fits else Glora(self.a2, self.a1, self.b2, self.b1)
        through = Product(widened(own.a1).flatten(1), widened(own.a2).flatten(1))
        right = widened(own.b2).flatten(1)
        right = right if own.bm is None else through_core(widened(own.bm), right)
        beside = Product(widened(own.b1).flatten(1), right)
        scale = scale_of(self.alpha, own.a2.shape[0])
        return math.hypot(through.norm(), beside.norm()) * scale

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Glora]":
        """Returns the adapter with the scale that it was trained with."""
        if not (self.alpha and corrections and origin.flag("rs_lora")):
            return _completed(self, origin)
        return Completion(
            replace(self, alpha=self.alpha * self.rank**0.5),
            corrected="GLoRA of LyCORIS with rsLoRA: times the root of the rank",
        )

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Glora":
        """Returns Kaiming-uniform `a1` and `b1`, and `a2` and `b2` at zero, as LyCORIS does."""
        outputs, inputs, *kernel = layer.weight_shape
        ones, rank = [1] * len(kernel), config.rank
        return cls(
            kaiming((inputs, rank, *ones), generator),
            torch.zeros(rank, inputs, *ones),
            kaiming((outputs, rank, *ones), generator),
            torch.zeros(rank, inputs, *kernel),
            alpha=config.alpha,
        )

    def _in_order(self, shape: tuple[int, ...]) -> "Glora":
        """Returns the factors as this order has them on a weight of `shape`.

        Raises:
            ShapeError: They do not fit it.
            UndecidedError: They fit in both orders.
        """
        inputs = (*shape, 1)[1]
        fits = self.a1.shape[0] == inputs
        factors = {"a1": self.a1, "a2": self.a2, "b1": self.b1, "b2": self.b2}
        shapes = {name: tuple(factor.shape) for name, factor in factors.items()}
        fits_as_old = self.a1.shape[1] == inputs == shape[0] and _chain_as_old(shapes)
        if fits and fits_as_old:
            raise UndecidedError(
                f"its factors and the weight are all {inputs} x {inputs}, so whether it is in the "
                "order of factors of LyCORIS 3 or in the older one cannot be told"
            )
        if not fits and not fits_as_old:
            raise ShapeError(
                f"the adapter changes {self.a1.shape[0]} inputs, the weight is {list(shape)}"
            )
        return self if fits else Glora(self.a2, self.a1, self.b2, self.b1, alpha=self.alpha)


@dataclass(frozen=True, eq=False)
class GloraOld(Adapter):
    """GLoRA in the order of LyCORIS before 3.0.

        dW = (alpha / R) * (W @ a2 @ a1 + b2 @ b1)

    That version's forward had alpha / R twice and its merge once; the merge is what all loaders do.
    """

    name = "GLoRA (old order)"
    roles = (*FACTORS, ALPHA)
    needs_weight = True

    a1: Float[Tensor, "R I ..."]
    a2: Float[Tensor, "I R ..."]
    b1: Float[Tensor, "R I ..."]
    b2: Float[Tensor, "O R ..."]
    alpha: float | None = None

    @classmethod
    def fits(cls, shapes: Shapes) -> bool:
        """Whether the factors chain in this order only."""
        return axes_fit(cls, shapes) and _chain_as_old(shapes) and not _chain_as_new(shapes)

    @property
    def rank(self) -> int:
        """R, the inner size of both products."""
        return self.a1.shape[0]

    @property
    def reordered(self) -> Glora:
        """The same adapter in the order of later versions."""
        return Glora(self.a2, self.a1, self.b2, self.b1, alpha=self.alpha)

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled sum of both products in the shape of `weight`."""
        return self.reordered.delta_weight(weight)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the layer on `a2(a1(x))` plus `b2(b1(x))`, scaled."""
        return self.reordered.delta_output(x, y, layer)

    def relative_norm(self) -> float:
        """Returns that of both products together, in squares."""
        return self.reordered.relative_norm()

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[GloraOld]":
        """Returns the adapter with alpha from the header where the tensors have none."""
        del corrections
        return _completed(self, origin)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "GloraOld":
        """Returns the start of `Glora` in this order."""
        start = Glora.initial(layer, config, generator)
        return cls(start.a2, start.a1, start.b2, start.b1, config.alpha)


Kind = TypeVar("Kind", Glora, GloraOld)


def _completed(adapter: Kind, origin: Origin) -> Completion[Kind]:
    alpha = adapter.alpha or origin.numerator(adapter.rank)
    return Completion(replace(adapter, alpha=alpha), assumed="" if alpha else "scale 1")


def _chain_as_new(shapes: Shapes) -> bool:
    a1, a2, b1, b2 = (shapes[name][:2] for name in ("a1", "a2", "b1", "b2"))
    return a1[1] == a2[0] == b1[1] == b2[0] and a1[0] == a2[1] == b2[1]


def _chain_as_old(shapes: Shapes) -> bool:
    a1, a2, b1, b2 = (shapes[name][:2] for name in ("a1", "a2", "b1", "b2"))
    return a1[0] == a2[1] == b1[0] == b2[1] and a1[1] == a2[0] == b1[1]
