"""The path of hooks: which dispatchers stand on which modules, and for how long.

The adapters of a patcher lie in its `AdapterBank`, an attachment. ComfyUI calls `inject` when it
loads the patcher and `eject` when it does something to the weights or loads another clone of the
same model: many times in a prompt. Both take everything from the patcher and find modules by name
at that moment, since clones share modules and a deep clone brings its own.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from torch import nn

from ...algorithms.binding import Bound
from ...algorithms.dispatch import Dispatcher
from ...algorithms.plan import LayerPlan
from ...algorithms.strength import Dial, Hung, Levels, Moment, Placed, Strengths
from .layers import layer_of
from .memory import AUTOMATIC, KEY, PlanStore, charge, stores_of
from .moments import note_requests, set_strengths
from .standing import Standing, install, owner_of, remove_of, stand

INSTALLED = "anyadapter_installed"
"""Attribute of a model: the dispatchers on its modules and the bank they belong to."""
CLONING = ("ON_CLONE", "ON_DEEPCLONE_MULTIGPU", "ON_MATCH_MULTIGPU_CLONES")
"""Events in which a patcher makes another one; ComfyUI 0.3.75 has the first only."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """The adapters of one file on one model, and what sets their strength."""

    bound: tuple[Bound, ...]
    dial: Dial


@dataclass(frozen=True, eq=False)
class Site:
    """The adapters of one module, and for each what sets its strength."""

    placed: tuple[Placed, ...]
    hung: tuple[Hung, ...]


class AdapterBank:
    """The adapters of one patcher, and how strong they are right now.

    A clone gets a bank of its own that shares the adapters. The bank is also the token of
    ownership: a clone that dies ejects too, and must not switch off the one that is in use.
    """

    def __init__(self, loaded: tuple[Loaded, ...] = (), memory_mb: int = AUTOMATIC) -> None:
        """Takes what was loaded, and the memory for built weights in MB (or `AUTOMATIC`)."""
        self.loaded = loaded
        self.memory_mb = memory_mb
        self.dials = tuple(item.dial for item in loaded)
        self.moment = self._last = Moment(tuple((dial.at(0.0),) for dial in self.dials))
        """Read at every call of a module; outside of sampling, the strengths of the first step."""
        self.sites = _sites(loaded)

    def at(self, levels: Levels) -> Moment:
        """Returns the moment with these strengths: that of the step before if it has them."""
        if self._last.levels != levels:
            self._last = Moment(levels)
        return self._last

    def on_model_patcher_clone(self) -> "AdapterBank":
        """Returns the bank of a clone: called by the host."""
        return AdapterBank(self.loaded, self.memory_mb)

    def with_added(self, bound: Sequence[Bound], dial: Dial, memory_mb: int) -> "AdapterBank":
        """Returns a bank that holds `bound` as well; the larger one of both memories counts."""
        more = Loaded(tuple(bound), dial)
        return AdapterBank((*self.loaded, more), max(self.memory_mb, memory_mb))


def _sites(loaded: Sequence[Loaded]) -> dict[str, Site]:
    placed: dict[str, list[tuple[Placed, Hung]]] = defaultdict(list)
    for dial, item in enumerate(loaded):
        for bound in item.bound:
            entry = (Placed(bound.adapter, 1.0, bound.target.rows), (dial, bound.factor))
            placed[bound.target.module].append(entry)
    return {
        module: Site(tuple(item for item, _ in entries), tuple(hung for _, hung in entries))
        for module, entries in placed.items()
    }


def can_hook(patcher: ModelPatcher, item: Bound) -> bool:
    """Whether a dispatcher can stand on the module of a target."""
    module = patcher.model.get_submodule(item.target.module)
    layer = layer_of(module) if item.target.parameter == "weight" else None
    if layer is None:
        return False
    shape = item.target.shape(layer.weight_shape)
    return item.adapter.grown(shape) == shape


def add_hooks(
    patcher: ModelPatcher, bound: Sequence[Bound], dial: Dial, memory_mb: int = AUTOMATIC
) -> None:
    """Adds adapters to the bank of `patcher`, which the caller has cloned."""
    bank: AdapterBank = patcher.get_attachment(KEY) or AdapterBank()
    bank = bank.with_added(bound, dial, memory_mb)
    patcher.set_attachments(KEY, bank)
    charge(patcher, _store(patcher, bank), memory_mb=bank.memory_mb)
    if patcher.get_injections(KEY):
        return
    patcher.is_injected = False  # copied from an origin that another pack has injected
    patcher.set_injections(KEY, [PatcherInjection(inject, eject)])
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, note_requests)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _at_its_strengths)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _release)
    for event in CLONING:
        if hasattr(CallbacksMP, event):
            patcher.add_callback_with_key(getattr(CallbacksMP, event), KEY, _mark_as_not_injected)


def is_hooked(patcher: ModelPatcher) -> bool:
    """Whether adapters hang on `patcher` by hooks, which its weights do not show."""
    return patcher.get_attachment(KEY) is not None


def remove_hooks(patcher: ModelPatcher) -> None:
    """Takes the bank off `patcher`, which the caller has cloned, with all that `add_hooks` added."""
    patcher.remove_attachments(KEY)
    patcher.remove_injections(KEY)
    patcher.remove_additional_models(KEY)
    for wrapped in (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL):
        patcher.remove_wrappers_with_key(wrapped, KEY)
    for event in ("ON_DETACH", *CLONING):
        if hasattr(CallbacksMP, event):
            patcher.remove_callbacks_with_key(getattr(CallbacksMP, event), KEY)


def inject(patcher: ModelPatcher) -> None:
    """Puts a dispatcher on every module that the bank names; called by the host.

    Raises:
        AttributeError: The model lacks a module; no dispatcher is left behind.
    """
    bank: AdapterBank = patcher.get_attachment(KEY)
    store = _store(patcher, bank)
    stores_of(patcher.model).use(store)
    # Another set of patches means other weights, and so do the patches of conditioning hooks.
    store.meet((patcher.patches_uuid, patcher.current_hooks))
    sites = ((patcher.model.get_submodule(name), name) for name in bank.sites)
    dispatchers = (_install(module, name, bank, store) for module, name in sites)
    install(patcher.model, INSTALLED, bank, dispatchers)


def eject(patcher: ModelPatcher) -> None:
    """Takes the dispatchers of this patcher's bank off; called by the host.

    Those of another clone's bank stay: a clone that is garbage collected ejects as well.
    """
    remove_of(patcher.model, INSTALLED, patcher.get_attachment(KEY))


def _store(patcher: ModelPatcher, bank: AdapterBank) -> PlanStore:
    return stores_of(patcher.model).get({name: site.placed for name, site in bank.sites.items()})


def _install(module: nn.Module, name: str, bank: AdapterBank, store: PlanStore) -> Standing:
    layer = layer_of(module)
    assert layer is not None, "bound modules were checked by can_hook"
    site = bank.sites[name]

    def running(device: torch.device, dtype: torch.dtype) -> tuple[LayerPlan, Strengths]:
        plan = store.plan(name, layer, device, dtype)
        return plan, bank.moment.strengths(site.hung)

    alone = "forward" not in module.__dict__
    dispatcher = Dispatcher(module.forward, layer, running, alone=alone)
    return stand(module, dispatcher.forward, dispatcher)


def _at_its_strengths(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the model with the strengths of its moment; a wrapper that the host calls."""
    bank: AdapterBank | None = owner_of(executor.class_obj, INSTALLED)
    if bank is None:
        return executor(*args, **kwargs)
    return set_strengths(bank, executor, *args, **kwargs)


def _release(patcher: ModelPatcher, unpatch_all: bool = True) -> None:
    """Frees the plans of a patcher that the host unloads, and not those that a clone takes over."""
    bank: AdapterBank | None = patcher.get_attachment(KEY)
    if bank is not None and unpatch_all:
        _store(patcher, bank).release()


def _mark_as_not_injected(old: ModelPatcher, new: ModelPatcher, *_: Any) -> None:
    """Says of a new clone what is true: nothing of its own stands on the modules yet.

    The host copies `is_injected` blindly. A clone that believes it would put its adapters on the
    shared modules as soon as somebody adds a weight patch to it, long before it is loaded, and one
    with modules of its own would never be injected.
    """
    del old
    new.is_injected = False
