"""Puts a binding on a model: by hooks, or by weight patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from comfy.model_patcher import ModelPatcher

from ...algorithms.binding import Bound
from ...algorithms.strength import Dial
from .injections import add_hooks, can_hook
from .memory import AUTOMATIC
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


def apply(
    patcher: ModelPatcher,
    bound: Sequence[Bound],
    dial: Dial,
    mode: Mode,
    memory_mb: int = AUTOMATIC,
) -> Applied:
    """Adds adapters to `patcher`, which the caller has cloned.

    Args:
        patcher: The model or text encoders.
        bound: The adapters and their places.
        dial: What sets their strength. A patch is made once, at the dial's own strength.
        mode: By hooks, or by patches.
        memory_mb: For weights that hooks build, or `AUTOMATIC`.

    Raises:
        UnsupportedLayerError: The host does not take a patch for a weight.
    """
    hooked = [item for item in bound if mode == "hook" and can_hook(patcher, item)]
    taken = {id(item) for item in hooked}
    patched = [item for item in bound if id(item) not in taken]
    if hooked:
        add_hooks(patcher, hooked, dial, memory_mb)
    needed = [item for item in patched if item.factor != 0]
    missing = add_patches(patcher, needed, dial.strength) if needed else []
    unhooked = tuple(dict.fromkeys(item.module for item in patched)) if mode == "hook" else ()
    return Applied(len({item.module for item in bound}), unhooked, tuple(missing))
