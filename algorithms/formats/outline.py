"""What a file is, from its header alone: for lists of many files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AdapterError
from .parse import AdapterSet, Convert, parse_header
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
    strings: Mapping[str, str] = field(default_factory=dict[str, str])
    """The metadata of the header, also of a file that is no adapter; empty where it has none."""


def outline(path: Path, convert: Convert | None = None) -> Outline:
    """Returns what a file is. Reads its header and nothing behind it; never raises for a bad file.

    Args:
        path: A file, or what was one when it was listed.
        convert: Renames its tensors before they are looked at.
    """
    strings: Mapping[str, str] = {}
    try:
        header = read_header(path)
        strings = header.metadata
        return Outline(path, parse_header(header, convert=convert), strings=strings)
    except AdapterError as error:
        return Outline(path, None, str(error), strings)
