"""A LoRA in training, with what is left out between its two factors.

    hidden = down(x)        y + scale * up(hidden * m)

Sources: sd-scripts 0.10.1 `networks.lora`, whose three dropouts these are, for all methods that go
through ranks; T-LoRA for the ranks that a sample uses. Masks come from torch's own generator, which
gradient checkpointing restores.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.lora import Lora
from ..layers import Layer
from ..shapes import Float


@dataclass(frozen=True, eq=False)
class DroppedLora(Lora):
    """A LoRA for one call of its layer."""

    dropout: float = 0.0
    """Part of the hidden values that is zero; the others grow by 1 / (1 - dropout)."""
    rank_dropout: float = 0.0
    """Part of the ranks that is zero for a sample, at all its places; the others grow alike."""
    used: Float[Tensor, "B ranks"] | None = None
    """1 for the ranks that a sample uses, 0 for the others."""
    copies: int = 1
    """How many times the ranks stand side by side, with the same masks: T-LoRA's two."""

    def between(self, hidden: Float[Tensor, "B ..."], layer: Layer) -> Float[Tensor, "B ..."]:
        """Returns the hidden values that are left."""
        axis = layer.channel_axis(hidden)
        parts = hidden.unflatten(axis, (self.copies, -1))
        batch, ranks = hidden.shape[0], parts.shape[axis + 1]
        places = [1] * parts.ndim
        places[0], places[axis + 1] = batch, ranks
        if self.dropout:
            kept = F.dropout(torch.ones_like(parts.select(axis, 0)), self.dropout)
            parts = parts * kept.unsqueeze(axis)
        if self.rank_dropout:
            drawn = torch.rand(batch, ranks, device=hidden.device) > self.rank_dropout
            parts = parts * (drawn.to(hidden.dtype) / (1 - self.rank_dropout)).reshape(places)
        if self.used is not None:
            parts = parts * self.used.to(hidden).reshape(places)
        return parts.flatten(axis, axis + 1)
