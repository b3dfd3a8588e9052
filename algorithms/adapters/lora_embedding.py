"""LoRA on a table of tokens.

    dE = (alpha / R) * (B A)^T

Source: PEFT's LoRA for `nn.Embedding`.
On disk: `lora_embedding_A` `[R, tokens]` and `lora_embedding_B` `[size, R]`. Hooks do not reach a
table, so it is changed by a weight patch in both modes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, scale_of, widened
from .forms import Product
from .linalg import low_rank, matrix_sizes


@dataclass(frozen=True, eq=False)
class LoraEmbedding(Adapter):
    """Both factors; the table is stored token by token, hence the transposed product."""

    name = "LoRA (embedding)"
    roles = (
        Role("b", (".lora_embedding_B", ".lora_embedding_B.*")),
        Role("a", (".lora_embedding_A", ".lora_embedding_A.*")),
        ALPHA,
    )
    additive = True

    b: Float[Tensor, "I R"]
    a: Float[Tensor, "R O"]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """R, the inner size of the product."""
        return self.a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        product = low_rank(widened(self.a).T, widened(self.b).T, tuple(weight.shape))
        return product * scale_of(self.alpha, self.rank)

    def form(self) -> Product:
        """Returns the scaled product."""
        scale = scale_of(self.alpha, self.rank)
        return Product(widened(self.a).T * scale, widened(self.b).T)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[LoraEmbedding]":
        """Returns the adapter with alpha from the configuration."""
        del corrections
        alpha = self.alpha or origin.numerator(self.rank)
        if not alpha:
            return Completion(self, assumed="scale 1")
        return Completion(replace(self, alpha=alpha))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "LoraEmbedding":
        """Returns random `b`, and `a` at zero, as PEFT does."""
        tokens, size = matrix_sizes(layer.weight_shape, cls.name)
        b = torch.randn(size, config.rank, generator=generator)
        return cls(b, torch.zeros(config.rank, tokens), config.alpha)
