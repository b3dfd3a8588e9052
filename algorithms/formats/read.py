"""Reads a safetensors file: the header first, tensors only when asked.

The format: 8 bytes little-endian length, a JSON header with name -> dtype, shape and offsets, and
under `__metadata__` strings; then the tensors. (safetensors, format description in its README.)
"""

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

CONVERT_HINT = (
    "Any Adapter reads only .safetensors, since such files can run code when they are opened. "
    "Convert it to .safetensors with a tool you trust."
)


@dataclass(frozen=True, eq=False)
class RawFile:
    """An adapter file, opened: its header, and tensors on request."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    """Every key of the file with the shape of its tensor."""
    _opened: Any = field(repr=False)
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """PEFT's `adapter_config.json` beside the file, whether it belongs to it or not; empty where
    there is none."""
    notes: tuple[str, ...] = ()
    """What went wrong beside the file."""

    @property
    def name(self) -> str:
        """The file name, for messages."""
        return self.path.name

    def tensor(self, key: str) -> Tensor:
        """Returns one tensor, memory-mapped where the system allows replacing mapped files."""
        return self._opened[key] if isinstance(self._opened, dict) else self._opened.get_tensor(key)


def read_file(path: Path) -> RawFile:
    """Opens a safetensors file.

    Raises:
        FileError: The file is missing, unreadable, truncated, empty, or of another format.
    """
    try:
        header, size_bytes = _read_header(path)
        opened: Any
        if os.name == "nt":  # a mapped file could not be replaced by its owner
            opened = safetensors.torch.load_file(path)
        else:
            opened = safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise FileError(gone(path)) from error
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise FileError(
            f"{path.name} is not a valid safetensors file ({error}). Download or save it again."
        ) from error
    metadata = header.pop("__metadata__", {})
    if not header:
        raise FileError(
            f"{path.name} holds no tensors ({size_bytes} bytes, only a header). "
            "Download or save it again."
        )
    shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
    config, notes = _read_config(config_beside(path))
    return RawFile(path, metadata, shapes, opened, config, notes)


def config_beside(path: Path) -> Path:
    """Returns where PEFT keeps the configuration of an adapter file."""
    return path.with_name("adapter_config.json")


def _read_config(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns PEFT's configuration, and a note where there is one that cannot be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError) as error:
        return {}, (f"{path.name} beside the file cannot be read and is not used: {error}.",)
    if not isinstance(config, dict):
        return {}, (f"{path.name} beside the file is no configuration and is not used.",)
    return config, ()


def gone(path: Path) -> str:
    """Returns the message for a file that was listed and is not there."""
    return f"{path.name} is not there any more. Refresh the list and choose again."


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Returns the JSON header and the size of the file, with a message for each way to fail."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if size_bytes == 0:
            raise FileError(f"{path.name} is empty (0 bytes). Download or save it again.")
        # A header of 640 bytes starts like a pickle too; the length of a header ends with zeros.
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04") and start[4:] != bytes(4):
            raise FileError(f"{path.name} is a pickle file, whatever its ending. {CONVERT_HINT}")
        if path.suffix not in (".safetensors", ".sft"):
            raise FileError(f"{path.name} is not a safetensors file. {CONVERT_HINT}")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        first = file.read(1)
        if length > MAX_HEADER_BYTES or first != b"{":
            raise FileError(
                f"{path.name} is not a safetensors file: its first bytes are no header. "
                "It may be a web page or a text file saved under this name. Download it again."
            )
        text = first + file.read(length - 1)
    if len(text) < length:
        raise FileError(_truncated(path, 8 + length, size_bytes))
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise FileError(
            f"{path.name} has a damaged header ({error}). Download it again."
        ) from error
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    expected_bytes = 8 + length + max(ends, default=0)
    if size_bytes < expected_bytes:
        raise FileError(_truncated(path, expected_bytes, size_bytes))
    return header, size_bytes


def _truncated(path: Path, expected_bytes: int, size_bytes: int) -> str:
    return (
        f"{path.name} is truncated: it should have {expected_bytes:,} bytes and has {size_bytes:,}. "
        "The download or copy was cut off; fetch it again."
    )
