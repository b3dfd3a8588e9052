"""(IA)^3: a factor of its own for each output, or for each input, of a layer.

    dW = w * W   on rows or columns        y' = y + w * y0   or   W (x + w * x)

Source: (IA)^3, Liu et al. 2022, arXiv 2205.05638, section 3.3.
On disk: LyCORIS `ia3` (`weight`, which starts at 0, and `on_input`, which tells the side; only the
latter is a name of its own), and PEFT (`ia3_l`, the whole factor, which starts at 1).
LyCORIS leaves the bias alone; PEFT scales the output after it was added.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..errors import ShapeError, UndecidedError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Pieces, Role, widened
from .forms import Whole

Side = Literal["outputs", "inputs"]


@dataclass(frozen=True, eq=False)
class Ia3(Adapter):
    """LyCORIS' form: what is added to a factor of 1."""

    name = "(IA)^3"
    roles = (
        Role("weight", (".weight",), shared=True),
        Role("on_input", (".on_input",), scalar=True),
    )
    needs_weight = True

    weight: Float[Tensor, "..."]
    on_input: float
    """1 where the inputs are scaled, 0 where the outputs are."""

    @property
    def side(self) -> Side:
        """Which channels are scaled."""
        return "inputs" if self.on_input else "outputs"

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled rows or columns of `weight`."""
        return _scaled(weight, widened(self.weight), self.side)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the scaled output without its bias, or the layer on the scaled input."""
        return _output(self.weight, self.side, x, layer.unbiased(y), layer)

    def pieces(self, layer: Layer) -> Pieces | None:
        """Returns the factors of the side that they scale."""
        return _pieces(self.weight, self.side, layer)

    def relative_norm(self) -> float:
        """Returns that of the factors less 1."""
        return Whole(widened(self.weight)).norm()

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Ia3":
        """Returns zeros for the outputs or the inputs, in the shape that LyCORIS gives them.

        Raises:
            ShapeError: The inputs of a norm are asked for.
        """
        del generator
        shape = layer.weight_shape
        if config.on_input and len(shape) < 2:
            raise ShapeError(
                f"(IA)^3 scales inputs of a matrix or a kernel, the weight is {list(shape)}"
            )
        channels = shape[1 if config.on_input else 0]
        kernel = [1] * len(shape[2:])
        return cls(
            torch.zeros(1, channels, *kernel) if kernel else torch.zeros(channels),
            float(config.on_input),
        )


