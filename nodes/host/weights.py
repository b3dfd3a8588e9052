"""The weights of a MODEL or CLIP as the host uses them, read one at a time."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...algorithms.errors import UnsupportedLayerError
from .baking import bake
from .layers import ORDINARY, apart, holds_codes, is_quantised, layer_of, ordinary
from .patches import AdapterPatch
from .stored import owner_of, split, stored

CPU = torch.device("cpu")


class Weights:
    """Reads parameters in float32 on the CPU, whatever of the model is loaded at that moment.

    What other nodes have patched counts, each patch once: the host keeps the originals of weights that
    it has patched in place, for all clones of a model together, and those are read. Nothing of the
    model is changed, and nothing is kept: a weight is as large as it is.
    """

    def __init__(self, patcher: ModelPatcher, *, with_adapters: bool) -> None:
        """Takes the patcher, and whether patches of the pack count."""
        self._patcher = patcher
        self._with_adapters = with_adapters

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of all parameters, as a `KeyMap` of this part has them."""
        root = self._patcher.model
        return tuple(key for key in root.state_dict() if self._holds(*split(key)))

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a parameter, before any patch: that of its layer if it is packed."""
        path, name = split(key)
        layer = layer_of(owner_of(self._patcher, path)) if name == "weight" else None
        held = stored(self._patcher, key)
        is_packed = type(held) not in ORDINARY or not held.is_floating_point()
        return layer.weight_shape if layer is not None and is_packed else tuple(held.shape)

    @torch.no_grad()
    def read(self, key: str) -> Tensor | None:
        """Returns a copy of a parameter's numbers with its patches, before they are rounded.

        None where they cannot be had: it is quantised in a way that is unknown here, or the model
        has no such parameter.
        """
        path, name = split(key)
        if not self._holds(path, name):
            return None
        owner = owner_of(self._patcher, path)
        numbers = _numbers(owner, name, stored(self._patcher, key))
        if numbers is None or tuple(numbers.shape) != self.shape(key):
            return None
        patches = list(self._patches(key))
        if patches:
            numbers = comfy.lora.calculate_weight(patches, numbers, key)
        for function in self._patcher.weight_wrapper_patches.get(key, []):
            numbers = function(numbers)
        return numbers

    def stored_dtype(self, key: str) -> torch.dtype | None:
        """Returns how a parameter is kept; None where patches or wrappers make other numbers of it."""
        if any(self._patches(key)) or self._patcher.weight_wrapper_patches.get(key):
            return None
        return stored(self._patcher, key).dtype

    def _holds(self, path: str, name: str) -> bool:
        """Whether a key of a state dict is a parameter, and not how one is quantised."""
        try:
            owner = owner_of(self._patcher, path)
        except AttributeError:
            return False
        if not isinstance(getattr(owner, name, None), Tensor):
            return False
        weight = getattr(owner, "weight", None)
        plain = type(weight) in ORDINARY and not hasattr(owner, "convert_weight")
        return weight is None or plain or name in ("weight", "bias")

    def _patches(self, key: str) -> Iterator[Any]:
        for patch in self._patcher.patches.get(key, []):
            value = patch[1]
            if not isinstance(value, AdapterPatch):
                yield patch
            elif self._with_adapters:
                layout = replace(value.loaded_keys, rounded=None)
                yield (patch[0], AdapterPatch(layout, value.weights), *patch[2:])


def read_weights(part: Any, *, with_adapters: bool = False) -> Weights:
    """Returns the reader of a MODEL or CLIP.

    Args:
        part: With whatever patches of other nodes: they count.
        with_adapters: Whether adapters of the pack count too, by hook or by patch. If not, what is read
            is what their changes are computed from.

    Raises:
        EditingError: An adapter that shall count has no strength of its own: it follows a schedule,
            or acts on request.
    """
    patcher: ModelPatcher = getattr(part, "patcher", part)
    if with_adapters:
        patcher = patcher.clone()
        bake(patcher)
    return Weights(patcher, with_adapters=with_adapters)


def _numbers(owner: Any, name: str, held: Tensor) -> Tensor | None:
    """Returns what a stored parameter means, as a new tensor; None where that is unknown."""
    if held.is_meta:  # missing in the file of the model: the host fills it with zeros
        return torch.zeros(held.shape)
    if type(held) in ORDINARY and not holds_codes(owner, held):
        numbers = held.detach().to(CPU, torch.float32, copy=True)
        convert = getattr(owner, f"convert_{name}", None)  # fp8 with a scale
        return numbers if convert is None else convert(numbers, inplace=False)
    if is_quantised(held):
        return ordinary(apart(held).to(CPU), torch.float32).to(torch.float32)
    return _by_layer(owner, name, held)


def _by_layer(owner: Any, name: str, held: Any) -> Tensor | None:
    """Asks a layer that brings its own class of weights, as those of GGUF files do."""
    layer = layer_of(owner)
    read = (
        None if layer is None else {"weight": layer.read_weight, "bias": layer.read_bias}.get(name)
    )
    if read is None or getattr(owner, name) is not held:
        return None
    patches = getattr(held, "patches", None)  # which such a layer applies as it dequantises
    if patches:
        held.patches = []
    try:
        numbers = read(CPU, torch.float32)
    except UnsupportedLayerError:
        return None
    finally:
        if patches:
            held.patches = patches
    return None if numbers is None else numbers.clone()
