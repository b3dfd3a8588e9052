"""The blocks of models and files, each found once."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from weakref import WeakKeyDictionary, ref

from ...algorithms.adapters import Adapter
from ...algorithms.analysis.norms import change_norm, joined
from ...algorithms.binding import Binding, families
from ...algorithms.errors import AdapterError
from ...algorithms.families import Shapes
from ...algorithms.families.blocks import (
    BlockMap,
    Place,
    blocks_of_clip,
    blocks_of_file,
    blocks_of_model,
    place_of,
)
from ...algorithms.formats.parse import AdapterSet
from ...algorithms.keymap import KeyMap
from .bindings import binding_of

REMEMBERED = 256
"""Files of which it is known on what models they were used last."""

_of_models: WeakKeyDictionary[KeyMap, BlockMap] = WeakKeyDictionary()
_of_files: WeakKeyDictionary[AdapterSet, BlockMap] = WeakKeyDictionary()
_norms: WeakKeyDictionary[AdapterSet, dict[str, float | None]] = WeakKeyDictionary()
_used: OrderedDict[str, tuple[ref[KeyMap] | None, ref[KeyMap] | None]] = OrderedDict()
"""Name of a file -> the diffusion model and the text encoders that it was used on last."""


def _once(key_map: KeyMap, find: Callable[[Shapes], BlockMap]) -> BlockMap:
    if key_map not in _of_models:
        _of_models[key_map] = find(key_map.shapes)
    return _of_models[key_map]


def file_blocks(adapter_set: AdapterSet) -> BlockMap:
    """Returns the blocks that a file speaks of, as far as its names tell."""
    if adapter_set not in _of_files:
        made_for, _ = families(adapter_set, [])
        _of_files[adapter_set] = blocks_of_file(adapter_set.adapters, made_for)
    return _of_files[adapter_set]


def all_blocks(adapter_set: AdapterSet, model: KeyMap | None, clip: KeyMap | None) -> BlockMap:
    """Returns the blocks of a model and its text encoders; of what is not there, those of the file."""
    by_name = file_blocks(adapter_set)
    whole = BlockMap(())
    for section, exact in (
        ("model", None if model is None else _once(model, blocks_of_model)),
        ("clip", None if clip is None else _once(clip, blocks_of_clip)),
    ):
        of_file = BlockMap(tuple(one for one in by_name.groups if one.section == section))
        whole = whole.joined(exact or of_file)
    return whole


def placed_file(
    adapter_set: AdapterSet,
    model: KeyMap | None,
    clip: KeyMap | None,
    bindings: Iterable[Binding],
) -> BlockMap:
    """Returns the same blocks, and where the layers of the file lie, by their names in it.

    Args:
        adapter_set: The file.
        model: The diffusion model, if there is one.
        clip: The text encoders, if there are any.
        bindings: Its places there; layers that have none are placed by their names.
    """
    blocks = all_blocks(adapter_set, model, clip)
    named = file_blocks(adapter_set).places
    places: dict[str, Place] = dict(named)
    for binding in bindings:
        for item in binding.bound:
            exact = blocks.places[item.target.weight]
            places[item.module] = place_of(exact, named.get(item.module))
    return BlockMap(blocks.groups, places)


def remember_use(adapter: str, model: KeyMap | None, clip: KeyMap | None) -> None:
    """Keeps on what a file is used, for whoever asks for its blocks without a model.

    Args:
        adapter: Name of the file.
        model: The diffusion model, if one is connected.
        clip: The text encoders, if they are.
    """
    _used.pop(adapter, None)
    _used[adapter] = (
        None if model is None else ref(model),
        None if clip is None else ref(clip),
    )
    while len(_used) > REMEMBERED:
        _used.popitem(last=False)


def blocks_in_use(adapter: str, adapter_set: AdapterSet) -> BlockMap:
    """Returns the blocks of the model that a file was used on last, or else what its names tell.

    The places are those of the file's modules.
    """
    model, clip = (known and known() for known in _used.get(adapter, (None, None)))
    bindings: list[Binding] = []
    for key_map in (model, clip):
        with suppress(AdapterError):  # it did not fit this part, and ran on the other one
            bindings += [] if key_map is None else [binding_of(adapter_set, key_map)]
    return placed_file(adapter_set, model, clip, bindings)


def energies(adapter_set: AdapterSet) -> Mapping[str, float | None]:
    """Returns the norm of the change of each module of a file; None where it is not known."""
    if adapter_set not in _norms:
        _norms[adapter_set] = {
            module: _norm(adapters) for module, adapters in adapter_set.adapters.items()
        }
    return _norms[adapter_set]


def _norm(adapters: Sequence[Adapter]) -> float | None:
    """Returns the norm of the changes of several adapters together, as if they had nothing in common."""
    return joined(map(_norm_of, adapters))


def _norm_of(adapter: Adapter) -> float | None:
    try:
        return change_norm(adapter)
    except (AdapterError, RuntimeError):  # its tensors do not go together, which a run will say
        return None
