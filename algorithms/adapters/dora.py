"""DoRA: any additive change, followed by a length of its own for each row or column of the weight.

    V = W + dW_inner        W' = m * V / ||V||        dW = W' - W

Source: DoRA, Liu et al. 2024, arXiv 2402.09353, section 4.1. The norm is taken over all axes but
one: the outputs (a magnitude `[O, 1, ...]`) or the inputs (`[1, I, ...]`).
On disk: `dora_scale` (LyCORIS, OneTrainer; either axis, told by its shape), and on the outputs only
`lora_magnitude_vector` (PEFT) and `magnitude` (ai-toolkit), whatever their shape. A `dora_scale`
that a converter has flattened fits both axes of a square weight; then the axis is that of the other
layers of the file (`binding.py`), else what the header says, else the outputs.
Departs from ComfyUI 0.28, which divides by ||W|| on the output axis, and from LyCORIS and PEFT at
strengths other than 1: here the result at strength s lies on the line from W to W'.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Generator, Tensor

from ..errors import FormatError, ShapeError, TrainingError
from ..layers import Layer
from ..shapes import Float
from .base import (
    Adapter,
    Completion,
    InitialConfig,
    Origin,
    Pieces,
    Role,
    Setting,
    Spelling,
    Work,
    widened,
)
from .lokr import Lokr
from .lora import Lora

Axis = Literal["outputs", "inputs"]
V = TypeVar("V")
LORA_SETTINGS = ("wd_on_output", "lora_decompose_output_axis")
"""Settings that put the magnitudes on the outputs: LyCORIS' and OneTrainer's."""
LOKR_SETTINGS = ("wd_on_output", "lokr_dora_on_output")
INNER = "inner."
"""What stands before the names of the inner adapter's tensors."""


