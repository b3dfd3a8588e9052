"""Norm: the change of scale and shift of a norm layer.

    dw = w_norm        db = b_norm

Source: LyCORIS `train_norm` (layer and group norms; the suffixes are its own).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened
from .forms import NOTHING, Whole


@dataclass(frozen=True, eq=False)
class Norm(Adapter):
    """Changes of a norm layer; at least one of both tensors is present."""

    name = "norm"
    roles = (
        Role("w_norm", (".w_norm",), required=False),
        Role("b_norm", (".b_norm",), required=False),
    )

    w_norm: Float[Tensor, " O"] | None = None
    b_norm: Float[Tensor, " O"] | None = None

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."] | None:
        """Returns the stored change of the scale."""
        if self.w_norm is None:
            return None
        if self.w_norm.shape != weight.shape:
            raise ShapeError(
                f"the stored scale is {list(self.w_norm.shape)}, the norm's {list(weight.shape)}"
            )
        return widened(self.w_norm)

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the stored change of the shift."""
        del bias
        return None if self.b_norm is None else widened(self.b_norm)

    def form(self) -> Whole:
        """Returns the stored change of the scale."""
        return NOTHING if self.w_norm is None else Whole(widened(self.w_norm))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Norm":
        """Returns zeros for the scale, and for the shift where the norm has one."""
        del config, generator
        bias = layer.bias(torch.empty(0))
        return cls(
            torch.zeros(layer.weight_shape), None if bias is None else torch.zeros(bias.shape)
        )
