"""LoKr: the Kronecker product of two small matrices, the second of which carries the kernel.

    dW = c * (w1 ⊗ w2)        dW[i b + j, p d + q, *k] = c * w1[i, p] * w2[j, q, *k]

w1 is `[a, c]`, w2 is `[b, d, *K]`, with O = a b and I = c d.
Source: LyCORIS, Yeh et al. 2024, arXiv 2309.14859, section 3 (after KronA, Edalati et al. 2022).
On disk: `lokr_w1` whole, or `lokr_w1_a @ lokr_w1_b`; `lokr_w2` whole, or `lokr_w2_a @ lokr_w2_b`,
or with `lokr_t2` in Tucker form, where `lokr_w2_a` has the outputs last. LyCORIS, OneTrainer,
ai-toolkit and PEFT share the names.
The scale c is alpha / R, with R the first size of `w2_b`, else of `w1_b`, and applied once. With
both whole there is no R: c is 1 and the file's alpha means nothing (ai-toolkit writes 9999999999).
Only PEFT applies its alpha / r even then, from its configuration.
Departs from LyCORIS 4.1.3, whose merge applies the scale twice; its forward, like this, does once.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import MissingTensorError, ShapeError
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
from .forms import Kronecker
from .linalg import core_like, factorization, kaiming, kronecker, low_rank, through_core, tucker


def _role(field: str) -> Role:
    return Role(field, (f".lokr_{field}", f".lokr_{field}.*"), required=False)


FORMS_OF_W1 = ({"w1"}, {"w1_a", "w1_b"})
FORMS_OF_W2 = ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})


@dataclass(frozen=True, eq=False)
class Lokr(Adapter):
    """LoKr in all its forms: each side is there whole or as factors, in exactly one way.

    Raises:
        MissingTensorError: A side is there not at all, not wholly or in two ways.
        ShapeError: Two factors of a side do not fit each other.
    """

    name = "LoKr"
    roles = (
        *(_role("w1"), _role("w1_a"), _role("w1_b")),
        *(_role("w2"), _role("w2_a"), _role("w2_b"), _role("t2")),
        ALPHA,
    )
    additive = True

    w1: Float[Tensor, "a c"] | None = None
    w1_a: Float[Tensor, "a s"] | None = None
    w1_b: Float[Tensor, "s c"] | None = None
    w2: Float[Tensor, "b d ..."] | None = None
    w2_a: Float[Tensor, "m n"] | None = None
    """`[b, R]`, in Tucker form `[R, b]`."""
    w2_b: Float[Tensor, "R k ..."] | None = None
    """`[R, d * prod(K)]` or the same with its axes apart, in Tucker form `[R, d]`."""
    t2: Float[Tensor, "M R ..."] | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Checks that each side is there in one form, and that its factors fit each other."""
        found = self.tensors().keys()
        _require_form("w1", {name for name in found if "1" in name}, FORMS_OF_W1)
        _require_form("w2", {name for name in found if "2" in name}, FORMS_OF_W2)
        if self.w2_a is not None and self.w2_b is not None:
            inner = self.w2_b.shape[0] if self.t2 is None else self.t2.shape[0]
            size = self.w2_a.shape[1 if self.t2 is None else 0]
            if inner != size:
                raise ShapeError(
                    f"lokr_w2_a has shape {tuple(self.w2_a.shape)}, so its inner size is {size}, "
                    f"but {inner} in the next factor. The file is damaged or of an unknown variant"
                )

    @property
    def rank(self) -> int | None:
        """R, or None with both sides whole."""
        factor = self.w1_b if self.w2_b is None else self.w2_b
        return None if factor is None else factor.shape[0]

    @property
    def scale(self) -> float:
        """The factor on the product: alpha / R; 1 with both sides whole, whatever alpha is."""
        return 1.0 if self.rank is None else scale_of(self.alpha, self.rank)

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled Kronecker product in the shape of `weight`; only its shape is read."""
        shape = tuple(weight.shape)
        return kronecker(self._left(), self._right(self._split(shape), shape[2:])).reshape(shape)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change by the two small sides, which never builds their product.

        The inputs are c parts of d channels. Each part goes through w2, which has the geometry of
        the layer, and w1 mixes what comes out. A grouped convolution takes the way over the weight,
        since parts and groups cut the inputs differently.
        """
        if not layer.chains:
            return super().delta_output(x, y, layer)
        inputs, left = self._split(layer.weight_shape), self._left().to(x.dtype)
        parts = left.shape[1]
        if layer.kind == "linear":
            hidden = self._through_right(x.unflatten(-1, (parts, inputs)), inputs, layer)
            return (left @ hidden).flatten(-2)
        apart = x.unflatten(1, (parts, inputs)).flatten(0, 1)
        hidden = self._through_right(apart, inputs, layer)
        hidden = hidden.unflatten(0, (x.shape[0], parts))
        mixed = left @ hidden.flatten(2)
        return mixed.unflatten(2, hidden.shape[2:]).flatten(1, 2)

    def work(self, layer: Layer, positions: int) -> Work:
        """Returns the work of the product, and of w2 on every part of the inputs and w1 after it."""
        if not layer.chains:
            return super().work(layer, positions)
        (a, parts), (b, _) = self._size_of_left(), self._size_of_right()
        right = (self.w2, self.w2_a, self.w2_b, self.t2)
        per_part = sum(factor.numel() for factor in right if factor is not None)
        mixed = parts * per_part + a * parts * b
        return Work(math.prod(layer.weight_shape), positions * mixed)

    def form(self) -> Kronecker:
        """Returns both sides, w2 with its kernel flattened."""
        if self.w2 is not None:
            return Kronecker(self._left(), widened(self.w2).flatten(1))
        w2_a, w2_b = widened(_there(self.w2_a)), widened(_there(self.w2_b)).flatten(1)
        if self.t2 is None:
            return Kronecker(self._left(), w2_a @ w2_b)
        return Kronecker(self._left(), w2_a.T @ through_core(widened(self.t2), w2_b))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Lokr]":
        """Returns the adapter with the scale that the header gives.

        With both sides whole the scale goes into w1, as diffusers does it, and alpha becomes the
        rank that the file was trained with, which says that there is nothing left to apply.
        """
        if self.rank is not None:
            alpha = self.alpha or origin.numerator(self.rank)
            assumed = "" if alpha else "scale 1"
            return Completion(replace(self, alpha=alpha), assumed=assumed)
        if self.alpha is None and origin.tool == "peft" and origin.rank:
            alpha = origin.numerator(origin.rank)
            if alpha is not None:
                return Completion(self._times(alpha / origin.rank, float(origin.rank)))
        if self.alpha is None and origin.tool in ("peft", None):
            return Completion(self, assumed="scale 1")
        rank = self._rank_of_rs_lora(origin) if corrections else None
        if rank is None:
            return Completion(self)
        return Completion(
            self._times(rank**0.5, rank),
            corrected="LoKr of LyCORIS with rs_lora and both sides whole: times the root of its dim",
        )

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Lokr":
        """Returns LyCORIS' start: w1 Kaiming-uniform, w2 at zero by its last factor.

        w2 is whole where the rank is no smaller than half of its longer side. With both sides whole
        alpha is the rank: loaders ignore it, but that of LyCORIS stops without one.

        Raises:
            ShapeError: The weight is that of a norm.
        """
        if len(layer.weight_shape) < 2:
            raise ShapeError(
                f"LoKr needs a matrix or a kernel, the weight is {list(layer.weight_shape)}"
            )
        outputs, inputs, *kernel = layer.weight_shape
        a, b = factorization(outputs, config.factor)
        c, d = factorization(inputs, config.factor)
        a, b = (b, a) if config.unbalanced else (a, b)
        rank, few = config.rank, not config.full_matrix
        left = {"w1": (a, c)}
        if few and config.decompose_both and rank < max(a, c) / 2:
            left = {"w1_a": (a, rank), "w1_b": (rank, c)}
        factors = {name: kaiming(shape, generator) for name, shape in left.items()}
        if not few or rank >= max(b, d) / 2:
            factors["w2"] = torch.zeros(b, d, *kernel)
        elif config.use_tucker and math.prod(kernel) > 1:
            factors["t2"] = kaiming((rank, rank, *kernel), generator)
            factors["w2_a"] = kaiming((rank, b), generator)
            factors["w2_b"] = torch.zeros(rank, d)
        else:
            factors["w2_a"] = kaiming((b, rank), generator)
            factors["w2_b"] = torch.zeros(rank, d * math.prod(kernel))
        whole = factors.keys() == {"w1", "w2"}
        return cls(alpha=float(rank) if whole else config.alpha, **factors)

    def _split(self, shape: tuple[int, ...]) -> int:
        """Returns d, the inputs of w2 in a weight of `shape`.

        Raises:
            ShapeError: The two sides do not make such a weight.
        """
        (a, c), (b, numbers) = self._size_of_left(), self._size_of_right()
        outputs, columns = shape[0], torch.Size(shape[1:]).numel()
        inputs = shape[1] if len(shape) > 1 else 1
        if (a * b, c * numbers) != (outputs, columns) or inputs % c:
            raise ShapeError(
                f"the adapter is a product of {a} x {c} and {b} x {numbers} numbers, "
                f"the weight has {outputs} x {columns} {list(shape)}"
            )
        return inputs // c

    def _size_of_left(self) -> tuple[int, int]:
        """Returns a and c."""
        if self.w1 is not None:
            return self.w1.shape[0], self.w1.shape[1]
        return _there(self.w1_a).shape[0], _there(self.w1_b).shape[1]

    def _size_of_right(self) -> tuple[int, int]:
        """Returns b and the numbers in a row of w2."""
        if self.w2 is not None:
            return self.w2.shape[0], self.w2.shape[1:].numel()
        w2_a, w2_b = _there(self.w2_a), _there(self.w2_b)
        if self.t2 is not None:
            return w2_a.shape[1], w2_b.shape[1:].numel() * self.t2.shape[2:].numel()
        return w2_a.shape[0], w2_b.shape[1:].numel()

    def _left(self) -> Float[Tensor, "a c"]:
        """Returns w1, scale included."""
        if self.w1 is not None:
            return widened(self.w1) * self.scale
        return widened(_there(self.w1_a)) @ widened(_there(self.w1_b)) * self.scale

    def _right(self, inputs: int, kernel: tuple[int, ...]) -> Float[Tensor, "b d ..."]:
        """Returns w2 as a kernel."""
        shape = (self._size_of_right()[0], inputs, *kernel)
        if self.w2 is not None:
            return widened(self.w2).reshape(shape)
        w2_a, w2_b = widened(_there(self.w2_a)), widened(_there(self.w2_b))
        if self.t2 is not None:
            core = core_like(widened(self.t2), kernel)
            return tucker(w2_a.T, core, w2_b.flatten(1), shape)
        return low_rank(w2_a, w2_b, shape)

    def _through_right(
        self, x: Float[Tensor, "B ..."], inputs: int, layer: Layer
    ) -> Float[Tensor, "B ..."]:
        """Applies w2 to an input of `inputs` channels, factor by factor."""
        kernel = layer.weight_shape[2:]
        if self.w2 is not None:
            return layer.apply(x, self.w2.to(x.dtype).reshape(-1, inputs, *kernel))
        w2_a, w2_b = _there(self.w2_a).to(x.dtype), _there(self.w2_b).to(x.dtype)
        if self.t2 is not None:
            core = core_like(self.t2.to(x.dtype), kernel)
            return layer.pointwise(layer.apply(layer.pointwise(x, w2_b.flatten(1)), core), w2_a.T)
        return layer.pointwise(layer.apply(x, w2_b.reshape(-1, inputs, *kernel)), w2_a)

    def _times(self, scale: float, rank: float) -> "Lokr":
        """Returns the adapter, both sides whole, with a scale put into w1."""
        return replace(self, w1=widened(_there(self.w1)) * scale, alpha=rank)

    def _rank_of_rs_lora(self, origin: Origin) -> float | None:
        """Returns LyCORIS' dim where rs_lora acted on two whole sides; None where nothing proves it.

        It then trains at dim / sqrt(dim) and saves alpha = dim * sqrt(dim), which no loader reads.
        """
        if origin.tool != "lycoris" or not origin.flag("rs_lora") or not self.alpha:
            return None
        dims = (float(origin.rank or 0), origin.number("conv_dim") or 0.0)
        # In a file of half precision alpha is dim ** 1.5 to 8 bits.
        fitting = (dim for dim in dims if dim > 0 and abs(self.alpha / dim**1.5 - 1) < 0.01)
        return next(fitting, None)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the forms were checked when the adapter was made"
    return tensor


def _require_form(side: str, found: set[str], forms: tuple[set[str], ...]) -> None:
    """Checks that one side is there in one of its forms.

    Raises:
        MissingTensorError: It is not.
    """
    if found in forms:
        return
    have = " and ".join(f"lokr_{name}" for name in sorted(found)) or f"nothing of lokr_{side}"
    ways = ", or ".join(" and ".join(f"lokr_{name}" for name in sorted(form)) for form in forms)
    raise MissingTensorError(
        f"it has {have}, but LoKr needs either {ways}. Download or save the file again"
    )
