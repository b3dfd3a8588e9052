"""Makes adapters of the difference between a model and the one that it was trained from.

What is not a matrix (norms, biases) is kept as it is. A matrix or kernel becomes one of:

    LoRA     the best low-rank copy of W' - W                            (Eckart and Young 1936)
    DoRA     m = length of each row, and the low-rank copy of what turns the rows of W
    LoKr     the nearest Kronecker product                               (kronecker.py)
    (IA)^3   the nearest factors of rows, or of columns, whichever keep more
    full     W' - W

On disk: down has the kernel and up is 1x1, as sd-scripts' and LyCORIS' own extraction writes it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.base import widened
from ..adapters.diff import Diff
from ..adapters.dora import Dora
from ..adapters.forms import CHUNK, Whole
from ..adapters.ia3 import Ia3
from ..adapters.linalg import factorization
from ..adapters.lokr import Lokr
from ..adapters.norm import Norm
from ..errors import EditingError
from ..formats.metadata import AdapterMetadata
from ..shapes import Float
from .decomposition import decomposed
from .kronecker import nearest_kronecker
from .network_metadata import network_metadata
from .size import Size
from .weight_shapes import lora_of

Method = Literal["LoRA", "DoRA", "LoKr", "(IA)^3", "full"]
METHODS: tuple[Method, ...] = ("LoRA", "DoRA", "LoKr", "(IA)^3", "full")
PRECISIONS = (torch.float16, torch.bfloat16)
"""In which models are kept besides float32."""
EXTRACTION = "anyadapter.extraction"
"""Key of what was asked for, as JSON."""
ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "DoRA": {"algo": "locon", "dora_wd": "True", "wd_on_output": "True"},
    "LoKr": {"algo": "lokr", "full_matrix": "True"},
    "(IA)^3": {"algo": "ia3"},
    "full": {"algo": "full"},
}
"""LyCORIS' network arguments of what is none of sd-scripts' methods."""
TURNS = 10
"""Of the search for the rows of a DoRA, at most."""
GAIN = 0.9
"""A turn must lower the error at least to this share of it, or it was the last one."""


@dataclass(frozen=True)
class Extraction:
    """What is made of a difference."""

    size: Size
    """Of LoRA and DoRA."""
    method: Method = "LoRA"
    factor: int = -1
    """Of LoKr: as in LyCORIS, the wish for the smaller part of each side; -1 is the most square."""
    minimum: float = 0.0
    """A layer whose difference is at most this share of its weight is left out."""
    norms_and_biases: bool = True
    """Whether what is not a matrix is kept too."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            EditingError: One is out of range.
        """
        if self.factor < 1 and self.factor != -1:
            raise EditingError(f"The factor is {self.factor}, and must be -1 or at least 1.")
        if not 0 <= self.minimum < 1:
            raise EditingError(f"The minimum is {self.minimum}, and must be from 0 up to below 1.")

    def said(self) -> dict[str, Any]:
        """Returns what the metadata say of it."""
        return {**vars(self), "size": self.size.said()}


@dataclass(frozen=True, eq=False)
class Extracted:
    """What a layer became."""

    adapters: tuple[Adapter, ...] = ()
    """None where there is no difference."""
    norm: float = 0.0
    """Norm of the difference, of weight and bias together (Frobenius)."""
    error: float = 0.0
    """Norm of what the adapters lack of it."""


@dataclass(frozen=True, eq=False)
class _Difference:
    """What is to be kept of one tensor, and the norms of all of it and of what is left out."""

    kept: Float[Tensor, "..."] | None = None
    norm: float = 0.0
    lost: float = 0.0


@dataclass(frozen=True, eq=False)
class _Weights:
    """A weight before and after, and their difference."""

    base: Float[Tensor, "O I *K"]
    tuned: Float[Tensor, "O I *K"]
    change: Float[Tensor, "O I *K"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)


@dataclass(frozen=True, eq=False)
class _Made:
    """An adapter of a weight, and the norm of what it lacks of the difference."""

    adapter: Adapter
    error: float


def extracted(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "*S"],
    wish: Extraction,
    seed: str,
    base_bias: Float[Tensor, " O"] | None = None,
    tuned_bias: Float[Tensor, " O"] | None = None,
    *,
    unlike: bool = False,
) -> Extracted:
    """Returns adapters that make a layer of the base what it is in the tuned model.

    Args:
        base: Weight of the layer that is adapted; of one axis for a norm.
        tuned: The weight that it should have.
        wish: What is made.
        seed: Name of the layer; the same one gives the same bits.
        base_bias: The bias beside it, or None where it has none.
        tuned_bias: The bias that it should have, or None.
        unlike: Whether both were kept in dtypes of their own: then a difference that rounding to one
            of these explains is none.

    Raises:
        EditingError: A weight has numbers that are not finite.
    """
    if base.ndim < 2 and not wish.norms_and_biases:
        return Extracted()
    weight, bias = _difference(base, tuned, wish, seed, unlike=unlike), _Difference()
    if wish.norms_and_biases and base_bias is not None and tuned_bias is not None:
        bias = _difference(base_bias, tuned_bias, wish, seed, unlike=unlike)
    norm, lost = math.hypot(weight.norm, bias.norm), math.hypot(weight.lost, bias.lost)
    change, shift = weight.kept, bias.kept
    if base.ndim < 2 or wish.method == "full":
        if change is None and shift is None:
            return Extracted((), norm, lost)
        if base.ndim > 1:
            return Extracted((Diff(change, shift),), norm, lost)
        # ComfyUI and LyCORIS look at b_norm only where there is a w_norm.
        scale = torch.zeros_like(widened(base)) if change is None else change
        return Extracted((Norm(scale, shift),), norm, lost)
    adapters: list[Adapter] = []
    if change is not None:
        weights = _Weights(widened(base), widened(tuned), change)
        made = _MAKERS[wish.method](weights, wish, seed)
        adapters.append(made.adapter)
        lost = math.hypot(lost, made.error)
    if shift is not None:
        adapters.append(Diff(diff_b=shift))
    return Extracted(tuple(adapters), norm, lost)


def extracted_parameter(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "*S"],
    wish: Extraction,
    seed: str,
    *,
    unlike: bool = False,
) -> Extracted:
    """Returns the difference of what is no weight of a layer, as a table of positions, as it is.

    Arguments are those of `extracted`.

    Raises:
        EditingError: It has numbers that are not finite.
    """
    if not wish.norms_and_biases:
        return Extracted()
    found = _difference(base, tuned, wish, seed, unlike=unlike)
    return Extracted(() if found.kept is None else (Diff(found.kept),), found.norm, found.lost)


def extraction_metadata(
    wish: Extraction, adapters: Iterable[Adapter], base_model_version: str
) -> AdapterMetadata:
    """Returns the metadata of a file that holds what was made, so that other tools know what it is.

    Args:
        wish: What was asked for.
        adapters: All that were made.
        base_model_version: What sd-scripts calls the family of the models.
    """
    arguments = dict(ARGUMENTS.get(wish.method, {}))
    if arguments and wish.norms_and_biases:
        arguments["train_norm"] = "True"
    if wish.method == "LoKr":
        arguments["factor"] = str(wish.factor)
    return AdapterMetadata(
        {
            "ss_base_model_version": base_model_version,
            **network_metadata(adapters, arguments),
            "software": "Any Adapter",
            EXTRACTION: json.dumps(wish.said()),
        }
    )


def _difference(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "*S"],
    wish: Extraction,
    seed: str,
    *,
    unlike: bool,
) -> _Difference:
    """Returns how one tensor differs; a small difference counts as lost."""
    base, tuned = widened(base), widened(tuned)
    if _are_same(base, tuned):
        return _Difference()
    if unlike and (_rounds_to(base, tuned) or _rounds_to(tuned, base)):
        return _Difference()
    change = tuned - base
    norm = Whole(change).norm()
    if not math.isfinite(norm):
        raise EditingError(f"The weights of {seed} have numbers that are not finite.")
    if norm <= wish.minimum * Whole(base).norm():
        return _Difference(None, norm, norm)
    return _Difference(change, norm)


def _are_same(base: Tensor, tuned: Tensor) -> bool:
    """Whether two tensors are equal; numbers that are none count as equal where their bits are.

    ComfyUI leaves what a checkpoint lacks as memory happens to be, as the text projection of SD 1.5.
    """
    one, other = (tensor.contiguous().view(torch.uint8) for tensor in (base, tuned))
    return torch.equal(base, tuned) or torch.equal(one, other)


def _rounds_to(exact: Tensor, rounded: Tensor) -> bool:
    """Whether a tensor is another one in a lower precision; some of its numbers are rounded at a time."""
    pieces = [one.flatten().split(CHUNK) for one in (exact, rounded)]
    return any(
        all(
            torch.equal(one.to(dtype).to(one.dtype), other)
            for one, other in zip(*pieces, strict=True)
        )
        for dtype in PRECISIONS
    )


def _lora(weights: _Weights, wish: Extraction, seed: str) -> _Made:
    found = decomposed(Whole(weights.change), wish.size.on(weights.shape), seed)
    return _Made(lora_of(found.up, found.down, weights.shape), found.error)


def _dora(weights: _Weights, wish: Extraction, seed: str) -> _Made:
    """Finds rows V = W + up @ down whose directions are those of W'.

    How long V's rows are is free, since m / ||V|| is applied. At first they are as long as those of
    W; then the low-rank copy and the lengths that fit it best take turns. A difference that was made
    by a DoRA is found as such: measured, each turn leaves a tenth of the error of the one before.
    """
    before, after, shape = weights.base.flatten(1), weights.tuned.flatten(1), weights.shape
    size = wish.size.on(shape)
    of_tuned = torch.linalg.vector_norm(after, dim=1)
    length = torch.linalg.vector_norm(before, dim=1)
    empty = length == 0  # such a row has no direction to begin with: it is taken as it is in W'
    gains = torch.where(empty, 1.0, length / _not_zero(of_tuned))
    best: _Made | None = None
    for _ in range(TURNS):
        found = decomposed(Whole(after * gains[:, None] - before), size, seed)
        rows = torch.addmm(before, found.up, found.down)
        along = (rows * after).sum(1)
        lengths = torch.linalg.vector_norm(rows, dim=1)
        magnitudes = (along / _not_zero(lengths)).clamp(min=0)
        made = rows * (magnitudes / _not_zero(lengths))[:, None]
        error = Whole(made - after).norm()
        if best is not None and error > GAIN * best.error:
            break
        scale = magnitudes.reshape(-1, *[1] * (len(shape) - 1))
        best = _Made(Dora(lora_of(found.up, found.down, shape), dora_scale=scale), error)
        gains = torch.where(empty, 1.0, along / _not_zero(of_tuned.square()))
    assert best is not None, "the first turn is taken"
    return best


def _not_zero(values: Tensor) -> Tensor:
    """Returns values to divide by, with 1 in place of 0."""
    return torch.where(values > 0, values, torch.ones_like(values))


def _lokr(weights: _Weights, wish: Extraction, seed: str) -> _Made:
    """Makes both sides whole, in the sizes of LyCORIS; its loader stops without an alpha."""
    rows, columns = (factorization(size, wish.factor)[0] for size in weights.shape[:2])
    found = nearest_kronecker(weights.change, (rows, columns), seed)
    return _Made(Lokr(w1=found.w1, w2=found.w2, alpha=1.0), found.error)


def _ia3(weights: _Weights, wish: Extraction, seed: str) -> _Made:
    """Makes the factors that keep most by least squares: <dW, W> / <W, W> in each row or column."""
    del wish, seed
    base, change = weights.base, weights.change
    found: list[_Made] = []
    for axis in (0, 1):
        others = tuple(one for one in range(base.ndim) if one != axis)
        gain = (change * base).sum(others, keepdim=True)
        gain = gain / _not_zero(base.square().sum(others, keepdim=True))
        error = Whole(change - gain * base).norm()
        shape = (1, -1, *[1] * (base.ndim - 2)) if base.ndim > 2 else (-1,)
        found.append(_Made(Ia3(gain.reshape(shape), float(axis)), error))
    return min(found, key=lambda made: made.error)


_MAKERS: Mapping[Method, Callable[[_Weights, Extraction, str], _Made]] = {
    "LoRA": _lora,
    "DoRA": _dora,
    "LoKr": _lokr,
    "(IA)^3": _ia3,
}
