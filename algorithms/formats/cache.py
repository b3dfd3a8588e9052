"""Keeps parsed files while they do not change on disk."""

import os
from collections import OrderedDict
from pathlib import Path

from ..errors import FileError
from .parse import AdapterSet, Convert, parse_file
from .read import Progress, config_beside, gone, no_progress, read_file

State = tuple[int, ...]
"""Size in bytes and modification time in nanoseconds, of the file and of PEFT's configuration
beside it, if there is one."""

LIMIT = 8 if os.name == "nt" else 32
"""More than a workflow uses: with one too many, each of its prompts would read all files again."""


def file_state(path: Path) -> State:
    """Returns what tells a changed file from the one read before.

    Raises:
        FileError: The file is not there.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise FileError(gone(path)) from error
    try:
        beside = config_beside(path).stat()
    except OSError:
        return stat.st_size, stat.st_mtime_ns
    return stat.st_size, stat.st_mtime_ns, beside.st_size, beside.st_mtime_ns


class ParsedFiles:
    """The files read last. Their tensors are memory-mapped, so this holds addresses, not memory.

    (On Windows they are read whole, and this holds the memory of at most `limit` adapter files.)
    """

    def __init__(self, limit: int = LIMIT, convert: Convert | None = None) -> None:
        self._convert = convert
        self._limit = limit
        self._kept: OrderedDict[Path, tuple[State, AdapterSet]] = OrderedDict()

    def get(self, path: Path, progress: Progress = no_progress) -> AdapterSet:
        """Returns the adapters of a file, read again only if its state changed.

        Args:
            path: The file.
            progress: Told how far the numbers are read.

        Raises:
            FileError, FormatError, ShapeError: As `read_file` and `parse_file`.
        """
        state = file_state(path)
        kept = self._kept.get(path)
        if kept is None or kept[0] != state:
            self._kept.pop(path, None)
            kept = (state, parse_file(read_file(path), self._convert, progress))
            self._kept[path] = kept
        self._kept.move_to_end(path)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return kept[1]
