"""The contract of a method: named tensors for one layer, and what they change.

A method is one file with five things: its roles (how its tensors are spelled on disk), its fields
with their shapes, `delta_weight`, `delta_output` where a shorter way exists, and `initial`.
Strength, device and modules are not its matter: strength is written once, in `strength.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float

A = TypeVar("A", bound="Adapter")


@dataclass(frozen=True)
class Role:
    """What a tensor is in its method, and how its name ends in files."""

    field: str
    """Field of the adapter that the tensor fills."""
    suffixes: tuple[str, ...]
    """Every known ending of the key, with its leading separator; the first one is written."""
    required: bool = True
    shared: bool = False
    """Other methods on the same module may read it too (`alpha`); alone it claims nothing."""
    scalar: bool = False
    """The tensor holds one number, kept as a float."""


ALPHA = Role("alpha", (".alpha",), required=False, shared=True, scalar=True)


@dataclass(frozen=True)
class InitialConfig:
    """What a new adapter needs to know besides its layer."""

    rank: int = 4
    alpha: float | None = None


@dataclass(frozen=True, eq=False)
class Adapter(ABC):
    """The tensors of one method for one layer, as the file holds them."""

    name: ClassVar[str]
    """What the user sees, for example `LoRA`."""
    roles: ClassVar[tuple[Role, ...]]
    needs_weight: ClassVar[bool] = False
    """Whether `delta_weight` reads the values of the weight, and not only its shape."""

    @abstractmethod
    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."] | None:
        """Returns the change of `weight` at full strength, in float32 or better.

        Args:
            weight: The base weight. Only its shape is read unless `needs_weight`.

        Returns:
            A tensor of the shape of `weight`, or None where only the bias changes.

        Raises:
            ShapeError: The tensors do not fit the weight.
        """

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " O"] | None:
        """Returns the change of `bias` at full strength, or None where it does not change.

        Args:
            bias: The base bias, or None where the layer has none (or the values are not needed).
        """
        del bias
        return None

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change of the output at full strength; it broadcasts against `y`.

        Args:
            x: The input of the layer.
            y: What the layer gives without adapters, bias included.
            layer: Kind and geometry of the layer.
        """
        weight, bias = layer.base(with_values=self.needs_weight)
        change, shift = self.delta_weight(weight), self.delta_bias(bias)
        shift = None if shift is None else shift.to(x.dtype)
        if change is not None:
            return layer.apply(x, change.to(x.dtype), shift)
        return y.new_zeros(()) if shift is None else layer.over_channels(shift, y)

    @classmethod
    @abstractmethod
    def initial(cls: type[A], layer: Layer, config: InitialConfig, generator: Generator) -> A:
        """Returns tensors that change nothing yet, for training.

        Args:
            layer: The layer to adapt.
            config: Sizes.
            generator: Source of all randomness.
        """

    @property
    def rank(self) -> int | None:
        """Inner size of a low-rank method; None for the others."""
        return None

    def sliced(self: A, rank: int) -> A:
        """Returns the adapter cut to its first `rank` ranks; without ranks, itself."""
        del rank
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensor fields that are present, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}

    def to(self: A, device: torch.device | str, dtype: torch.dtype | None = None) -> A:
        """Returns a copy with all tensors moved; tensors already there are shared."""
        moved = {name: value.to(device, dtype) for name, value in self.tensors().items()}
        return replace(self, **moved)


def widened(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float32 or better: changes of weights are computed no lower."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