@dataclass(frozen=True, eq=False)
class Dora(Adapter):
    """An additive adapter with magnitudes; exactly one of both spellings is present."""

    name = "DoRA"
    roles = (
        Role("dora_scale", (".dora_scale",), required=False),
        Role(
            "magnitude_vector",
            (
                ".lora_magnitude_vector",
                ".lora_magnitude_vector.weight",
                ".lora_magnitude_vector.*.weight",
                ".lora_magnitude_vector.*",
                ".magnitude",
            ),
            required=False,
        ),
    )
    settings = ("flat_axis",)
    needs_weight = True
    prepares_from_weight = True

    inner: Adapter
    dora_scale: Float[Tensor, "..."] | None = None
    magnitude_vector: Float[Tensor, "..."] | None = None
    flat_axis: Axis = "outputs"
    """Axis of a `dora_scale` that a converter has flattened, where both have its length."""
    gain: Float[Tensor, " N"] | None = None
    """m / ||V|| for one base; made by `prepared`."""
    growth: Float[Tensor, " N"] | None = None
    """`gain` - 1, which a low dtype could not tell from the rounding of a gain near 1."""
    detached_norm: bool = False
    """Whether ||V|| is a constant to the gradients (section 4.3 of the paper). Nothing else differs."""

    def __post_init__(self) -> None:
        """Refuses two vectors of magnitudes."""
        if self.dora_scale is not None and self.magnitude_vector is not None:
            raise FormatError(
                "there are DoRA magnitudes in two spellings, and which count is unclear"
            )

    @property
    def rank(self) -> int | None:
        """The rank of the inner adapter."""
        return self.inner.rank

    @property
    def label(self) -> str:
        """The inner method and DoRA."""
        return f"{self.inner.label} with DoRA"

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns W' - W; without values in `weight`, only its shape is right."""
        base = widened(weight)
        changed = base + self._inner_change(base)
        return changed * self._over(self._gain(changed), base.shape) - base

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the change that the inner adapter makes: a bias has no length."""
        return self.inner.delta_bias(bias)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Dora":
        """Returns the adapter with m / ||V|| for this base."""
        inner = self.inner.prepared(weight)
        base = widened(weight)
        gain = self._gain(base + self._inner_change(base))
        return replace(self, inner=inner, gain=gain, growth=gain - 1)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change by scaling outputs or inputs, with g = m / ||V||.

        On the outputs it is (g - 1) * (y - b) + g * inner(x), on the inputs the layer itself on
        (g - 1) * x, plus inner(g * x).
        """
        if self.gain is None or self.growth is None:
            return super().delta_output(x, y, layer)
        gain, growth = self.gain.to(x.dtype), self.growth.to(x.dtype)
        shift = self.inner.delta_bias(layer.bias(x))
        shift = None if shift is None else layer.over_channels(shift.to(x.dtype), y)
        if self.axis(layer.weight_shape) == "outputs":
            gain, growth = layer.over_channels(gain, y), layer.over_channels(growth, y)
            change = self.inner.delta_output(x, y, layer)
            change = change if shift is None else change - shift
            change = growth * layer.unbiased(y) + gain * change
            return change if shift is None else change + shift
        gain = layer.over_channels(gain.repeat(layer.groups), x)
        growth = layer.over_channels(growth.repeat(layer.groups), x)
        return layer.product(x * growth) + self.inner.delta_output(x * gain, y, layer)

    def pieces(self, layer: Layer) -> Pieces | None:
        """Returns those of the inner adapter with their rows or columns scaled, and the scaling.

        With g = m / ||V|| the change is (g - 1) * W + g * dW_inner.
        """
        inner = self.inner.pieces(layer)
        if inner is None or self.gain is None or self.growth is None:
            return None
        if inner.up is None or inner.down is None:
            return None  # no method that adds to a weight scales it instead
        if self.axis(layer.weight_shape) == "outputs":
            scaled = self.gain[:, None] * widened(inner.up)
            return replace(inner, up=scaled, outputs=self.growth)
        rank, inputs = inner.down.shape[0], layer.weight_shape[1]
        columns = widened(inner.down).reshape(rank, inputs, -1) * self.gain[:, None]
        return replace(inner, down=columns.flatten(1), inputs=self.growth)

    def relative_norm(self) -> float | None:
        """Returns that of the inner change: how the lengths change takes the weight to tell."""
        form = self.inner.form()
        return None if form is None else form.norm()

    def work(self, layer: Layer, positions: int) -> Work:
        """Returns the work of the inner adapter and the scaling of the weight, or of the output.

        Magnitudes of inputs cost a second product of the layer.
        """
        inner = self.inner.work(layer, positions)
        numbers = math.prod(layer.weight_shape)
        on_inputs = self.axis(layer.weight_shape) == "inputs"
        scaling = positions * (numbers if on_inputs else layer.weight_shape[0])
        return Work(inner.in_weight + 3 * numbers, inner.on_output + scaling)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Dora]":
        """Returns the adapter with its inner adapter completed, and the axis of the header."""
        inner = self.inner.completed(origin, corrections=corrections)
        return Completion(
            replace(self, inner=inner.adapter, flat_axis=self._axis_by_header(origin)),
            assumed=inner.assumed,
            corrected=inner.corrected,
        )

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Dora":
        """Returns LoRA's start with the lengths of the outputs of the base weight.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        return cls.around(Lora.initial(layer, config, generator), layer)

    @classmethod
    def around(
        cls, inner: Adapter, layer: Layer, axis: Axis = "outputs", *, detached_norm: bool = False
    ) -> "Dora":
        """Returns an adapter that changes nothing yet, with the lengths of the base weight.

        Args:
            inner: The start of any additive method.
            layer: The layer to adapt.
            axis: What gets lengths of its own: the outputs, or the inputs.
            detached_norm: Whether the norm is a constant to the gradients.

        Raises:
            ShapeError: The layer is a norm.
            TrainingError: The inner method is not additive.
            UnsupportedLayerError: The layer cannot give its weight.
        """
        shape = layer.weight_shape
        if not inner.additive:
            raise TrainingError(
                f"DoRA goes around a change that does not depend on the weight, and that of "
                f"{inner.name} does. Switch DoRA off, or choose LoRA, LoHa, LoKr or full."
            )
        if len(shape) < 2:
            raise ShapeError(f"DoRA needs a matrix or a kernel, the weight is {list(shape)}")
        lengths = _lengths(layer.weight(torch.empty(0, dtype=torch.float64)), axis)
        scale = lengths.reshape(_broadcast(axis, len(shape)))
        return cls(inner, dora_scale=scale, detached_norm=detached_norm)

    def sliced(self, rank: int) -> "Dora":
        """Returns the same with the first ranks of the inner adapter; its lengths stay."""
        return replace(self, inner=self.inner.sliced(rank))

    def axis(self, shape: tuple[int, ...]) -> Axis:
        """Returns the axis that keeps its own lengths in a weight of `shape`.

        Raises:
            ShapeError: The magnitudes fit neither axis.
        """
        fitting = self.axes(shape)
        if not fitting:
            raise ShapeError(
                f"the DoRA magnitudes are {list(self.magnitude.shape)}, the weight is {list(shape)}"
            )
        return self.flat_axis if self.flat_axis in fitting else fitting[0]

    def axes(self, shape: tuple[int, ...]) -> tuple[Axis, ...]:
        """Returns the axes of a weight of `shape` that the magnitudes fit: one, both or none."""
        if len(shape) < 2:
            return ()  # the scale of a norm has no rows to be given lengths
        outputs, inputs = shape[:2]
        found = self.magnitude
        if self.dora_scale is None:
            return ("outputs",) if found.numel() == outputs else ()
        flat = found.ndim < 2
        fits: dict[Axis, bool] = {
            "outputs": found.numel() == outputs and (flat or found.shape[0] == outputs),
            "inputs": found.numel() == inputs and (flat or found.shape[1] == inputs),
        }
        return tuple(axis for axis, fit in fits.items() if fit)

    @property
    def is_flat(self) -> bool:
        """Whether the magnitudes have lost the axis that tells theirs."""
        return self.dora_scale is not None and self.dora_scale.ndim < 2

    def tensors(self) -> dict[str, Tensor]:
        """Returns the own tensors and those of the inner adapter, whose names begin with inner."""
        inner = {INNER + name: tensor for name, tensor in self.inner.tensors().items()}
        return super().tensors() | inner

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Dora":
        """Returns a copy with other tensors, of its own or of the inner adapter."""
        inner, own = _of_inner(tensors)
        return replace(self, inner=self.inner.with_tensors(inner), **own)

    def stored(self, spelling: Spelling = "kohya") -> dict[str, Tensor | float | tuple[int, ...]]:
        """Returns what a file holds of the inner adapter and of the magnitudes."""
        return self.inner.stored(spelling) | super().stored(spelling)

    def for_others(self) -> "Dora":
        """Returns the same with magnitudes that are read beside `lora_up`, as PEFT's are by no tool."""
        if self.magnitude_vector is None:
            return self
        inner = self.inner.down.ndim if isinstance(self.inner, Lora) else 2
        ones = [1] * (max(inner, self.magnitude_vector.ndim) - 1)
        scale = self.magnitude_vector.reshape(-1, *ones)
        return replace(self, dora_scale=scale, magnitude_vector=None)

    def for_peft(self) -> "Dora | None":
        """Returns the same with magnitudes of outputs, or None for those of inputs."""
        inner = self.inner.for_peft()
        if not isinstance(inner, Lora) or self.axis(_shape_of(inner)) != "outputs":
            return None
        ones = [1] * (inner.down.ndim - 2)
        vector = self.magnitude.flatten()
        shaped = vector.reshape(1, -1, *ones) if ones else vector
        return Dora(inner, magnitude_vector=shaped)

    def unstored(self) -> dict[str, Setting]:
        """Returns the own settings and those of the inner adapter, whose names begin with inner."""
        inner = {INNER + name: value for name, value in self.inner.unstored().items()}
        return super().unstored() | inner

    def with_unstored(self, settings: Mapping[str, Setting]) -> "Dora":
        """Returns a copy with settings of its own or of the inner adapter."""
        inner, own = _of_inner(settings)
        made = super().with_unstored(own)
        return replace(made, inner=made.inner.with_unstored(inner))

    @property
    def magnitude(self) -> Float[Tensor, "..."]:
        """m, in the shape in which the file has it."""
        found = self.dora_scale if self.magnitude_vector is None else self.magnitude_vector
        assert found is not None, "parsing gives one of both"
        return found

    def _axis_by_header(self, origin: Origin) -> Axis:
        """Returns the axis that the maker's settings name; LyCORIS' default is the outputs.

        OneTrainer's header always has the settings of all its methods.
        """
        of_method = LOKR_SETTINGS if isinstance(self.inner, Lokr) else LORA_SETTINGS
        said = (origin.flag(setting) for setting in of_method)
        on_outputs = next((flag for flag in said if flag is not None), True)
        return "outputs" if on_outputs else "inputs"

    def _inner_change(self, weight: Tensor) -> Tensor:
        change = self.inner.delta_weight(weight)
        return torch.zeros_like(weight) if change is None else change

    def _gain(self, changed: Float[Tensor, "O ..."]) -> Float[Tensor, " N"]:
        """Returns m / ||V||; a row or column without any length is left alone."""
        changed = changed.detach() if self.detached_norm else changed
        lengths = _lengths(changed, self.axis(tuple(changed.shape)))
        magnitude = widened(self.magnitude).flatten()
        ones = torch.ones_like(lengths)
        # Divided by 1 where there is no length, since the gradients of both branches are computed.
        quotient = magnitude / torch.where(lengths > 0, lengths, ones)
        return torch.where(lengths > 0, quotient, ones)

    def _over(self, vector: Float[Tensor, " N"], shape: tuple[int, ...]) -> Tensor:
        """Returns a vector in a shape that broadcasts against a weight of `shape`."""
        return vector.reshape(_broadcast(self.axis(tuple(shape)), len(shape)))


def _shape_of(inner: Lora) -> tuple[int, ...]:
    """Returns the shape of the weight that a LoRA with the kernel in its first factor is for."""
    return (inner.up.shape[0], *inner.down.shape[1:])


def _of_inner(values: Mapping[str, V]) -> tuple[dict[str, V], dict[str, V]]:
    """Returns the values of the inner adapter, by its own names, and the others."""
    inner = {name: value for name, value in values.items() if name.startswith(INNER)}
    own = {name: value for name, value in values.items() if name not in inner}
    return {name.removeprefix(INNER): value for name, value in inner.items()}, own


def _lengths(weight: Float[Tensor, "O ..."], axis: Axis) -> Float[Tensor, " N"]:
    kept = 0 if axis == "outputs" else 1
    return torch.linalg.vector_norm(weight.movedim(kept, 0).flatten(1), dim=1)


def _broadcast(axis: Axis, axes: int) -> tuple[int, ...]:
    """Returns the shape in which lengths broadcast against a weight of so many axes."""
    return (-1, *[1] * (axes - 1)) if axis == "outputs" else (1, -1, *[1] * (axes - 2))
