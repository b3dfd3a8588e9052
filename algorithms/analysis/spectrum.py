"""Of how many directions changes are: their singular values, and the effective rank.

The effective rank is exp(H), with H the entropy of the singular values as shares of their sum: 1 for
a change of one direction, r for one of r directions that are all as large.
Source: Roy and Vetterli 2007, The effective rank, EUSIPCO.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.forms import Form
from ..shapes import Float

BUDGET = 5 * 10**11
"""Multiplications for the spectra of one file, some ten seconds on a few cores."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How the change of one layer is spread over directions."""

    values: Float[Tensor, " S"]
    """Singular values, largest first."""

    @property
    def effective_rank(self) -> float:
        """How many directions of one size would be as spread; 0 without a change."""
        total = self.values.sum()
        if total == 0:
            return 0.0
        shares = self.values / total
        return float(torch.special.entr(shares).sum().exp())


def spectra(
    forms: Mapping[str, Form], norms: Mapping[str, float], budget: int = BUDGET
) -> dict[str, Spectrum]:
    """Returns the spectra of the layers of a file, of the largest changes first.

    All of them where the changes are of low rank; else as many as there is time for, one at least.

    Args:
        forms: Layer -> its change.
        norms: Layer -> the norm of its change.
        budget: How many multiplications they may take together.
    """
    found: dict[str, Spectrum] = {}
    for name in sorted(forms, key=lambda one: -norms[one]):
        budget -= forms[name].work
        if budget < 0 and found:
            break
        found[name] = Spectrum(forms[name].singular_values().double())
    return found
