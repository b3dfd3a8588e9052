"""What a file is, from its header alone: for lists of many files."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import AdapterError
from .parse import AdapterSet, parse_header
from .read import read_header


@dataclass(frozen=True, eq=False)
class Outline:
    """An adapter file without its numbers, or why a file is none."""

    path: Path
    adapters: AdapterSet | None
    """Methods, names and shapes as after parsing; all tensors are on the meta device, and numbers
    such as alpha stand at 1. None where the file is no adapter."""
    reason: str = ""
    """Why the file is no adapter, for the user; empty where it is one."""


def outline(path: Path) -> Outline:
    """Returns what a file is. Reads its header and nothing behind it; never raises for a bad file.

    Args:
        path: A file, or what was one when it was listed.
    """
    try:
        return Outline(path, parse_header(read_header(path)))
    except AdapterError as error:
        return Outline(path, None, str(error))
