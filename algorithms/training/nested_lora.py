"""NestedUNet, experimental: a LoRA whose way through the ranks is a small linear U.

The name comes from a list of methods that describes it only as a variant of LoRA-C3Lier. This is our
own reading, and no other tool has it. With h = down(x) of R numbers, R / 2 and R / 4 below it, and a
skip at each level,

    h1 = d1 h        h2 = d2 h1        g1 = h1 + u2 h2        g = h + u1 g1        y + scale * up(g)

All of it is linear, and of points but for `down`, which carries the kernel: so it is a matrix C,

    g = C h        C = 1 + u1 (1 + u2 d2) d1        dW = (alpha / R) * (up C) @ down

and `up C` with `down` is an ordinary LoRA-C3Lier of rank R: that is what is computed with and what is
saved, exactly. It can express no more than that LoRA; only the way there differs. `up`, `u1` and
`u2` start at zero, so it starts as a LoRA does, with C = 1.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..adapters.base import InitialConfig
from ..adapters.linalg import kaiming
from ..adapters.lora import Lora
from ..layers import Layer
from ..shapes import Float
from .training_form import TrainingForm


@dataclass(frozen=True, eq=False)
class NestedLora(TrainingForm):
    """Both factors of a LoRA and the levels between them."""

    name = "NestedUNet in training"
    additive = True

    up: Float[Tensor, "O R ..."]
    down: Float[Tensor, "R I ..."]
    d1: Float[Tensor, "half R"]
    d2: Float[Tensor, "quarter half"]
    u2: Float[Tensor, "half quarter"]
    u1: Float[Tensor, "R half"]
    alpha: float

    @property
    def rank(self) -> int:
        """R, the rank of the outermost level and of the whole."""
        return self.down.shape[0]

    def as_lora(self) -> Lora:
        """Returns the LoRA of rank R that makes the same change: `up C` and `down`."""
        up = self.up.flatten(1)
        below = self.d1 + self.u2 @ (self.d2 @ self.d1)
        return Lora((up + (up @ self.u1) @ below).reshape(self.up.shape), self.down, self.alpha)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "NestedLora":
        """Returns LoRA's start with Kaiming-uniform `d1` and `d2`, and `u1` and `u2` at zero."""
        outer, rank = Lora.initial(layer, config, generator), config.rank
        half, quarter = rank // 2, rank // 4
        return cls(
            outer.up,
            outer.down,
            d1=kaiming((half, rank), generator),
            d2=kaiming((quarter, half), generator),
            u2=torch.zeros(half, quarter),
            u1=torch.zeros(rank, half),
            alpha=config.alpha or float(rank),
        )
