"""The memory of hooks: plans of layers, kept with the model and accounted for by the host.

ComfyUI knows what a model takes on a device and frees it when something else needs the room. So the
plans of a set of adapters are a model too, in its eyes: one without weights, whose size is theirs.
They hang on the module tree, that another strength, which is another patcher, finds them there.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ...algorithms.errors import UnsupportedLayerError
from ...algorithms.layers import Layer
from ...algorithms.plan import Budget, LayerPlan
from ...algorithms.strength import Placed

KEY = "anyadapter"
STORES = "anyadapter_stores"
"""Attribute of a model: the sets of adapters that it has plans for."""
MOST_USED = 4
AUTOMATIC = -1
AUTOMATIC_SHARE = 0.05
"""Of the free memory of a device, for weights that need not be built again at each call."""
MB = 2**20

Sites = Mapping[str, tuple[Placed, ...]]


class PlanStore(nn.Module):
    """The plans of one set of adapters on one model.

    It is a module without parameters, since that is what the host's memory management handles.
    """

    def __init__(self, sites: Sites) -> None:
        """Takes the adapters of every module, which it keeps alive: they are told by identity."""
        super().__init__()
        self.sites = dict(sites)
        self.charged: ModelPatcher | None = None
        """What the host holds of this; it takes a model without one for a leak."""
        self.budget = Budget(0)
        self.automatic_bytes: int | None = None
        """What `AUTOMATIC` came to when it was first asked for."""
        self._plans: dict[tuple[str, torch.device, torch.dtype], LayerPlan] = {}
        self._plan_bytes = 0
        self._base: object = None

    @property
    def model_loaded_weight_memory(self) -> int:
        """Bytes that the plans hold; the name is the host's."""
        return self._plan_bytes + self.budget.used_bytes

    @model_loaded_weight_memory.setter
    def model_loaded_weight_memory(self, _: int) -> None:
        """Lets the host set what it believes: it counts parameters, and here are none."""

    def holds(self, sites: Sites) -> bool:
        """Whether these are the very same adapters at the same places."""
        return self.sites.keys() == sites.keys() and all(
            len(mine) == len(theirs)
            and all(
                a.adapter is b.adapter and a.rows == b.rows
                for a, b in zip(mine, theirs, strict=True)
            )
            for mine, theirs in ((self.sites[name], sites[name]) for name in sites)
        )

    def plan(
        self,
        module: str,
        layer: Layer,
        device: torch.device,
        dtype: torch.dtype,
    ) -> LayerPlan:
        """Returns the plan of a module, made at the first call.

        Args:
            module: Its name.
            layer: The module, which gives its weight to adapters that need it.
            device: Of the input.
            dtype: Of the input; what is computed beforehand is computed in float32.
        """
        where = (module, device, dtype)
        if where not in self._plans:
            ready = _prepared(module, self.sites[module], layer, device)
            plan = LayerPlan(layer, ready, device, dtype, self.budget)
            self._plan_bytes += plan.size_bytes
            self._plans[where] = plan
        return self._plans[where]

    def release(self) -> None:
        """Forgets all plans; they are made again at the next call."""
        self._plans.clear()
        self._plan_bytes = 0
        self.budget.clear()

    def meet(self, base: object) -> None:
        """Forgets what was made for other weights than those that `base` stands for."""
        if base != self._base:
            self.release()
        self._base = base

    def __deepcopy__(self, _: Any) -> "PlanStore":
        """Returns one without plans: a copy of the model makes its own."""
        return PlanStore(self.sites)


class PlanStores:
    """The sets of adapters of one model whose plans can be found again.

    Those on the model last are kept. Of a row of loader nodes only the last set ever is on it; the
    others live, without plans, as long as their patchers.
    """

    def __init__(self) -> None:
        self._alive: WeakSet[PlanStore] = WeakSet()
        self._used: list[PlanStore] = []

    def get(self, sites: Sites) -> PlanStore:
        """Returns the store of these adapters, made or found again."""
        found = next((store for store in self._alive if store.holds(sites)), None)
        if found is None:
            found = PlanStore(sites)
            self._alive.add(found)
        return found

    def use(self, store: PlanStore) -> None:
        """Keeps a store whose adapters are put on the model, and the few before it."""
        others = [one for one in self._used if one is not store]
        self._used = [store, *others[: MOST_USED - 1]]
        for forgotten in others[MOST_USED - 1 :]:
            forgotten.release()


def stores_of(model: nn.Module) -> PlanStores:
    """Returns the stores of a model."""
    stores: PlanStores | None = getattr(model, STORES, None)
    if stores is None:
        stores = PlanStores()
        setattr(model, STORES, stores)
    return stores


def charge(patcher: ModelPatcher, store: PlanStore, *, memory_mb: int) -> None:
    """Has the host count the plans with the model, and free them when it needs the room.

    Args:
        patcher: The model with the adapters.
        store: Their plans.
        memory_mb: What they may keep of built weights, or `AUTOMATIC`.
    """
    if store.automatic_bytes is None:
        free = comfy.model_management.get_free_memory(patcher.load_device)
        store.automatic_bytes = int(free * AUTOMATIC_SHARE)
    limit = store.automatic_bytes if memory_mb == AUTOMATIC else memory_mb * MB
    store.budget.limit_bytes = limit
    if store.budget.used_bytes > limit:
        store.release()
    if store.charged is None:
        dtype = patcher.model_dtype() or torch.float32
        numbers = sum(
            tensor.numel()
            for placed in store.sites.values()
            for item in placed
            for tensor in item.adapter.tensors().values()
        )
        size = numbers * dtype.itemsize
        store.charged = ModelPatcher(store, patcher.load_device, patcher.offload_device, size)
        store.charged.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _free)
    patcher.set_additional_models(KEY, [store.charged])


def _free(charged: ModelPatcher, unpatch_all: bool = True) -> None:
    if unpatch_all and isinstance(charged.model, PlanStore):
        charged.model.release()


def _prepared(
    module: str, sites: Sequence[Placed], layer: Layer, device: torch.device
) -> list[Placed]:
    """Returns the adapters of a layer with what depends on its weight, which is read at most once.

    Raises:
        UnsupportedLayerError: The layer cannot give the numbers that a method needs.
    """
    like = torch.empty(0, device=device)
    if any(item.adapter.prepares_from_weight for item in sites):
        try:
            weight = layer.weight(like)
        except UnsupportedLayerError as error:
            methods = sorted(
                {item.adapter.label for item in sites if item.adapter.prepares_from_weight}
            )
            raise UnsupportedLayerError(f"{', '.join(methods)} on {module}: {error}") from error
    else:
        weight = layer.blank
    ready: list[Placed] = []
    for item in sites:
        base = weight if item.adapter.prepares_from_weight else layer.blank
        own = base if item.rows is None else item.rows.take(base)
        adapter = item.adapter.to(device).prepared(own)
        ready.append(Placed(adapter, item.strength, item.rows))
    return ready
