"""LoHa: the elementwise product of two low-rank products.

    dW = (alpha / R) * (w1_a @ w1_b) ⊙ (w2_a @ w2_b)

Source: FedPara, Hyeon-Woo et al. 2022, arXiv 2108.06098, section 2.1. The rank of the change can
reach R squared: it is the LoRA whose factors hold the products of every pair of ranks.
On disk: LyCORIS' names (`hada_w1_a` and so on), which PEFT shares; PEFT keeps alpha in its
configuration. OneTrainer stores kernels as `[O, R, 1, 1]` and `[R, I, *K]`. R is the first size of
`w1_b` in every form. The Tucker form is `LohaTucker`.
Departs from LyCORIS 4.1.3, whose merge applies the scale twice; its forward, like this, does once.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import (
    ALPHA,
    Adapter,
    Completion,
    InitialConfig,
    Origin,
    Role,
    Work,
    scale_of,
    widened,
)
from .forms import Hadamard, Product
from .hadamard import Factors, hadamard, hadamard_output
from .linalg import core_like, require_product, through_core


def _role(field: str) -> Role:
    return Role(field, (f".hada_{field}", f".hada_{field}.*"))


LARGEST_CALM_RANK = 16
"""Half of the rank that LyCORIS' documents advise at most."""
FACTORS = (_role("w1_a"), _role("w1_b"), _role("w2_a"), _role("w2_b"))


