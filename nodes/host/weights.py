"""The weights of a MODEL or CLIP as the host uses them, read one at a time."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...algorithms.errors import UnsupportedLayerError
from .layers import ORDINARY, layer_of
from .patches import AdapterPatch

CPU = torch.device("cpu")


class Weights:
    """Reads parameters in float32 on the CPU, whatever of the model is loaded at that moment.

    What other nodes have patched counts, each patch once: the host keeps the originals of weights that
    it has patched in place, for all clones of a model together, and those are read. Nothing of the
    model is changed, and nothing is kept: a weight is as large as it is.
    """

    def __init__(self, patcher: ModelPatcher, *, with_adapters: bool) -> None:
        """Takes the patcher; see `read_weights`."""
        self._patcher = patcher
        self._with_adapters = with_adapters

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of all parameters, as a `KeyMap` of this part has them."""
        root = self._patcher.model
        return tuple(key for key in root.state_dict() if self._holds(*_split(key)))

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a parameter, before any patch: that of its layer if it is packed."""
        path, name = _split(key)
        owner = self._owner(path)
        layer = layer_of(owner) if name == "weight" else None
        return tuple(getattr(owner, name).shape) if layer is None else layer.weight_shape

    @torch.no_grad()
    def read(self, key: str) -> Tensor | None:
        """Returns a copy of a parameter's numbers with its patches, before they are rounded.

        None where they cannot be had: it is quantised in a way that is unknown here, or the model
        has no such parameter.
        """
        path, name = _split(key)
        if not self._holds(path, name):
            return None
        owner = self._owner(path)
        numbers = _numbers(owner, name, self._stored(owner, path, name))
        if numbers is None or tuple(numbers.shape) != self.shape(key):
            return None
        patches = list(self._patches(key))
        if patches:
            numbers = comfy.lora.calculate_weight(patches, numbers, key)
        for function in self._patcher.weight_wrapper_patches.get(key, []):
            numbers = function(numbers)
        return numbers

    def _holds(self, path: str, name: str) -> bool:
        """Whether a key of a state dict is a parameter, and not how one is quantised."""
        try:
            owner = self._owner(path)
        except AttributeError:
            return False
        if not isinstance(getattr(owner, name, None), Tensor):
            return False
        weight = getattr(owner, "weight", None)
        plain = type(weight) in ORDINARY and not hasattr(owner, "convert_weight")
        return weight is None or plain or name in ("weight", "bias")

    def _owner(self, path: str) -> Any:
        """Returns a module, with the objects that this patcher puts in place of others."""
        steps = path.split(".") if path else []
        for count in range(len(steps), 0, -1):
            start = ".".join(steps[:count])
            for objects in (self._patcher.object_patches, self._patcher.object_patches_backup):
                if start in objects:
                    return _walk(objects[start], steps[count:])
        return _walk(self._patcher.model, steps)

    def _stored(self, owner: Any, path: str, name: str) -> Tensor:
        """Returns a parameter as it was before the host patched it, if it is patched right now."""
        patcher, key = self._patcher, f"{path}.{name}" if path else name
        for objects in (patcher.object_patches, patcher.object_patches_backup):
            if key in objects:
                return objects[key]
        if _walk(patcher.model, path.split(".") if path else []) is owner:
            if key in patcher.backup:
                return patcher.backup[key].weight
            if key in patcher.hook_backup:  # by conditionings, on top of all else
                return patcher.hook_backup[key][0]
        return getattr(owner, name)

    def _patches(self, key: str) -> Iterator[Any]:
        for patch in self._patcher.patches.get(key, []):
            if self._with_adapters or not isinstance(patch[1], AdapterPatch):
                yield patch


def read_weights(part: Any) -> Weights:
    """Returns the reader of a MODEL or CLIP: of the weights that adapters of the pack change.

    Those adapters, by hook or by patch, do not count: their changes are computed from what is read
    here. Patches of other nodes do.
    """
    return Weights(getattr(part, "patcher", part), with_adapters=False)


def _split(key: str) -> tuple[str, str]:
    path, _, name = key.rpartition(".")
    return path, name


def _walk(start: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        start = getattr(start, step)
    return start


def _numbers(owner: Any, name: str, stored: Tensor) -> Tensor | None:
    """Returns what a stored parameter means, as a new tensor; None where that is unknown."""
    if stored.is_meta:  # missing in the file of the model: the host fills it with zeros
        return torch.zeros(stored.shape)
    kind: Any = type(stored)
    if kind in ORDINARY and stored.is_floating_point():
        numbers = stored.detach().to(CPU, torch.float32, copy=True)
        convert = getattr(owner, f"convert_{name}", None)  # fp8 with a scale
        return numbers if convert is None else convert(numbers, inplace=False)
    if kind not in ORDINARY and kind.dequantize is not Tensor.dequantize:
        return stored.detach().to(CPU).to(torch.float32).dequantize().to(torch.float32)
    return _by_layer(owner, name, stored)


def _by_layer(owner: Any, name: str, stored: Any) -> Tensor | None:
    """Asks a layer that brings its own class of weights, as those of GGUF files do."""
    layer = layer_of(owner)
    read = (
        None if layer is None else {"weight": layer.read_weight, "bias": layer.read_bias}.get(name)
    )
    if read is None or getattr(owner, name) is not stored:
        return None
    patches = getattr(stored, "patches", None)  # which such a layer applies as it dequantises
    if patches:
        stored.patches = []
    try:
        numbers = read(CPU, torch.float32)
    except UnsupportedLayerError:
        return None
    finally:
        if patches:
            stored.patches = patches
    return None if numbers is None else numbers.clone()
