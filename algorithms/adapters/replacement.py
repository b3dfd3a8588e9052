"""Replacement: the weight and bias that a layer has after training, stored whole.

    dW = weight' - W        db = bias' - b

On disk: `set_weight` (ComfyUI's spelling for the norms of BFL's control LoRAs), and whatever PEFT
keeps beside its adapters under `modules_to_save`, whose tensors have the plain names of the model
in files: only the configuration tells. Biases that PEFT trains beside a LoRA are `base_layer.bias`.
Departs from ComfyUI, which sets such a weight whatever the strength is.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened


@dataclass(frozen=True, eq=False)
class Replacement(Adapter):
    """Another weight and bias; at least one of both is present."""

    name = "replacement"
    roles = (
        Role(
            "weight",
            (".set_weight", ".modules_to_save.*.weight"),
            required=False,
        ),
        Role(
            "bias",
            (".set_bias", ".modules_to_save.*.bias", ".base_layer.bias"),
            required=False,
        ),
    )
    needs_weight = True

    weight: Float[Tensor, "O ..."] | None = None
    bias: Float[Tensor, " O"] | None = None

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."] | None:
        """Returns the difference to the base weight."""
        if self.weight is None:
            return None
        if self.weight.shape != weight.shape:
            raise ShapeError(
                f"the stored weight is {list(self.weight.shape)}, the model's {list(weight.shape)}"
            )
        return widened(self.weight) - widened(weight)

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the difference to the base bias."""
        if self.bias is None:
            return None
        if bias is None or bias.shape != self.bias.shape:
            return widened(self.bias)
        return widened(self.bias) - widened(bias)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the other layer's output less that of the base, whose weight is not needed."""
        if self.weight is None:
            return super().delta_output(x, y, layer)
        bias = layer.bias(x) if self.bias is None else self.bias
        return layer.apply(x, self.weight, bias) - y

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Replacement":
        """Returns the base weight, and its bias if there is one.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        del config, generator
        like = torch.empty(0, dtype=torch.float64)
        bias = layer.bias(like)
        return cls(layer.weight(like).clone(), None if bias is None else bias.clone())
