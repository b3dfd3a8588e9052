"""Keeps bindings, so that another strength binds nothing again.

The plans of layers are found by the adapters that they were made of: so these are the same objects
for as long as the file is kept and the model lives.
"""

from weakref import WeakKeyDictionary

from ...algorithms.binding import Binding, bind
from ...algorithms.formats.parse import AdapterSet
from ...algorithms.keymap import KeyMap

# A key map lives as long as the modules of its model, which all clones share.
_known: WeakKeyDictionary[KeyMap, WeakKeyDictionary[AdapterSet, Binding]] = WeakKeyDictionary()


def binding_of(adapter_set: AdapterSet, key_map: KeyMap) -> Binding:
    """Returns the binding of a file to a part of a model, made once.

    Raises:
        FormatError, ShapeError: As `bind`, again at each call.
    """
    kept = _known.setdefault(key_map, WeakKeyDictionary())
    binding = kept.get(adapter_set)
    if binding is None:
        binding = kept[adapter_set] = bind(adapter_set, key_map)
    return binding
