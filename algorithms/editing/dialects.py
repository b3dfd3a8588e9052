"""Dialects: an adapter set under the names, and in the cut of fused weights, of another tool."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..adapters import Adapter
from ..adapters.base import Spelling
from ..adapters.diff import Diff
from ..adapters.dora import Dora
from ..adapters.loha import Loha
from ..adapters.lora import Lora
from ..binding import Bound, bind
from ..errors import EditingError, NoMatchError, counted, listed
from ..formats.metadata import PEFT_CONFIG
from ..formats.parse import AdapterSet
from ..keymap import KeyMap, Target
from .rows import joined, on_rows, places, stacked
from .weight_shapes import on_axes

DialectName = Literal["kohya", "lycoris", "diffusers", "peft", "comfy", "onetrainer"]
TITLES: dict[DialectName, str] = {
    "kohya": "kohya's sd-scripts",
    "lycoris": "LyCORIS",
    "diffusers": "diffusers",
    "peft": "PEFT",
    "comfy": "ComfyUI",
    "onetrainer": "OneTrainer",
}


def spelling_of(dialect: DialectName) -> Spelling:
    """Returns how the tensors of a dialect are named, for `to_tensors`."""
    return "peft" if dialect in ("diffusers", "peft") else "kohya"


def in_dialect(
    adapter_set: AdapterSet,
    key_maps: Sequence[KeyMap],
    dialect: DialectName,
    *,
    whole: bool = False,
) -> tuple[AdapterSet, tuple[str, ...]]:
    """Returns a completed set with the module names of a tool, and sentences on what was changed.

    Adapters on parts of a weight that the tool has in one are joined, and one on a weight that the
    tool has in parts is split, where that is exact. The factors of LoRAs get the axes of the layer.

    Args:
        adapter_set: The set, after `as_trained`.
        key_maps: What is connected: the diffusion model, the text encoders.
        dialect: The tool.
        whole: Whether a method that can be neither joined nor split is made a whole change
            (`diff`), which is as large as the weight.

    Raises:
        EditingError: A module has no home in the models or no name in the dialect, or its method
            can be neither joined nor split.
        AdapterError: As `bind`.
    """
    renamed: dict[str, tuple[Adapter, ...]] = {}
    placed: set[str] = set()
    counts: dict[str, int] = defaultdict(int)
    for key_map in key_maps:
        binding = bind(adapter_set, key_map)
        if binding.misfits:
            raise EditingError(
                f"{adapter_set.source} does not fit the model in "
                f"{counted(len(binding.misfits), 'layer')}, so that it cannot be renamed by it: "
                f"{listed(binding.misfits, 1)}. Connect the model that it was trained on."
            )
        placed |= {bound.module for bound in binding.bound}
        by_weight: dict[str, list[Bound]] = defaultdict(list)
        for bound in binding.bound:
            by_weight[bound.target.weight].append(bound)
        if dialect == "peft" and by_weight and renamed:
            raise EditingError(
                f"{adapter_set.source} changes several models, and a file of PEFT is for one: save "
                "it for diffusers, or connect one model and leave the rest out."
            )
        for several in by_weight.values():
            layers = _Layers(key_map, dialect, whole=whole)
            renamed |= layers.renamed(several)
            for what in layers.done:
                counts[what] += 1
    _require_home(adapter_set, placed)
    notes = [f"{counted(count, 'layer')} {what}." for what, count in counts.items()]
    if counts and adapter_set.metadata.is_dylora:
        notes.append("The ranks of these layers have lost the order that DyLoRA gave them.")
    metadata = adapter_set.metadata
    strings = {key: text for key, text in metadata.strings.items() if key != PEFT_CONFIG}
    metadata = replace(metadata, strings=strings, config={})
    return replace(adapter_set, adapters=renamed, metadata=metadata), tuple(notes)


def _require_home(adapter_set: AdapterSet, placed: set[str]) -> None:
    """Checks that every module was found.

    Raises:
        NoMatchError: None was.
        EditingError: Some were not.
    """
    lost = [module for module in adapter_set.adapters if module not in placed]
    if not placed:
        raise NoMatchError(
            f"Nothing of {adapter_set.source} is in the models that are connected, for example not "
            f"{lost[0]}: connect those that it was trained on."
        )
    if lost:
        raise EditingError(
            f"{adapter_set.source} has {counted(len(lost), 'module')} without a home in the models "
            f"that are connected, so that their new names are not known: {listed(lost, 3)}. "
            "Connect CLIP too where they are of a text encoder, or keep the names as they are."
        )


@dataclass
class _Layers:
    """Gives the adapters on one weight the layers that a tool has of it."""

    key_map: KeyMap
    dialect: DialectName
    whole: bool

    def __post_init__(self) -> None:
        """Begins with nothing done."""
        self.done: list[str] = []

    def renamed(self, bound: Sequence[Bound]) -> Mapping[str, tuple[Adapter, ...]]:
        """Returns module name in the dialect -> its adapters.

        Raises:
            EditingError: There is no name, or no way to cut.
        """
        units = self.key_map.units(bound[0].target, self.dialect)
        exact = all(one.target in units for one in bound)
        found: dict[str, tuple[Adapter, ...]] = {}
        for unit in units:
            if exact:
                own = [one for one in bound if one.target == unit]
                adapters = self._sums([self._fitted(one) for one in own], own)
            else:
                adapters = self._of_unit(bound, unit)
            if adapters:
                found[self._name(unit, bound[0].module)] = adapters
        if not exact:
            self.done.append(
                "split into parts of the weight" if len(units) > 1 else "joined to a fused weight"
            )
        return found

    def _name(self, unit: Target, module: str) -> str:
        name = self.key_map.name(unit, self.dialect)
        if name is None or self.key_map.target(name) != unit:
            raise EditingError(
                f"{TITLES[self.dialect]} has no name for {unit}, which {module} is for. "
                "Save it for another tool, or keep the names as they are."
            )
        return name

    def _of_unit(self, bound: Sequence[Bound], unit: Target) -> tuple[Adapter, ...]:
        """Returns what adapters on some rows of a weight do to other rows of it."""
        count = self.key_map.shapes[unit.weight][0]
        maps = [(one, places(one.target, unit, count)) for one in bound]
        maps = [(one, rows) for one, rows in maps if bool((rows >= 0).any())]
        doras = [(self._fitted(one), rows) for one, rows in maps if self._has_lengths_of_rows(one)]
        if len(doras) > 1 and len(doras) == len(maps):
            together = stacked(doras)
            if together is not None:
                return (together,)
        moved: list[Adapter] = []
        for one, rows in maps:
            adapter = self._fitted(one)
            shape = self._shape(one.target)
            cut = on_rows(adapter, rows, shape)
            if cut is None:
                cut = on_rows(self._as_whole(one), rows, shape)
            assert cut is not None, "a whole change has no rows that depend on others"
            moved.append(cut)
        return self._sums(moved, [one for one, _ in maps])

    def _sums(self, adapters: Sequence[Adapter], bound: Sequence[Bound]) -> tuple[Adapter, ...]:
        """Returns the adapters of one layer, those of the same method as one."""
        by_method: dict[str, list[tuple[Adapter, Bound]]] = defaultdict(list)
        for adapter, one in zip(adapters, bound, strict=True):
            by_method[adapter.name].append((adapter, one))
        found: list[Adapter] = []
        for several in by_method.values():
            total = joined([adapter for adapter, _ in several])
            if total is None:
                total = joined([self._as_whole(one) for _, one in several])
            assert total is not None, "whole changes are added"
            found.append(total)
        return tuple(found)

    def _as_whole(self, one: Bound) -> Diff:
        """Returns an adapter as the change of its weight.

        Raises:
            EditingError: That was not asked for, or it takes the numbers of the base weight.
        """
        if not self.whole or not one.adapter.additive:
            raise EditingError(
                f"{one.module} is {one.adapter.label} on {one.target}, which {TITLES[self.dialect]} "
                "cuts into layers in another way. Its method can be neither split nor joined: "
                "convert it to LoRA first (Convert Adapter)."
            )
        blank = torch.empty(self._shape(one.target), device="meta")
        change, shift = one.adapter.delta_weight(blank), one.adapter.delta_bias(None)
        return Diff(change, shift)

    def _has_lengths_of_rows(self, one: Bound) -> bool:
        """Whether it is DoRA whose magnitudes are those of outputs."""
        adapter = one.adapter
        return isinstance(adapter, Dora) and adapter.axis(self._shape(one.target)) == "outputs"

    def _fitted(self, one: Bound) -> Adapter:
        """Returns an adapter whose factors have the axes of the layer."""
        return _fitted(one.adapter, self._shape(one.target), self.dialect)

    def _shape(self, target: Target) -> tuple[int, ...]:
        return target.shape(self.key_map.shapes[target.weight])


def _fitted(adapter: Adapter, shape: tuple[int, ...], dialect: DialectName) -> Adapter:
    """Returns a LoRA with factors, and DoRA with magnitudes, of the axes of a weight of `shape`.

    LoHa without a core gets matrices, as only OneTrainer has and reads kernels there.
    """
    if isinstance(adapter, Loha) and dialect != "onetrainer":
        tensors = adapter.tensors()
        return adapter.with_tensors({name: one.flatten(1) for name, one in tensors.items()})
    if isinstance(adapter, Lora) and adapter.reshape is None:
        return on_axes(adapter, shape)
    if isinstance(adapter, Dora):
        ones = [1] * (len(shape) - 2)
        axes = (-1, 1, *ones) if adapter.axis(shape) == "outputs" else (1, -1, *ones)
        scale = adapter.magnitude.reshape(axes)
        return Dora(_fitted(adapter.inner, shape, dialect), scale)
    return adapter
