"""PEANuT: a small network whose input is the weight itself.

    dW^T = scaling * f(W^T A^T) B^T

Source: PEANuT, Zhong et al. 2024, arXiv 2410.01870, section 3; of its forms that without hidden
layers (PEFT's `depth` 0, the default). Others are refused.
On disk: PEFT's `peanut_A` `[R, O]` and `peanut_B` `[O, R]`; f and scaling stand in the configuration
only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import FormatError, ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import low_rank, matrix_sizes
from .lora import Lora

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "mish"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
}


@dataclass(frozen=True, eq=False)
class Peanut(Adapter):
    """First and last matrix of the network."""

    name = "PEANuT"
    roles = (
        Role("a", (".peanut_A.weight", ".peanut_A.*.weight")),
        Role("b", (".peanut_B.weight", ".peanut_B.*.weight")),
        Role("hidden", (".peanut_encoders.0.weight",), required=False),
    )
    settings = ("scaling", "activation")
    needs_weight = True
    prepares_from_weight = True

    a: Float[Tensor, "R O"]
    b: Float[Tensor, "O R"]
    hidden: Float[Tensor, "R R"] | None = None
    """The first of further matrices, which are not known here."""
    scaling: float = 1.0
    activation: Activation = "relu"

    @property
    def rank(self) -> int:
        """R, the width of the network."""
        return self.a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns what the network makes of the weight."""
        return low_rank(*self._factors(weight), tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is on this base."""
        return Lora(*self._factors(weight))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Peanut]":
        """Returns the adapter with scaling and f of the configuration.

        Raises:
            FormatError: The network has hidden layers, or f is unknown.
        """
        del corrections
        activation, scaling = origin.options.get("act_fn"), origin.number("scaling")
        if self.hidden is not None or activation not in (*ACTIVATIONS, None):
            what = "hidden layers" if self.hidden is not None else f"the function {activation}"
            raise FormatError(
                f"{origin.module} is PEANuT with {what}, which is not known. "
                "Merge it in the tool that trained it."
            )
        if activation is None or scaling is None:
            return Completion(self, assumed="PEANuT with relu and scaling 1, PEFT's own defaults")
        return Completion(replace(self, activation=activation, scaling=scaling))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Peanut":
        """Returns random `a`, and `b` at zero."""
        outputs, _ = matrix_sizes(layer.weight_shape, cls.name)
        a = torch.randn(config.rank, outputs, generator=generator)
        return cls(a, torch.zeros(outputs, config.rank))

    def _factors(
        self, weight: Float[Tensor, "O ..."]
    ) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        """Returns scaled B and f(A W).

        Raises:
            ShapeError: The network is for another number of outputs.
        """
        matrix_sizes(tuple(weight.shape), self.name)
        rows = widened(weight).flatten(1)
        if self.a.shape[1] != rows.shape[0]:
            raise ShapeError(
                f"it is for {self.a.shape[1]} outputs, the weight is {list(weight.shape)}"
            )
        inside = ACTIVATIONS[self.activation](widened(self.a).to(rows.dtype) @ rows)
        return widened(self.b).to(rows.dtype) * self.scaling, inside
