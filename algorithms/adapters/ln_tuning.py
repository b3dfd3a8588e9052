"""LN tuning: a layer, mostly a norm, with a weight and a bias of its own.

    dW = weight - W        db = bias - b

Source: LN tuning, Zhao et al. 2023, arXiv 2312.11420.
On disk: PEFT's `ln_tuning_layers.weight` and `.bias`, stored whole.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened


@dataclass(frozen=True, eq=False)
class LnTuning(Adapter):
    """What the layer's parameters become."""

    name = "LN tuning"
    roles = (
        Role("weight", (".ln_tuning_layers.weight", ".ln_tuning_layers.*.weight")),
        Role("bias", (".ln_tuning_layers.bias", ".ln_tuning_layers.*.bias"), required=False),
    )
    needs_weight = True

    weight: Float[Tensor, "O ..."]
    bias: Float[Tensor, " O"] | None = None

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the stored weight less the base.

        Raises:
            ShapeError: They differ in shape.
        """
        if self.weight.shape != weight.shape:
            raise ShapeError(
                f"the stored weight is {list(self.weight.shape)}, the layer's {list(weight.shape)}"
            )
        base = widened(weight)
        return widened(self.weight).to(base.dtype) - base

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the stored bias less that of the base."""
        if self.bias is None or bias is None:
            return None if self.bias is None else widened(self.bias)
        base = widened(bias)
        return widened(self.bias).to(base.dtype) - base

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the stored layer's output less that of the base, whose weight is not needed."""
        bias = layer.bias(x) if self.bias is None else self.bias
        return layer.apply(x, self.weight, bias) - y

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "LnTuning":
        """Returns the parameters that the layer has.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        del config, generator
        like = torch.empty(0, dtype=torch.float64)
        bias = layer.bias(like)
        return cls(layer.weight(like).clone(), None if bias is None else bias.clone())
