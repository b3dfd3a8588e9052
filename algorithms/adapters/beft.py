"""BEFT: a change of the bias alone.

    db = beft_bias

Source: BEFT, 2025, arXiv 2509.15974, as in PEFT 0.21.2.
On disk: PEFT's `beft_bias`, `[1, O]`.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened
from .forms import NOTHING, Whole


@dataclass(frozen=True, eq=False)
class Beft(Adapter):
    """The change."""

    name = "BEFT"
    roles = (Role("change", (".beft_bias", ".beft_bias.*")),)

    change: Float[Tensor, "one O"]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> None:
        """Returns None: the weight stays as it is."""
        del weight

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the stored change."""
        del bias
        return widened(self.change).flatten()

    def form(self) -> Whole:
        """Returns that of no change."""
        return NOTHING

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Beft":
        """Returns zeros."""
        del config, generator
        return cls(torch.zeros(1, layer.weight_shape[0]))
