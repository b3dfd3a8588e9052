"""Parameters as they lie in a model, before anything is made of them: packed, narrow, unpatched."""

from collections.abc import Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor


def split(key: str) -> tuple[str, str]:
    """Returns the path of the module that a key of a state dict is in, and the name there."""
    path, _, name = key.rpartition(".")
    return path, name


def owner_of(patcher: ModelPatcher, path: str) -> Any:
    """Returns a module, with the objects that this patcher puts in place of others.

    Raises:
        AttributeError: There is none.
    """
    steps = path.split(".") if path else []
    for count in range(len(steps), 0, -1):
        start = ".".join(steps[:count])
        for objects in (patcher.object_patches, patcher.object_patches_backup):
            if start in objects:
                return _walk(objects[start], steps[count:])
    return _walk(patcher.model, steps)


def stored(patcher: ModelPatcher, key: str) -> Tensor:
    """Returns a parameter as it was before the host patched it, if it is patched right now.

    The host keeps the originals of what it patches in place, for all clones of a model together.

    Raises:
        AttributeError: There is none.
    """
    for objects in (patcher.object_patches, patcher.object_patches_backup):
        if key in objects:
            return objects[key]
    path, name = split(key)
    owner = owner_of(patcher, path)
    if _walk(patcher.model, path.split(".") if path else []) is owner:
        if key in patcher.backup:
            return patcher.backup[key].weight
        if key in patcher.hook_backup:  # by conditionings, on top of all else
            return patcher.hook_backup[key][0]
    return getattr(owner, name)


def originals(patcher: ModelPatcher) -> dict[str, Tensor]:
    """Returns what the host puts back for parameters that it has patched in place right now."""
    by_conditionings = {key: kept[0] for key, kept in patcher.hook_backup.items()}
    return by_conditionings | {key: kept.weight for key, kept in patcher.backup.items()}


def _walk(start: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        start = getattr(start, step)
    return start
