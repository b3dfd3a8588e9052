"""HiRA: the weight times a product of low rank, element by element.

    dW = W ⊙ (B A)        on a table of tokens: dE = E ⊙ (B A)^T

Source: HiRA, Huang et al. 2025 (ICLR), section 3; PEFT 0.21.2, which has no scale.
On disk: PEFT's `hira_A` and `hira_B`, `hira_embedding_A` `[R, tokens]` and `hira_embedding_B`.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened
from .forms import Product
from .linalg import low_rank, matrix_sizes


@dataclass(frozen=True, eq=False)
class Hira(Adapter):
    """Both factors; that of a convolution's input carries the kernel."""

    name = "HiRA"
    roles = (
        Role("b", (".hira_B", ".hira_B.*")),
        Role("a", (".hira_A", ".hira_A.*")),
    )
    needs_weight = True

    b: Float[Tensor, "O R ..."]
    a: Float[Tensor, "R I ..."]

    @property
    def rank(self) -> int:
        """R, the inner size of the product."""
        return self.a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the weight times the product."""
        base = widened(weight)
        return base * low_rank(widened(self.b), widened(self.a), tuple(weight.shape))

    def relative_norm(self) -> float:
        """Returns that of the product, for rows whose numbers are all of one size."""
        product = Product(widened(self.b).flatten(1), widened(self.a).flatten(1))
        return product.norm() / max(product.right.shape[1], 1) ** 0.5

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Hira":
        """Returns random `a`, and `b` at zero."""
        outputs, *inputs = layer.weight_shape
        a = torch.randn(config.rank, *inputs, generator=generator)
        return cls(torch.zeros(outputs, config.rank, *[1] * (len(inputs) - 1)), a)


@dataclass(frozen=True, eq=False)
class HiraEmbedding(Adapter):
    """Both factors for a table of tokens."""

    name = "HiRA (embedding)"
    roles = (
        Role("b", (".hira_embedding_B", ".hira_embedding_B.*")),
        Role("a", (".hira_embedding_A", ".hira_embedding_A.*")),
    )
    needs_weight = True

    b: Float[Tensor, "I R"]
    a: Float[Tensor, "R O"]

    @property
    def rank(self) -> int:
        """R, the inner size of the product."""
        return self.a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the table times the product."""
        base = widened(weight)
        return base * low_rank(widened(self.a).T, widened(self.b).T, tuple(weight.shape))

    def relative_norm(self) -> float:
        """Returns that of the product, for rows whose numbers are all of one size."""
        product = Product(widened(self.a).T, widened(self.b).T)
        return product.norm() / max(product.right.shape[1], 1) ** 0.5

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "HiraEmbedding":
        """Returns random `b`, and `a` at zero."""
        tokens, size = matrix_sizes(layer.weight_shape, cls.name)
        b = torch.randn(size, config.rank, generator=generator)
        return cls(b, torch.zeros(config.rank, tokens))
