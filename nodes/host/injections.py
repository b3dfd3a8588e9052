"""The output path: which dispatchers stand on which modules, and for how long.

The adapters of a patcher lie in its `AdapterBank`, an attachment. ComfyUI calls `inject` when it
loads the patcher and `eject` when it does something to the weights or loads another clone of the
same model: many times in a prompt. Both take everything from the patcher and find modules by name
at that moment, since clones share modules and a deep clone brings its own.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from torch import Tensor, nn

from ...algorithms.adapters import Adapter
from ...algorithms.binding import Bound
from ...algorithms.dispatch import Dispatcher
from ...algorithms.layers import Layer
from ...algorithms.strength import Placed
from .layers import layer_of

KEY = "anyadapter"
INSTALLED = "anyadapter_installed"
"""Attribute of a model: the dispatchers on its modules and the bank they belong to."""


class AdapterBank:
    """The adapters of one patcher, by module, with their copies on the device.

    A clone gets a bank of its own that shares the adapters. The bank is also the token of
    ownership: a clone that dies ejects too, and must not switch off the one that is in use.
    """

    def __init__(self, placed: dict[str, tuple[Placed, ...]]) -> None:
        self.placed = placed
        self._moved: dict[tuple[str, torch.device, torch.dtype], tuple[Placed, ...]] = {}
        self._base: object = None

    def on_model_patcher_clone(self) -> "AdapterBank":
        """Returns the bank of a clone: called by the host."""
        return AdapterBank(self.placed)

    def with_added(self, bound: Sequence[Bound], strength: float) -> "AdapterBank":
        """Returns a bank that holds `bound` as well."""
        placed: dict[str, list[Placed]] = defaultdict(list)
        for module, items in self.placed.items():
            placed[module].extend(items)
        for item in bound:
            placed[item.target.module].append(Placed(item.adapter, strength, item.target.rows))
        return AdapterBank({module: tuple(items) for module, items in placed.items()})

    def placed_on(
        self, module: str, layer: Layer, device: torch.device, dtype: torch.dtype
    ) -> tuple[Placed, ...]:
        """Returns the adapters of a module, prepared for its base, at the first call.

        Args:
            module: Name of the module.
            layer: The same module, which gives its weight to adapters that need it.
            device: Where the tensors shall be.
            dtype: Of the tensors; what is computed beforehand is computed in float32.
        """
        where = (module, device, dtype)
        if where not in self._moved:
            self._moved[where] = tuple(
                replace(item, adapter=_prepared(item, layer, device).to(device, dtype))
                for item in self.placed[module]
            )
        return self._moved[where]

    def release(self) -> None:
        """Forgets the copies on devices; they are made again at the next call."""
        self._moved.clear()

    def meet(self, base: object) -> None:
        """Forgets what was prepared for other weights than those that `base` stands for."""
        if base != self._base:
            self.release()
        self._base = base


def _prepared(item: Placed, layer: Layer, device: torch.device) -> Adapter:
    adapter = item.adapter.to(device)
    own = layer if item.rows is None else layer.narrowed(item.rows)
    if adapter.prepares_from_weight:
        return adapter.prepared(own.weight(torch.empty(0, device=device)))
    return adapter.prepared(torch.empty(own.weight_shape, device="meta"))


@dataclass(frozen=True, eq=False)
class _Standing:
    """A dispatcher on a module, and what to put back."""

    module: nn.Module
    dispatcher: Dispatcher
    forward: Callable[..., Tensor]
    """The very object set as `module.forward`."""
    shadowed: Callable[..., Tensor] | None
    """The instance attribute that it replaced; None where `forward` came from the class."""

    def remove(self) -> None:
        """Restores the module, or steps aside if somebody else has wrapped our `forward`."""
        self.dispatcher.retire()
        if self.module.__dict__.get("forward") is not self.forward:
            return
        if self.shadowed is None:
            del self.module.forward
        else:
            self.module.forward = self.shadowed


@dataclass(frozen=True, eq=False)
class _Installed:
    bank: AdapterBank
    standing: tuple[_Standing, ...]


def can_hook(patcher: ModelPatcher, item: Bound) -> bool:
    """Whether a dispatcher can stand on the module of a target."""
    module = patcher.model.get_submodule(item.target.module)
    layer = layer_of(module) if item.target.parameter == "weight" else None
    if layer is None:
        return False
    shape = item.target.shape(layer.weight_shape)
    return item.adapter.grown(shape) == shape


def add_hooks(patcher: ModelPatcher, bound: Sequence[Bound], strength: float) -> None:
    """Adds adapters to the bank of `patcher`, which the caller has cloned."""
    bank: AdapterBank = patcher.get_attachment(KEY) or AdapterBank({})
    patcher.set_attachments(KEY, bank.with_added(bound, strength))
    if patcher.get_injections(KEY):
        return
    patcher.is_injected = False  # copied from an origin that another pack has injected
    patcher.set_injections(KEY, [PatcherInjection(inject, eject)])
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _release)
    for event in ("ON_CLONE", "ON_DEEPCLONE_MULTIGPU", "ON_MATCH_MULTIGPU_CLONES"):
        if hasattr(CallbacksMP, event):
            patcher.add_callback_with_key(getattr(CallbacksMP, event), KEY, _mark_as_not_injected)


def inject(patcher: ModelPatcher) -> None:
    """Puts a dispatcher on every module that the bank names; called by the host.

    Raises:
        AttributeError: The model lacks a module; no dispatcher is left behind.
    """
    bank: AdapterBank = patcher.get_attachment(KEY)
    # Another set of patches means other weights, and so do the patches of conditioning hooks.
    bank.meet((patcher.patches_uuid, patcher.current_hooks))
    _remove(patcher.model)
    standing: list[_Standing] = []
    try:
        for name in bank.placed:
            standing.append(_install(patcher.model.get_submodule(name), name, bank))
    except BaseException:
        for item in reversed(standing):
            item.remove()
        raise
    setattr(patcher.model, INSTALLED, _Installed(bank, tuple(standing)))


def eject(patcher: ModelPatcher) -> None:
    """Takes the dispatchers of this patcher's bank off; called by the host.

    Those of another clone's bank stay: a clone that is garbage collected ejects as well.
    """
    installed: _Installed | None = getattr(patcher.model, INSTALLED, None)
    if installed is not None and installed.bank is patcher.get_attachment(KEY):
        _remove(patcher.model)


def _install(module: nn.Module, name: str, bank: AdapterBank) -> _Standing:
    layer = layer_of(module)
    assert layer is not None, "bound modules were checked by can_hook"
    shadowed = module.__dict__.get("forward")
    dispatcher = Dispatcher(module.forward, layer, partial(bank.placed_on, name, layer))
    forward = dispatcher.forward
    module.forward = forward
    return _Standing(module, dispatcher, forward, shadowed)


def _remove(model: nn.Module) -> None:
    """Takes off whatever dispatchers stand on a model."""
    installed: _Installed | None = getattr(model, INSTALLED, None)
    if installed is not None:
        for item in reversed(installed.standing):
            item.remove()
        delattr(model, INSTALLED)


def _release(patcher: ModelPatcher, *_: Any) -> None:
    """Frees the device copies of a patcher that the host unloads."""
    bank: AdapterBank | None = patcher.get_attachment(KEY)
    if bank is not None:
        bank.release()


def _mark_as_not_injected(old: ModelPatcher, new: ModelPatcher, *_: Any) -> None:
    """Says of a new clone what is true: nothing of its own stands on the modules yet.

    The host copies `is_injected` blindly. A clone that believes it would put its adapters on the
    shared modules as soon as somebody adds a weight patch to it, long before it is loaded, and one
    with modules of its own would never be injected.
    """
    del old
    new.is_injected = False
