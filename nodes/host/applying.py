"""Puts a binding on a model: by hooks, or by weight patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from comfy.model_patcher import ModelPatcher

from ...algorithms.binding import Bound
from .injections import add_hooks, can_hook
from .patches import add_patches

Mode = Literal["hook", "patch"]


@dataclass(frozen=True)
class Applied:
    """What was done."""

    layers: int = 0
    unhooked: tuple[str, ...] = ()
    """Layers whose weight is patched since no hook can reach them, in mode hook."""
    homeless_biases: tuple[str, ...] = ()
    """Biases that an adapter changes, in a layer that has none, in mode patch."""


def apply(patcher: ModelPatcher, bound: Sequence[Bound], strength: float, mode: Mode) -> Applied:
    """Adds adapters to `patcher`, which the caller has cloned.

    Raises:
        UnsupportedLayerError: The host does not take a patch for a weight.
    """
    hooked = [item for item in bound if mode == "hook" and can_hook(patcher, item)]
    taken = {id(item) for item in hooked}
    patched = [item for item in bound if id(item) not in taken]
    if hooked:
        add_hooks(patcher, hooked, strength)
    missing = add_patches(patcher, patched, strength) if patched else []
    unhooked = tuple(dict.fromkeys(item.module for item in patched)) if mode == "hook" else ()
    return Applied(len({item.module for item in bound}), unhooked, tuple(missing))
