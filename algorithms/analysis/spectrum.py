"""Of how many directions changes are: their singular values, and the effective rank.

The effective rank is exp(H), with H the entropy of the singular values as shares of their sum: 1 for
a change of one direction, r for one of r directions that are all as large.
Source: Roy and Vetterli 2007, The effective rank, EUSIPCO.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.forms import Form
from ..shapes import Float

BUDGET = 2 * 10**11
"""Multiplications for the spectra of one file: about ten seconds on four cores, in which a LoRA of
any size is done, and ten layers of 1280 x 1280 that have no smaller form."""


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


def spectra(forms: Iterable[Callable[[], Form]], budget: int = BUDGET) -> list[Spectrum]:
    """Returns the spectra of changes, in their order, as long as there is time; one at least.

    Changes of low rank take hardly any, so that all of a file's come out.

    Args:
        forms: Each makes one change.
        budget: How many multiplications they may take together.
    """
    found: list[Spectrum] = []
    for make in forms:
        form = make()
        budget -= form.work
        if budget < 0 and found:
            break
        found.append(Spectrum(form.singular_values().double()))
    return found


@dataclass(frozen=True)
class Spread:
    """The spectra of many layers together, each as shares of its largest value."""

    lower: tuple[float, ...]
    """First quartile of all layers, direction by direction; a layer without such a one counts as 0."""
    median: tuple[float, ...]
    upper: tuple[float, ...]
    """Third quartile."""


def spread_of(found: Sequence[Spectrum]) -> Spread:
    """Returns how singular values fall off."""
    shares = [one.values / one.values[0] for one in found if one.values.sum() > 0]
    table = torch.zeros(len(shares), max((one.shape[0] for one in shares), default=0)).double()
    for row, one in zip(table, shares, strict=True):
        row[: one.shape[0]] = one
    if not table.numel():
        return Spread((), (), ())
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    lower, median, upper = torch.quantile(table, levels, dim=0)
    reach = int((upper > 0).sum())
    return Spread(*(tuple(one[:reach].tolist()) for one in (lower, median, upper)))
