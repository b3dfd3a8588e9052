"""How far what was made is from what was asked for, in each layer and over a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import counted, listed

EXACT = 1e-5
"""A relative error up to here is that of float32 itself."""


@dataclass(frozen=True)
class Part:
    """One layer: norms of the exact change and of the difference to it (Frobenius)."""

    norm: float
    error: float

    @property
    def relative(self) -> float:
        """The error as a share of the norm; infinite where something was made of nothing."""
        if self.norm:
            return self.error / self.norm
        return math.inf if self.error else 0.0


@dataclass
class Accuracy:
    """The errors of many layers."""

    parts: dict[str, Part] = field(default_factory=dict[str, Part])

    def add(self, layer: str, norm: float, error: float) -> None:
        """Takes a layer up; several changes of one layer are added as if they were of two.

        Args:
            layer: What the user calls it.
            norm: Of the exact change.
            error: Norm of the difference between what was made and it.
        """
        known = self.parts.get(layer, Part(0.0, 0.0))
        self.parts[layer] = Part(math.hypot(known.norm, norm), math.hypot(known.error, error))

    @property
    def relative(self) -> float:
        """The error over all layers together, as a share of the norm of the whole change."""
        return self._whole().relative

    def worst(self, count: int) -> Mapping[str, float]:
        """Returns the layers of the largest relative errors, the worst first."""
        found = {layer: part.relative for layer, part in self.parts.items()}
        ordered = sorted(found, key=lambda layer: -found[layer])[:count]
        return {layer: found[layer] for layer in ordered}

    def sentence(self) -> str:
        """Returns what the user is told."""
        if not self.parts:
            return "Nothing changes."
        count = counted(len(self.parts), "layer")
        if self.relative <= EXACT:
            return f"Exact within the precision of float32, in {count}."
        worst = [f"{layer} {_percent(share)}" for layer, share in self.worst(3).items()]
        return (
            f"Error {_percent(self.relative)} of the change, over {count}; largest in "
            f"{listed(worst, 3)}."
        )

    def _whole(self) -> Part:
        norms = (part.norm for part in self.parts.values())
        errors = (part.error for part in self.parts.values())
        return Part(math.hypot(*norms), math.hypot(*errors))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else "of all"
