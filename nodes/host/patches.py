"""The weight path: adapters as a patch of ComfyUI, one joined patch for each weight."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...algorithms.adapters import Adapter
from ...algorithms.adapters.base import widened
from ...algorithms.binding import Bound, dry_run
from ...algorithms.errors import UnsupportedLayerError, counted
from ...algorithms.rounding import round_stochastically
from ...algorithms.strength import Placed, merged_bias, merged_weight
from .layers import holds_codes, layer_of, shapes_of
from .stored import owner_of, split, stored


@dataclass(frozen=True, eq=False)
class Layout:
    """What a patch is made of besides its tensors."""

    placed: tuple[Placed, ...]
    of_bias: tuple[bool, ...]
    """Of each adapter: whether its change of the bias is meant, and not that of the weight."""
    rounded: torch.dtype | None = None
    """What the result is rounded to by chance, if the host does not go on in another dtype of two
    bytes; None leaves it to the host, to the nearest."""
    grown: tuple[int, ...] | None = None
    """The shape that the weight gets, where that is another than it has."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the adapters, in a fixed order."""
        return tuple(tensor for item in self.placed for tensor in item.adapter.tensors().values())

    def with_tensors(self, tensors: Iterable[Tensor], device: torch.device) -> list[Placed]:
        """Returns the adapters with these tensors in place of their own, on `device`."""
        rest = iter(tensors)
        return [replace(item, adapter=_with(item.adapter, rest).to(device)) for item in self.placed]


def _with(adapter: Adapter, tensors: Iterable[Tensor]) -> Adapter:
    return adapter.with_tensors(dict(zip(adapter.tensors(), tensors, strict=False)))


