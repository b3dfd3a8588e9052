"""Adapters that hang on a model as hooks, turned into weight patches that mean the same."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from uuid import uuid4

import torch
from comfy.model_patcher import ModelPatcher

from ...algorithms.errors import EditingError, UnsupportedLayerError, listed
from ...algorithms.strength import Placed
from .injections import AdapterBank, Loaded, remove_hooks
from .layers import ORDINARY, is_quantised
from .memory import KEY
from .patches import (
    AdapterPatch,
    Layout,
    add_patches,
    is_unpacked_by_its_layer,
    patches_its_own_way,
)
from .stored import split, stored

BY_CHANCE = (torch.float16, torch.bfloat16)
"""What the host rounds to the nearest. It rounds fp8 by chance itself: a second time gains nothing
(measured: a mean off by 1e-4 of the weights before and after)."""


@dataclass(frozen=True)
class Baked:
    """What a part of the model has as weight patches now."""

    hooked: tuple[Loaded, ...] = ()
    """The files whose hooks were turned into patches."""
    patched: tuple[tuple[str, Placed], ...] = ()
    """(Parameter, adapter) of all patches that there were before."""
    layers: int = 0
    """Layers that the pack patches now."""
    homeless_biases: tuple[str, ...] = ()
    """Biases that an adapter changes, in a layer that has none: lost."""
    grown: tuple[str, ...] = ()
    """Weights that become larger."""
    packed: tuple[str, ...] = ()
    """Weights that another pack keeps packed, and patches anew whenever they are used."""
    by_chance: int = 0
    """Parameters whose result is rounded by chance."""

    @property
    def is_empty(self) -> bool:
        """Whether no adapter was found."""
        return not self.hooked and not self.patched


def bake(patcher: ModelPatcher, *, by_chance: bool = False) -> Baked:
    """Makes patches of all hooks of the pack on `patcher`, which the caller has cloned.

    Nothing of the hooks stays on it. A weight is computed when the host loads the model, or saves it.

    Args:
        patcher: The model or text encoders.
        by_chance: Whether results are rounded up or down by chance, and not to the nearest.

    Raises:
        EditingError: An adapter has no strength of its own.
        UnsupportedLayerError: The host cannot patch a weight.
    """
    bank: AdapterBank = patcher.get_attachment(KEY) or AdapterBank()
    _require_fixed(bank.loaded)
    before = tuple(_patched(patcher))
    hooked = [one.target.weight for item in bank.loaded for one in item.bound]
    packed = _packed(patcher, dict.fromkeys([*hooked, *(key for key, _ in before)]))
    missing: list[str] = []
    for item in bank.loaded:
        used = [one for one in item.bound if one.factor * item.dial.strength != 0]
        missing += add_patches(patcher, used, item.dial.strength) if used else []
    remove_hooks(patcher)
    rounded = _round(patcher, by_chance=by_chance)
    after = list(_patched(patcher))
    return Baked(
        hooked=bank.loaded,
        patched=before,
        layers=len({split(key)[0] for key, _ in after}),
        homeless_biases=tuple(dict.fromkeys(missing)),
        grown=tuple(key for key, layout in _layouts(patcher) if layout.grown is not None),
        packed=packed,
        by_chance=rounded,
    )


def _require_fixed(loaded: Iterable[Loaded]) -> None:
    """Raises EditingError if the strength of an adapter is not one number."""
    dials = [item.dial for item in loaded]
    for names, why, instead in (
        (
            [dial.name for dial in dials if dial.schedule is not None],
            "follows a schedule, and a baked weight is the same at every step",
            "Take the schedule off",
        ),
        (
            [dial.name for dial in dials if dial.on_request],
            "acts only on conditionings that ask for it, and a baked weight acts on all",
            "Let it act on every conditioning",
        ),
    ):
        if names:
            raise EditingError(
                f"{listed(names)} {why}. {instead} where it is loaded; or load it behind Bake into "
                "Model, where it stays a hook."
            )


def _layouts(patcher: ModelPatcher) -> Iterator[tuple[str, Layout]]:
    """Iterates over the patches of the pack, one for each parameter, with the parameters."""
    for key, patches in patcher.patches.items():
        for patch in patches:
            if isinstance(patch[1], AdapterPatch):
                yield key, patch[1].loaded_keys


def _patched(patcher: ModelPatcher) -> Iterator[tuple[str, Placed]]:
    """Iterates over the adapters among the patches, with the parameters they are on."""
    for key, layout in _layouts(patcher):
        yield from ((key, item) for item in layout.placed)


def _round(patcher: ModelPatcher, *, by_chance: bool) -> int:
    """Says of every patch of the pack how it is rounded, and returns how many are by chance."""
    count = 0
    for key, patches in patcher.patches.items():
        held = stored(patcher, key)  # a quantised one gives the dtype in which it is computed with
        is_wanted = by_chance and held.dtype in BY_CHANCE and not is_quantised(held)
        rounded = held.dtype if is_wanted else None
        for index, patch in enumerate(patches):
            value = patch[1]
            if not isinstance(value, AdapterPatch):
                continue
            count += rounded is not None
            if value.loaded_keys.rounded != rounded:
                value = AdapterPatch(replace(value.loaded_keys, rounded=rounded), value.weights)
                patches[index] = (patch[0], value, *patch[2:])
                patcher.patches_uuid = uuid4()  # by which the host knows that weights are others
    return count


def _packed(patcher: ModelPatcher, keys: Iterable[str]) -> tuple[str, ...]:
    """Returns the weights that only their layer can unpack.

    Raises:
        UnsupportedLayerError: The host would take the packed bytes for the numbers.
    """
    packed = tuple(key for key in keys if _is_packed(patcher, key))
    if packed and not patches_its_own_way(patcher):
        raise UnsupportedLayerError(
            f"ComfyUI cannot patch the weights of {listed([split(key)[0] for key in packed], 3)}: they "
            "are packed in a way that it does not know. Load the model in an unquantised form, or "
            "leave the adapters as hooks."
        )
    return packed


def _is_packed(patcher: ModelPatcher, key: str) -> bool:
    held = stored(patcher, key)
    if is_quantised(held):
        return False
    return type(held) not in ORDINARY or is_unpacked_by_its_layer(patcher, key)
