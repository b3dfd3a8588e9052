"""DeLoRA: a product of factors of length one, whose size is a number of its own.

    dW = lambda / R * (B / ||B_r||) (A / ||A_r||) diag(w_norm)

The lengths are those of each column of B and each row of A, and are taken as 1e-4 at least.

Source: DeLoRA, Bini et al. 2025, arXiv 2503.18225, section 3.
On disk: PEFT names. `delora_w_norm` holds the lengths of the columns of the weight that it was
trained on, so nothing of the base is read.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened
from .forms import Product
from .linalg import low_rank, matrix_sizes
from .lora import Lora

SHORTEST = 1e-4
"""PEFT's lower bound of a length."""


@dataclass(frozen=True, eq=False)
class DeLora(Adapter):
    """Directions, the size of the whole, and the lengths of the columns of its base."""

    name = "DeLoRA"
    roles = (
        Role("a", (".delora_A", ".delora_A.*")),
        Role("b", (".delora_B", ".delora_B.*")),
        Role("lambda_", (".delora_lambda", ".delora_lambda.*")),
        Role("w_norm", (".delora_w_norm", ".delora_w_norm.*")),
    )
    additive = True

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    lambda_: Float[Tensor, " one"]
    w_norm: Float[Tensor, " I"]

    @property
    def rank(self) -> int:
        """R, the rows of A."""
        return self.a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        matrix_sizes(tuple(weight.shape), self.name)
        return low_rank(*self._factors, tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is."""
        del weight
        return Lora(*self._factors)

    def form(self) -> Product:
        """Returns the product."""
        return Product(*self._factors)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "DeLora":
        """Returns random A, B at zero, and PEFT's size of 15.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        weight = layer.weight(torch.empty(0, dtype=torch.float64))
        lengths = torch.linalg.vector_norm(weight.reshape(outputs, inputs), dim=0)
        a = torch.randn(config.rank, inputs, generator=generator)
        return cls(a, torch.zeros(outputs, config.rank), torch.tensor([15.0]), lengths)

    @property
    def _factors(self) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        a, b = widened(self.a), widened(self.b)
        lengths = torch.linalg.vector_norm(a, dim=1).clamp(min=SHORTEST) * torch.linalg.vector_norm(
            b, dim=0
        ).clamp(min=SHORTEST)
        return b * (widened(self.lambda_) / self.rank / lengths), a * widened(self.w_norm)
