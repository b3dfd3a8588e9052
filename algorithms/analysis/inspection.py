"""What the changes of a file amount to, layer by layer, and block by block."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor

from ..adapters import Adapter
from ..adapters.forms import Form
from ..errors import AdapterError
from ..families.blocks import Place
from .norms import change_norm, form_on, joined
from .spectrum import BUDGET, Spectrum, spectra

Read = Callable[[], tuple[Tensor | None, Tensor | None]]
"""Gives the weight and the bias of a layer; no weight where its numbers cannot be had."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Site:
    """An adapter and the layer that it is on."""

    module: str
    """Its name in the file."""
    adapter: Adapter
    place: Place
    read: Read | None = None
    """None without a model."""

    def base(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns weight and bias where the change depends on them and they can be had."""
        if self.read is None or self.adapter.form() is not None:
            return None, None
        return self.read()


@dataclass(frozen=True, eq=False)
class Change:
    """How large the change of one layer is."""

    site: Site
    norm: float | None
    exact: bool
    """Whether it is not an estimate; also of a norm that is not known."""


def measured(sites: Iterable[Site]) -> list[Change]:
    """Returns how large changes are; that of a layer whose tensors do not go together is not known."""
    changes: list[Change] = []
    for site in sites:
        weight, bias = site.base()
        try:
            norm = change_norm(site.adapter, weight, bias)
        except (AdapterError, RuntimeError):
            norm = None
        estimated = norm is not None and weight is None and site.adapter.form() is None
        changes.append(Change(site, norm, not estimated))
    return changes


def norms_by(changes: Iterable[Change], key: Callable[[Place], Key]) -> dict[Key, float | None]:
    """Returns the norm of all changes of a block, a part of one or the like; None if one is unknown.

    Args:
        changes: Of layers.
        key: Gives what a layer belongs to.
    """
    found: dict[Key, list[float | None]] = defaultdict(list)
    for change in changes:
        found[key(change.site.place)].append(change.norm)
    return {name: joined(norms) for name, norms in found.items()}


def shares(norms: Mapping[str, float | None]) -> dict[str, float]:
    """Returns the share of each in the sum of squares, the largest first; the unknown left out."""
    squares = {name: norm**2 for name, norm in norms.items() if norm is not None}
    total = sum(squares.values())
    ordered = sorted(squares, key=lambda name: -squares[name])
    return {name: squares[name] / total if total else 0.0 for name in ordered}


def spectra_of(changes: Sequence[Change], budget: int = BUDGET) -> list[tuple[Change, Spectrum]]:
    """Returns the spectra of the largest changes that can be told, as many as there is time for."""
    known = [change for change in changes if change.norm is not None and change.exact]
    known.sort(key=lambda change: -(change.norm or 0.0))
    forms = [partial(_form, change.site) for change in known]
    return list(zip(known, spectra(forms, budget), strict=False))


def ranks_by_block(found: Iterable[tuple[Change, Spectrum]]) -> dict[str, float]:
    """Returns the mean effective rank of the layers of each block whose weight changes."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for change, spectrum in found:
        if spectrum.effective_rank:
            ranks[change.site.place.block].append(spectrum.effective_rank)
    return {block: sum(several) / len(several) for block, several in ranks.items()}


def _form(site: Site) -> Form:
    weight, _ = site.base()
    form = form_on(site.adapter, weight)
    assert form is not None, "its norm is exact"
    return form