@dataclass(frozen=True, eq=False)
class Loha(Adapter):
    """LoHa with four factors."""

    name = "LoHa"
    roles = (*FACTORS, ALPHA)
    additive = True

    w1_a: Float[Tensor, "O R ..."]
    w1_b: Float[Tensor, "R I ..."]
    w2_a: Float[Tensor, "O R ..."]
    w2_b: Float[Tensor, "R I ..."]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """R, the inner size of both products."""
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        """The factor on the whole product: alpha / R, or 1 where nothing gives alpha."""
        return scale_of(self.alpha, self.rank)

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        return hadamard(self._factors(), tuple(weight.shape))

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change by a LoRA of rank R squared, or by the weight where that is cheaper.

        A grouped convolution takes the way over the weight, as for LoRA.
        """
        outputs, *inputs = layer.weight_shape
        columns = torch.Size(inputs).numel()
        positions = y.numel() // outputs
        if not layer.chains or not pairs_are_cheaper(self.rank, outputs, columns, positions):
            return hadamard_output(x, layer, self._factors())
        pairs = self.form().over_pairs()
        up, down = pairs.left, pairs.right
        require_product(up, down, layer.weight_shape)
        kernel = down.to(x.dtype).reshape(-1, *inputs)
        return layer.pointwise(layer.apply(x, kernel), up.to(x.dtype))

    def work(self, layer: Layer, positions: int) -> Work:
        """Returns the work of both products, and of the pairs of ranks where they are cheaper."""
        outputs, columns = layer.weight_shape[0], math.prod(layer.weight_shape[1:])
        built = 2 * self.rank * outputs * columns
        if layer.chains and pairs_are_cheaper(self.rank, outputs, columns, positions):
            return Work(built, (positions + 1) * self.rank**2 * (outputs + columns))
        return Work(built, built + positions * outputs * columns)

    def form(self) -> Hadamard:
        """Returns both products, the first one scaled."""
        a1, b1, a2, b2 = self._factors()
        return Hadamard(Product(a1, b1), Product(a2, b2))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Loha]":
        """Returns the adapter with alpha from the header where the tensors have none."""
        del corrections
        return _completed(self, origin)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Loha":
        """Returns LyCORIS' start: normal factors, and `w2_a` at zero.

        The first half has a deviation of 0.1 sqrt(R), by which the gradients of the second grow.
        Above rank 16 LyCORIS' training breaks down unless it goes slower, so there `w1_a` is made
        smaller, and the half stays as large as at rank 16.
        """
        outputs, *inputs = layer.weight_shape
        columns, rank = torch.Size(inputs).numel(), config.rank
        deviation = 0.1 / max(rank / LARGEST_CALM_RANK, 1) ** 0.5
        return cls(
            w1_a=torch.randn(outputs, rank, generator=generator) * deviation,
            w1_b=torch.randn(rank, columns, generator=generator),
            w2_a=torch.zeros(outputs, rank),
            w2_b=torch.randn(rank, columns, generator=generator),
            alpha=config.alpha,
        )

    def _factors(self) -> Factors:
        """Returns the factors as matrices in float32 or better, the scale in the first."""
        return (
            widened(self.w1_a).flatten(1) * self.scale,
            widened(self.w1_b).flatten(1),
            widened(self.w2_a).flatten(1),
            widened(self.w2_b).flatten(1),
        )


@dataclass(frozen=True, eq=False)
class LohaTucker(Adapter):
    """LoHa on a convolution, each half with a core that carries the kernel.

        half[o, i, *k] = sum over m, r of w_a[m, o] t[m, r, *k] w_b[r, i]

    Here the a factors are stored with the outputs last. Source: LyCORIS, Yeh et al. 2024,
    arXiv 2309.14859, section 3; PEFT has it as `use_effective_conv2d`.
    """

    name = "LoHa (Tucker)"
    roles = (*FACTORS, _role("t1"), _role("t2"), ALPHA)
    additive = True

    w1_a: Float[Tensor, "M O"]
    w1_b: Float[Tensor, "R I"]
    t1: Float[Tensor, "M R ..."]
    w2_a: Float[Tensor, "M O"]
    w2_b: Float[Tensor, "R I"]
    t2: Float[Tensor, "M R ..."]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """R, the inner size next to the input."""
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        """The factor on the whole product: alpha / R, or 1 where nothing gives alpha."""
        return scale_of(self.alpha, self.rank)

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product of both kernels; only the shape of `weight` is read."""
        return hadamard(self._factors(tuple(weight.shape)), tuple(weight.shape))

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the layer with the change as its weight."""
        del y
        return hadamard_output(x, layer, self._factors(layer.weight_shape))

    def form(self) -> Hadamard:
        """Returns both halves as products, the first one scaled."""
        a1, b1, a2, b2 = self._halves()
        return Hadamard(Product(a1, b1), Product(a2, b2))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[LohaTucker]":
        """Returns the adapter with alpha from the header where the tensors have none."""
        del corrections
        return _completed(self, origin)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "LohaTucker":
        """Returns LyCORIS' start: normal factors and cores, and `w2_a` at zero.

        The first half has a deviation of 0.01 R; above rank 16 it stays as there, as in `Loha`.
        """
        outputs, inputs, *kernel = layer.weight_shape
        rank = config.rank
        deviation = 0.1 / max(rank / LARGEST_CALM_RANK, 1)
        return cls(
            w1_a=torch.randn(rank, outputs, generator=generator) * deviation,
            w1_b=torch.randn(rank, inputs, generator=generator),
            t1=torch.randn(rank, rank, *kernel, generator=generator) * 0.1,
            w2_a=torch.zeros(rank, outputs),
            w2_b=torch.randn(rank, inputs, generator=generator),
            t2=torch.randn(rank, rank, *kernel, generator=generator) * 0.1,
            alpha=config.alpha,
        )

    def _factors(self, shape: tuple[int, ...]) -> Factors:
        """Returns the halves for a kernel of `shape`.

        Raises:
            ShapeError: A core has another kernel.
        """
        for core, factor in ((self.t1, self.w1_b), (self.t2, self.w2_b)):
            sizes = (factor.shape[1], *core_like(core, shape[2:]).shape[2:])
            if sizes != shape[1:]:
                raise ShapeError(
                    f"the adapter changes a kernel {[self.w1_a.shape[1], *sizes]}, "
                    f"not {list(shape)}"
                )
        return self._halves()

    def _halves(self) -> Factors:
        """Returns each half as a product of two matrices, the scale in the first one."""
        return (
            widened(self.w1_a).T * self.scale,
            through_core(widened(self.t1), widened(self.w1_b)),
            widened(self.w2_a).T,
            through_core(widened(self.t2), widened(self.w2_b)),
        )


def pairs_are_cheaper(rank: int, outputs: int, columns: int, positions: int) -> bool:
    """Whether the LoRA of rank R squared takes fewer multiplications than building the weight.

    The LoRA costs R² (O + columns) for each position. The weight costs 2 R products of all its
    numbers to build and one for each position. The elementwise steps of both are left out.

    Args:
        rank: R.
        outputs: O.
        columns: Inputs times kernel, the numbers of a row of the weight.
        positions: Tokens or pixels of the output, over the whole batch.
    """
    pairs = positions * rank**2 * (outputs + columns)
    return pairs < (2 * rank + positions) * outputs * columns


LohaKind = TypeVar("LohaKind", Loha, LohaTucker)


def _completed(adapter: LohaKind, origin: Origin) -> Completion[LohaKind]:
    alpha = adapter.alpha or origin.numerator(adapter.rank)
    assumed = "" if alpha else "scale 1"
    return Completion(replace(adapter, alpha=alpha), assumed=assumed)