@dataclass(frozen=True, eq=False)
class Ia3Peft(Adapter):
    """PEFT's form: the factor itself, of an output with its bias or of an input (`feedforward`)."""

    name = "(IA)^3 (PEFT)"
    roles = (Role("factor", (".ia3_l", ".ia3_l.*")),)
    settings = ("feedforward",)
    needs_weight = True

    factor: Float[Tensor, "..."]
    feedforward: bool | None = None
    """Whether the inputs are scaled, where the shapes do not tell."""
    gain: Float[Tensor, "..."] | None = None
    """`factor` - 1, which a low dtype could not tell from the rounding of a factor near 1."""

    def side(self, shape: tuple[int, ...]) -> Side:
        """Returns which channels of a weight of `shape` are scaled.

        Raises:
            ShapeError: The factors fit neither side.
            UndecidedError: They fit both, and nothing says which is meant.
        """
        size = self.factor.numel()
        stated = self._stated_side
        fitting: list[Side] = []
        if size == shape[0] and stated != "inputs":
            fitting.append("outputs")
        if size == (shape[1] if len(shape) > 1 else 1) and stated != "outputs":
            fitting.append("inputs")
        if not fitting:
            raise ShapeError(_misfit(self.factor, stated or "outputs or inputs", shape))
        if len(fitting) == 2:
            raise UndecidedError(
                f"its {size} factors fit the outputs and the inputs of this convolution alike. "
                "Only `feedforward_modules` in PEFT's adapter_config.json tells which are meant: "
                "put that file beside this one."
            )
        return fitting[0]

    @property
    def _stated_side(self) -> Side | None:
        """The side that the axes tell on linear layers, or the configuration; None if neither."""
        if self.factor.ndim == 2:
            return "outputs" if self.factor.shape[1] == 1 else "inputs"
        if self.feedforward is None:
            return None
        return "inputs" if self.feedforward else "outputs"

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled rows or columns of `weight`."""
        return _scaled(weight, widened(self.factor) - 1, self.side(tuple(weight.shape)))

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the scaled bias, where the outputs are scaled and there is one."""
        scaled = self._stated_side != "inputs"
        if bias is None or not scaled or self.factor.numel() != bias.numel():
            return None  # as many factors as outputs and inputs: `side` has refused them before
        return widened(bias) * (widened(self.factor).flatten() - 1)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the scaled output with its bias, or the layer on the scaled input."""
        gain = self.factor - 1 if self.gain is None else self.gain
        return _output(gain, self.side(layer.weight_shape), x, y, layer)

    def pieces(self, layer: Layer) -> Pieces | None:
        """Returns the factors of the side that they scale, less 1."""
        gain = self.factor - 1 if self.gain is None else self.gain
        return _pieces(gain, self.side(layer.weight_shape), layer)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Ia3Peft":
        """Returns the adapter with its factors less 1."""
        del weight
        return replace(self, gain=widened(self.factor) - 1)

    def relative_norm(self) -> float:
        """Returns that of the factors less 1."""
        return Whole(widened(self.factor) - 1).norm()

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Ia3Peft]":
        """Returns the adapter with the side that `feedforward_modules` of the config gives it."""
        del corrections
        modules = origin.options.get("feedforward_modules")
        if modules is None:
            return Completion(self)
        return Completion(replace(self, feedforward=_is_named(modules, origin.module)))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Ia3Peft":
        """Returns ones for the outputs."""
        del config, generator
        outputs, *inputs = layer.weight_shape
        kernel = [1] * (len(inputs) - 1)
        shape = (1, outputs, *kernel) if kernel else (outputs, 1)
        return cls(torch.ones(shape), feedforward=False)


def _scaled(
    weight: Float[Tensor, "O ..."], gain: Float[Tensor, "..."], side: Side
) -> Float[Tensor, "O ..."]:
    """Returns `gain * weight` on the rows or on the columns of a weight."""
    axis = 0 if side == "outputs" else 1
    if weight.ndim <= axis or gain.numel() != weight.shape[axis]:
        raise ShapeError(_misfit(gain, side, tuple(weight.shape)))
    shape = [1] * weight.ndim
    shape[axis] = -1
    return widened(weight) * gain.reshape(shape)


def _output(gain: Tensor, side: Side, x: Tensor, y: Tensor, layer: Layer) -> Tensor:
    """Returns `gain * y`, or what the layer makes of `gain * x`, without its bias."""
    gain = gain.to(y.dtype)
    if side == "outputs":
        return layer.over_channels(gain.flatten(), y) * y
    # Each group has the same factors: a weight does not know of the groups before its own.
    return layer.product(x * layer.over_channels(gain.flatten().repeat(layer.groups), x))


def _pieces(gain: Tensor, side: Side, layer: Layer) -> Pieces | None:
    """Returns factors, but for those of inputs that each group of a convolution has anew."""
    if side == "outputs":
        return Pieces(outputs=gain.flatten())
    return Pieces(inputs=gain.flatten()) if layer.chains else None


def _misfit(gain: Tensor, side: str, shape: tuple[int, ...]) -> str:
    return (
        f"it scales {gain.numel()} {side}, the weight is {list(shape)}. (On a convolution with "
        "groups, factors for the inputs of all groups are not supported.)"
    )


def _is_named(modules: Any, name: str) -> bool | None:
    """Whether PEFT's setting names a module: a pattern, or a list of endings; None for nonsense."""
    if isinstance(modules, str):
        try:
            return re.fullmatch(rf"(?:.*\.)?(?:{modules})", name) is not None
        except (re.error, OverflowError):  # PEFT itself fails on it, so that nobody trained with it
            return None
    if not isinstance(modules, list | tuple):
        return None
    return any(name.endswith(str(ending)) for ending in modules)
