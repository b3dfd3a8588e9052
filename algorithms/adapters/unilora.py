"""Uni-LoRA: a LoRA whose numbers are taken from one vector that all layers share.

    dW = B A        A = theta[indices_A] ⊙ scales_A,  B = theta[indices_B] ⊙ scales_B

Source: Uni-LoRA, Li et al. 2025, arXiv 2506.00799, section 3.
On disk: PEFT names. Only files saved with their indices (`save_indices`) are known: otherwise these
follow from a seed and the order of the modules in the trainer.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float, Integer
from .base import Adapter, InitialConfig, Role, widened
from .forms import Product
from .linalg import low_rank, matrix_sizes, require_places
from .lora import Lora


@dataclass(frozen=True, eq=False)
class UniLora(Adapter):
    """Places in the shared vector, and scales."""

    name = "Uni-LoRA"
    roles = (
        Role("indices_a", (".unilora_indices_A", ".unilora_indices_A.*"), whole=True),
        Role("indices_b", (".unilora_indices_B", ".unilora_indices_B.*"), whole=True),
        Role("scales_a", (".unilora_scales_A", ".unilora_scales_A.*")),
        Role("scales_b", (".unilora_scales_B", ".unilora_scales_B.*")),
        Role("theta", (".unilora_theta_d", ".unilora_theta_d.*"), common=True),
    )
    additive = True

    indices_a: Integer[Tensor, "R I"]
    indices_b: Integer[Tensor, "O R"]
    scales_a: Float[Tensor, "R I"]
    scales_b: Float[Tensor, "O R"]
    theta: Float[Tensor, " K"]

    @property
    def rank(self) -> int:
        """R, the inner size of the product."""
        return self.indices_a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the product in the shape of `weight`; only its shape is read."""
        matrix_sizes(tuple(weight.shape), self.name)
        return low_rank(*self._factors, tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is."""
        del weight
        return Lora(*self._factors)

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that every place lies in the shared vector."""
        del shape
        for places in (self.indices_a, self.indices_b):
            require_places(places, self.theta.numel())

    def form(self) -> Product:
        """Returns the product."""
        return Product(*self._factors)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "UniLora":
        """Returns random places in a vector of zeros."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        count = 4 * config.rank
        indices_a = torch.randint(0, count, (config.rank, inputs), generator=generator)
        indices_b = torch.randint(0, count, (outputs, config.rank), generator=generator)
        scales_a, scales_b = torch.ones(config.rank, inputs), torch.ones(outputs, config.rank)
        return cls(indices_a, indices_b, scales_a, scales_b, torch.zeros(count))

    @property
    def _factors(self) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        theta = widened(self.theta)
        up = theta[self.indices_b.long()] * widened(self.scales_b)
        return up, theta[self.indices_a.long()] * widened(self.scales_a)