class AdapterPatch(WeightAdapterBase):
    """All adapters of the pack on one parameter.

    The host's offloader rebuilds a patch as `type(patch)(patch.loaded_keys, tensors)` with the
    tensors of `patch.weights` moved: so the constructor takes exactly these two, and no tensor
    that is computed with lives anywhere else.
    """

    name = "anyadapter"

    def __init__(self, loaded_keys: Layout, weights: Sequence[Tensor]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """Returns the shape that the parameter gets, for hosts that make room for it before."""
        del key
        layout: Layout = self.loaded_keys
        return layout.grown

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Returns the patched parameter; the host's parameters of its slices are not used.

        What is rounded by chance comes back in numbers that the weight can hold: the host's own
        rounding at the end finds nothing to round. While a model runs, the host may compute in
        another dtype of two bytes than it keeps and saves the weight in: then that is what is left of
        the result, and is rounded to. What it saves, it asks for in float32.

        Raises:
            ShapeError: An adapter does not fit, which stops the run: the unpatched weight is
                never returned in silence.
        """
        del strength_model, offset, function, original_weight
        layout: Layout = self.loaded_keys
        if layout.rounded is None:
            return self._merged(weight, strength)
        merged = self._merged(widened(weight), strength)
        generator = torch.Generator(weight.device).manual_seed(crc32(key.encode()))
        rounded = intermediate_dtype if intermediate_dtype.itemsize == 2 else layout.rounded
        return round_stochastically(merged, rounded, generator).to(intermediate_dtype)

    def _merged(self, weight: Tensor, strength: float) -> Tensor:
        """Returns the patched parameter in the dtype of `weight`."""
        layout: Layout = self.loaded_keys
        placed = [
            replace(item, strength=item.strength * strength)
            for item in layout.with_tensors(self.weights, weight.device)
        ]
        changes = list(zip(placed, layout.of_bias, strict=True))
        itself = [item for item, of_bias in changes if not of_bias]
        beside = [item for item, of_bias in changes if of_bias]
        if not beside:
            return merged_weight(weight, itself)
        shifted = merged_bias(weight, weight.shape[0], beside)
        assert shifted is not None, "the bias of a layer that has one"
        if not itself:
            return shifted
        # Both from the base: what scales a bias does not scale another adapter's change of it.
        return merged_weight(weight, itself) + shifted - weight


def add_patches(patcher: ModelPatcher, bound: Sequence[Bound], strength: float) -> list[str]:
    """Adds adapters to the patches of `patcher`, which the caller has cloned.

    What the pack put on a weight before is taken up into the new patch, so that every change is
    computed from the same base and the order of nodes does not matter.

    Returns:
        Biases that an adapter changes and the model does not have.

    Raises:
        UnsupportedLayerError: The host does not take a patch for a weight that it has named, or a
            weight is packed as bytes, which it would change as if they were numbers.
    """
    shapes = shapes_of(patcher)
    layouts: dict[str, list[tuple[Placed, bool]]] = defaultdict(list)
    missing: list[str] = []
    for item in bound:
        placed = Placed(item.adapter, strength * item.factor, item.target.rows)
        changes_weight, changes_bias = dry_run(item.adapter, item.target, shapes)
        if changes_weight:
            layouts[item.target.weight].append((placed, False))
        if changes_bias and item.target.bias in shapes:
            layouts[item.target.bias].append((placed, True))
        elif changes_bias:
            missing.append(item.target.bias)
    packed = sorted(key for key in layouts if _is_packed(patcher, key))
    if packed:
        raise UnsupportedLayerError(
            f"{counted(len(packed), 'weight')} of the model, such as {packed[0]}, are packed in a way "
            "that ComfyUI cannot patch. Use mode hook, or load the model in another form."
        )
    patches = {key: _joined(patcher, key, changes, shapes[key]) for key, changes in layouts.items()}
    refused = patches.keys() - set(patcher.add_patches(patches))
    if refused:
        raise UnsupportedLayerError(
            f"ComfyUI does not take patches for {', '.join(sorted(refused))}. Use mode hook."
        )
    return missing


def patches_its_own_way(patcher: ModelPatcher) -> bool:
    """Whether another pack's patcher hands patches to layers, which unpack what they are for."""
    return type(patcher).patch_weight_to_device is not ModelPatcher.patch_weight_to_device


def is_unpacked_by_its_layer(patcher: ModelPatcher, key: str) -> bool:
    """Whether what is kept for a parameter are no numbers to the host."""
    path, name = split(key)
    owner = owner_of(patcher, path)
    return holds_codes(owner, stored(patcher, key)) and not hasattr(owner, f"set_{name}")


def _is_packed(patcher: ModelPatcher, key: str) -> bool:
    """Whether the host would change a parameter's bytes, or bytes of another shape than it has."""
    path, name = split(key)
    layer = layer_of(owner_of(patcher, path)) if name == "weight" else None
    if layer is not None and tuple(stored(patcher, key).shape) != layer.weight_shape:
        return True
    return is_unpacked_by_its_layer(patcher, key) and not patches_its_own_way(patcher)


def _joined(
    patcher: ModelPatcher,
    key: str,
    changes: Sequence[tuple[Placed, bool]],
    shape: tuple[int, ...],
) -> AdapterPatch:
    """Takes our earlier patch off `key`, of a shape, and returns one that holds both."""
    earlier: list[Any] = []
    others: list[Any] = []
    for patch in patcher.patches.get(key, []):
        (earlier if isinstance(patch[1], AdapterPatch) else others).append(patch)
    if earlier:
        patcher.patches[key] = others
    layouts: list[Layout] = [patch[1].loaded_keys for patch in earlier]
    before = [pair for old in layouts for pair in zip(old.placed, old.of_bias, strict=True)]
    placed, of_bias = zip(*before, *changes, strict=True)
    rounded = next((old.rounded for old in layouts if old.rounded), None)
    layout = Layout(placed, of_bias, rounded, _grown(placed, of_bias, shape))
    return AdapterPatch(layout, layout.tensors)


def _grown(
    placed: Iterable[Placed], of_bias: Iterable[bool], shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Returns the shape that adapters make of another one; None where it stays."""
    grown = shape
    for item, is_bias in zip(placed, of_bias, strict=True):
        if not is_bias and item.rows is None:
            grown = tuple(map(max, grown, item.adapter.grown(shape)))
    return None if grown == shape else grown
