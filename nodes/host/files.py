"""Adapter files by the names that the host lists."""

from pathlib import Path
from threading import RLock
from weakref import WeakKeyDictionary

import folder_paths
from comfy.lora_convert import convert_lora

from ...algorithms.errors import FileError
from ...algorithms.formats.cache import ParsedFiles, State, file_state
from ...algorithms.formats.parse import AdapterSet
from ...algorithms.formats.read import Progress, no_progress

FOLDER = "loras"

KEPT_OPTIONS = 4
"""Of one file: a rank is tried out, and then stays."""

_one_at_a_time = RLock()
"""Routes read files beside the prompt that runs: what one has read is there for the other."""
_parsed = ParsedFiles(convert=convert_lora)
_ready: WeakKeyDictionary[AdapterSet, dict[tuple[int, bool], AdapterSet]] = WeakKeyDictionary()
"""Parsed file -> (rank, corrections) -> what became of it."""


def adapter_names() -> list[str]:
    """Returns the names of all files in the host's LoRA folders."""
    return folder_paths.get_filename_list(FOLDER)


def adapter_path(name: str) -> Path:
    """Returns the path of a file in the host's LoRA folders.

    The host's list is not asked: it is kept for a while, and a file that was just made is not in
    it. Nor does ComfyUI 0.3.75 check the choice of a V3 node.

    Raises:
        FileError: There is no such file, or the name points out of the folders.
    """
    parts = name.replace("\\", "/").split("/")
    outside = ".." in parts or "" in parts or ":" in parts[0]
    spellings = [] if outside else [name, "/".join(parts)]  # a workflow may come from Windows
    found = (folder_paths.get_full_path(FOLDER, spelled) for spelled in spellings)
    path = next(filter(None, found), None)
    if path is None:
        raise FileError(
            f"{name} is not in the LoRA folders (any more). Refresh the list and choose again."
        )
    return Path(path)


def load_adapter(
    name: str, rank: int = 0, *, corrections: bool = True, progress: Progress = no_progress
) -> AdapterSet:
    """Returns the adapters of a file as they were trained.

    It is the same object again until the file changes on disk, or many others were loaded.

    Args:
        name: Its name in the host's list.
        rank: Cuts to the first ranks; 0 for all.
        corrections: Whether to depart from other loaders where the header proves them wrong.
        progress: Told how far the file is read.

    Raises:
        FileError, FormatError, ShapeError: The file is missing, damaged, or no adapter.
    """
    path = adapter_path(name)
    with _one_at_a_time:
        parsed = _parsed.get(path, progress)
        ready = _ready.setdefault(parsed, {})
        options = (rank, corrections)
        if options not in ready:
            while len(ready) >= KEPT_OPTIONS:
                del ready[next(iter(ready))]
            ready[options] = parsed.as_trained(corrections=corrections).cut(rank)
        return ready[options]


def adapter_state(name: str | None) -> State | None:
    """Returns what changes when a file does, or None if it is gone.

    Args:
        name: None where it comes from another node, and is known only when that has run: then what
            changes when any file of the LoRA folders does.
    """
    if name is None:
        every = adapter_names()
        return (hash((*every, *map(adapter_state, every))),)
    try:
        return file_state(adapter_path(name))
    except FileError:
        return None
