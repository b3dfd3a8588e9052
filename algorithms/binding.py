"""Places the adapters of a file on the weights of a model, and says what found no home."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter
from .adapters.dora import Dora
from .errors import AmbiguousNameError, FormatError, NoMatchError, ShapeError, listed
from .families import Family, detect, encoders, in_text_encoder, likely_cause, sizes_of
from .formats.parse import AdapterSet
from .keymap import KeyMap, Target


@dataclass(frozen=True, eq=False)
class Bound:
    """An adapter and the weight that it changes."""

    module: str
    """Module name as in the file."""
    target: Target
    adapter: Adapter
    factor: float = 1.0
    """On its strength: the weight of its block."""


@dataclass(frozen=True, eq=False)
class Binding:
    """The adapters of a file that have a home in one model."""

    bound: tuple[Bound, ...]
    unmatched: tuple[str, ...] = ()
    """Module names that mean nothing in this model."""
    misfits: tuple[str, ...] = ()
    """Modules that the weight which their name means does not fit, each with the reason."""


def bind(adapter_set: AdapterSet, key_map: KeyMap) -> Binding:
    """Finds the weight of every adapter.

    A few layers that do not fit are left out and named, unless file and model are known to be of
    two families: models differ in some layers, as in the first one of an inpainting model.

    Raises:
        FormatError: What an adapter means on its weight cannot be decided.
        ShapeError: Most adapters do not fit the weights that their names mean, or one does not and
            the file was made for another family.
    """
    bound: list[Bound] = []
    unmatched: list[str] = []
    misfits: list[str] = []
    for module, adapters in adapter_set.adapters.items():
        try:
            target = key_map.target(module)
        except AmbiguousNameError as error:
            raise AmbiguousNameError(f"{adapter_set.source}: {error}") from error
        if target is None:
            unmatched.append(module)
            continue
        for adapter in adapters:
            try:
                dry_run(adapter, target, key_map.shapes)
                adapter.check(target.shape(key_map.shapes[target.weight]))
            except ShapeError as error:
                misfits.append(f"{module}: {error}")
            except FormatError as error:
                raise type(error)(f"{adapter_set.source}: {module}: {error}") from error
            else:
                bound.append(Bound(module, target, adapter))
    few = len(misfits) < len(bound)
    if misfits and not (few and _may_be_of_one_family(adapter_set, key_map)):
        raise ShapeError(
            f"{adapter_set.source} does not fit this model in {len(misfits)} of "
            f"{len(misfits) + len(bound)} layers: {listed(misfits, 1)}. "
            f"{_made_for(adapter_set, key_map)}"
        )
    settled = _on_one_axis(bound, key_map.shapes)
    return Binding(settled, tuple(unmatched), tuple(misfits))


def _on_one_axis(
    bound: Sequence[Bound], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Bound, ...]:
    """Returns the same with DoRA magnitudes on the axis that the file has wherever it can be told.

    A trainer has one axis for all layers. Only flattened magnitudes on square weights do not tell.
    """
    axes = {
        bound_axes
        for item in bound
        if isinstance(item.adapter, Dora) and item.adapter.is_flat
        for bound_axes in [item.adapter.axes(item.target.shape(shapes[item.target.weight]))]
        if len(bound_axes) == 1
    }
    if len(axes) != 1:
        return tuple(bound)
    ((axis,),) = axes
    return tuple(
        replace(item, adapter=replace(item.adapter, flat_axis=axis))
        if isinstance(item.adapter, Dora)
        else item
        for item in bound
    )


def dry_run(
    adapter: Adapter, target: Target, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bool, bool]:
    """Returns whether an adapter changes a weight, and its bias; computes no number.

    Args:
        adapter: The adapter.
        target: The weight that it is placed on.
        shapes: Key of every parameter of the model -> its shape.

    Raises:
        ShapeError: The adapter does not fit the weight.
    """
    own = target.shape(shapes[target.weight])
    shape = adapter.grown(own)
    if shape != own and target.rows is not None:
        raise ShapeError("it makes the weight larger, which a part of a fused weight cannot be")
    return _changes(_outline(adapter), shape, target.bias in shapes)


@dataclass(frozen=True)
class _Outline:
    """An adapter without the numbers of its tensors."""

    method: type[Adapter]
    tensors: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    others: tuple[tuple[str, Any], ...]
    """The other fields; an adapter inside is an outline too."""

    def hollow(self) -> Adapter:
        """Returns the adapter on the meta device."""
        values = {
            name: value.hollow() if isinstance(value, _Outline) else value
            for name, value in self.others
        }
        for name, shape, dtype in self.tensors:
            values[name] = torch.empty(shape, dtype=dtype, device="meta")
        return self.method(**values)


def _outline(adapter: Adapter) -> _Outline:
    tensors: list[tuple[str, tuple[int, ...], torch.dtype]] = []
    others: list[tuple[str, Any]] = []
    for name, value in ((one.name, getattr(adapter, one.name)) for one in fields(adapter)):
        if isinstance(value, Tensor):
            tensors.append((name, tuple(value.shape), value.dtype))
        else:
            others.append((name, _outline(value) if isinstance(value, Adapter) else value))
    return _Outline(type(adapter), tuple(tensors), tuple(others))


@lru_cache(maxsize=4096)  # a file has many layers and few shapes
def _changes(outline: _Outline, shape: tuple[int, ...], biased: bool) -> tuple[bool, bool]:
    """Returns whether a weight of `shape` changes, and its bias."""
    adapter = outline.hollow()
    bias = torch.empty(shape[:1], device="meta") if biased else None
    try:
        change = adapter.delta_weight(torch.empty(shape, device="meta"))
        shift = adapter.delta_bias(bias)
    except RuntimeError as error:  # torch's word on sizes that do not go together
        why = str(error).rstrip(".")
        raise ShapeError(f"{adapter.name} does not fit a weight {list(shape)}: {why}") from error
    assert change is None or change.shape == shape, f"{adapter.name} made {change.shape}"
    if shift is not None and shift.shape != shape[:1]:
        raise ShapeError(f"its bias has {shift.shape[0]} numbers, the layer {shape[0]} outputs")
    return change is not None, shift is not None


def require_match(
    adapter_set: AdapterSet,
    bindings: Sequence[Binding],
    key_maps: Sequence[KeyMap],
) -> tuple[str, ...]:
    """Returns the module names that mean nothing in any of the models.

    Args:
        adapter_set: The file.
        bindings: Its binding to each model that is connected.
        key_maps: Their key maps, in the same order.

    Raises:
        NoMatchError: Nothing of the file has a home.
    """
    if not any(binding.bound for binding in bindings):
        encoders = all(in_text_encoder(module) for module in adapter_set.adapters)
        part = "text encoder" if encoders else "diffusion model"
        raise NoMatchError(
            f"Nothing of {adapter_set.source} fits: none of its {len(adapter_set.adapters)} modules "
            f"has a home in what is connected, for example {next(iter(adapter_set.adapters))}. "
            f"{_made_for(adapter_set, *key_maps)} The file is for the {part}: connect one that fits."
        )
    unmatched = [set(binding.unmatched) for binding in bindings]
    nowhere = set.intersection(*unmatched)
    return tuple(module for module in adapter_set.adapters if module in nowhere)


def causes(
    adapter_set: AdapterSet,
    homeless: Sequence[str],
    model: KeyMap | None,
    clip: KeyMap | None,
) -> dict[str, list[str]]:
    """Returns likely cause -> the modules that have no home for it, as the end of a sentence.

    Args:
        adapter_set: The file.
        homeless: Its module names that mean nothing in any part that is connected.
        model: The diffusion model, if one is connected.
        clip: The text encoders, if there are any.
    """
    of_model = None if model is None else detect(sizes_of(model.shapes))
    present = None if clip is None else encoders(clip.shapes)
    found: dict[str, list[str]] = defaultdict(list)
    for module in homeless:
        sizes = _axis_sizes(adapter_set.adapters[module])
        cause = likely_cause(module, sizes, of_model, present)
        if model is None and not in_text_encoder(module):
            cause = "no diffusion model is connected"
        found[cause or "the model has no such layer"].append(module)
    return found


def families(
    adapter_set: AdapterSet, key_maps: Sequence[KeyMap]
) -> tuple[Family | None, Family | None]:
    """Returns the family that a file was made for and that of the model, by names and shapes."""
    of_file = detect(
        {module: _axis_sizes(adapters) for module, adapters in adapter_set.adapters.items()}
    )
    sizes = {key: axes for key_map in key_maps for key, axes in sizes_of(key_map.shapes).items()}
    return of_file, detect(sizes)


def _axis_sizes(adapters: Sequence[Adapter]) -> frozenset[int]:
    return frozenset(
        size
        for adapter in adapters
        for tensor in adapter.tensors().values()
        for size in tensor.shape
    )


def _may_be_of_one_family(adapter_set: AdapterSet, key_map: KeyMap) -> bool:
    of_file, of_model = families(adapter_set, [key_map])
    return of_file is None or of_model is None or of_file == of_model


def _made_for(adapter_set: AdapterSet, *key_maps: KeyMap) -> str:
    """Says what the file was made for and what the model is, as far as it can be told."""
    of_file, of_model = families(adapter_set, key_maps)
    made_for = of_file.name if of_file else adapter_set.metadata.architecture
    sentences = [
        f"The file was made for {made_for}" if made_for else "What it was made for is unknown",
        f"the model is {of_model.name}" if of_model else "the model's family is unknown",
    ]
    return "; ".join(sentences) + "."
