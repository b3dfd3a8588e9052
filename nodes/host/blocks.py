"""The blocks of models and files, each found once."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakKeyDictionary

from ...algorithms.adapters import Adapter
from ...algorithms.analysis.norms import change_norm, joined
from ...algorithms.binding import Binding, families
from ...algorithms.errors import AdapterError
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

REMEMBERED = 256
"""Files of which it is known on what models they were used last."""

_of_models: WeakKeyDictionary[KeyMap, BlockMap] = WeakKeyDictionary()
_of_files: WeakKeyDictionary[AdapterSet, BlockMap] = WeakKeyDictionary()
_norms: WeakKeyDictionary[AdapterSet, dict[str, float | None]] = WeakKeyDictionary()
_used: OrderedDict[str, BlockMap] = OrderedDict()
"""Name of a file -> the blocks of the model that it was used on last, by the file's module names."""


def model_blocks(key_map: KeyMap) -> BlockMap:
    """Returns the blocks of a diffusion model."""
    if key_map not in _of_models:
        _of_models[key_map] = blocks_of_model(key_map.shapes)
    return _of_models[key_map]


def clip_blocks(key_map: KeyMap) -> BlockMap:
    """Returns the blocks of text encoders."""
    if key_map not in _of_models:
        _of_models[key_map] = blocks_of_clip(key_map.shapes)
    return _of_models[key_map]


def file_blocks(adapter_set: AdapterSet) -> BlockMap:
    """Returns the blocks that a file speaks of, as far as its names tell."""
    if adapter_set not in _of_files:
        made_for, _ = families(adapter_set, [])
        _of_files[adapter_set] = blocks_of_file(adapter_set.adapters, made_for)
    return _of_files[adapter_set]


def all_blocks(
    adapter_set: AdapterSet, model: KeyMap | None = None, clip: KeyMap | None = None
) -> BlockMap:
    """Returns the blocks of a model and its text encoders; of what is not there, those of the file."""
    by_name = file_blocks(adapter_set)
    whole = BlockMap(())
    for section, exact in (
        ("model", None if model is None else model_blocks(model)),
        ("clip", None if clip is None else clip_blocks(clip)),
    ):
        of_file = BlockMap(tuple(one for one in by_name.groups if one.section == section))
        whole = whole.joined(exact or of_file)
    return whole


def places_of(
    adapter_set: AdapterSet, blocks: BlockMap, bindings: Iterable[Binding]
) -> dict[str, Place]:
    """Returns where the layers of a file lie: by their names, and exactly where a model has them.

    Args:
        adapter_set: The file.
        blocks: Those of the models.
        bindings: Its places there.
    """
    named = file_blocks(adapter_set).places
    places: dict[str, Place] = dict(named)
    for binding in bindings:
        for item in binding.bound:
            exact = blocks.places[item.target.weight]
            places[item.module] = place_of(exact, named.get(item.module))
    return places


def remember_use(
    adapter: str, adapter_set: AdapterSet, blocks: BlockMap, bindings: Mapping[str, Binding]
) -> None:
    """Keeps on what blocks the layers of a file lie, for whoever asks without a model.

    Args:
        adapter: Name of the file.
        adapter_set: The file.
        blocks: Those of the models that it was put on.
        bindings: Its places there.
    """
    places = places_of(adapter_set, blocks, bindings.values())
    _used.pop(adapter, None)
    _used[adapter] = BlockMap(blocks.groups, places)
    while len(_used) > REMEMBERED:
        _used.popitem(last=False)


def blocks_in_use(adapter: str, adapter_set: AdapterSet) -> BlockMap:
    """Returns the blocks of the model that a file was used on last, or else what its names tell.

    The places are those of the file's modules.
    """
    used = _used.get(adapter)
    if used is not None and used.places.keys() == adapter_set.adapters.keys():
        return used
    return file_blocks(adapter_set)


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
