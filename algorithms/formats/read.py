"""Reads a safetensors file: the header first, tensors only when asked.

The format: 8 bytes little-endian length, a JSON header with name -> dtype, shape and offsets, and
under `__metadata__` strings; then the tensors. (safetensors, format description in its README.)
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

MAX_ELEMENTS = 2**60
"""Beyond this the strides of a tensor do not fit their type."""

CONVERT_HINT = (
    "Any Adapter reads only .safetensors, since such files can run code when they are opened. "
    "Convert it to .safetensors with a tool you trust."
)

DTYPES = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "C64": (64, "complex64"),
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F4": (4, "float4_e2m1fn_x2"),
    "F6_E2M3": (6, "float6_e2m3fn"),
    "F6_E3M2": (6, "float6_e3m2fn"),
}
"""Each dtype of the format: bits of a number, and its name in PyTorch, which may lack it."""


PIECE = 2**24
"""Numbers that are looked at in one go."""

Progress = Callable[[int, int], None]
"""Told how much is done (bytes, layers, pictures), and how much there is."""


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Form:
    """What the header says of one tensor."""

    dtype: str
    """As the format spells it, `F16` for instance."""
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Header:
    """What stands in front of the tensors of a file."""

    path: Path
    metadata: dict[str, str]
    forms: dict[str, Form]
    """Every key of the file with what its tensor is like."""
    spans: dict[str, tuple[int, int]]
    """Every key with the places in the file where its tensor begins and ends, in bytes."""

    @property
    def name(self) -> str:
        """The file name, for messages."""
        return self.path.name


@dataclass(frozen=True, eq=False)
class RawFile:
    """An adapter file, opened: its header, and tensors on request."""

    header: Header
    _opened: Any = field(repr=False)
    """What the library made of the file: tensors by key, or something that gives them."""
    _mapped: mmap.mmap | None = field(default=None, repr=False)
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """PEFT's `adapter_config.json` beside the file, whether it belongs to it or not; empty where
    there is none."""
    notes: tuple[str, ...] = ()
    """What went wrong beside the file."""

    @property
    def name(self) -> str:
        """The file name, for messages."""
        return self.header.name

    @property
    def metadata(self) -> dict[str, str]:
        """The strings of the header."""
        return self.header.metadata

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key of the file with the shape of its tensor."""
        return {key: form.shape for key, form in self.header.forms.items()}

    def tensor(self, key: str) -> Tensor:
        """Returns one tensor, memory-mapped where the system allows replacing mapped files.

        Raises:
            FileError: The tensor has a dtype that this version of PyTorch or safetensors lacks.
        """
        form = self.header.forms[key]
        if self._mapped is not None and self._lies_ready(key):
            return self._flat(*self.header.spans[key], form.dtype).view(form.shape)
        try:
            if isinstance(self._opened, dict):
                return self._opened[key]
            return self._opened.get_tensor(key)
        except (SafetensorError, AttributeError) as error:
            raise FileError(
                f"{self.name}: {key} has the dtype {form.dtype}, which cannot be "
                "read here. Save the adapter as float16 or bfloat16."
            ) from error

    def is_finite(self, keys: Iterable[str], progress: Progress = no_progress) -> bool:
        """Whether the numbers of these tensors are finite.

        Neighbours are looked at together: hundreds of small calls take longer than the numbers.

        Args:
            keys: Tensors of floats.
            progress: Told how far it is.
        """
        runs = list(self._runs(keys))
        total = sum(run.nbytes for run in runs)
        done = 0
        for run in runs:
            for piece in run.split(PIECE):
                if not finite(piece):
                    return False
                done += piece.nbytes
                progress(done, total)
        return True

    def _runs(self, keys: Iterable[str]) -> Iterator[Tensor]:
        """Yields flat tensors that hold the numbers of the given ones, as few as possible."""
        begin = end = 0
        dtype = ""
        for key in sorted(keys, key=self.header.spans.__getitem__):
            if self._mapped is None or not self._lies_ready(key):
                yield self.tensor(key).flatten()
                continue
            own, own_dtype = self.header.spans[key], self.header.forms[key].dtype
            if own[0] != end or own_dtype != dtype:
                if begin < end:
                    yield self._flat(begin, end, dtype)
                begin, dtype = own[0], own_dtype
            end = own[1]
        if begin < end:
            yield self._flat(begin, end, dtype)

    def _lies_ready(self, key: str) -> bool:
        """Whether PyTorch can use the bytes of a tensor as they lie in the file."""
        begin, end = self.header.spans[key]
        bits, dtype = DTYPES[self.header.forms[key].dtype]
        return begin < end and bits % 8 == 0 and begin * 8 % bits == 0 and hasattr(torch, dtype)

    def _flat(self, begin: int, end: int, dtype: str) -> Tensor:
        """Returns a part of the mapped file as a row of numbers."""
        bits, name = DTYPES[dtype]
        count = (end - begin) * 8 // bits
        numbers: Any = getattr(torch, name)
        return torch.frombuffer(self._mapped, dtype=numbers, count=count, offset=begin)


def read_file(path: Path) -> RawFile:
    """Opens a safetensors file.

    Raises:
        FileError: As `read_header`, or the library that reads the tensors refuses the file.
    """
    header = read_header(path)
    try:
        if os.name == "nt":  # a mapped file could not be replaced by its owner
            opened, mapped = safetensors.torch.load_file(path), None
        else:
            opened, mapped = safe_open(path, framework="pt"), _map(path)
    except OSError as error:
        raise FileError(_unreadable(path, error)) from error
    except SafetensorError as error:
        raise FileError(_invalid(path, str(error))) from error
    config, notes = _read_config(config_beside(path))
    return RawFile(header, opened, mapped, config, notes)


def _map(path: Path) -> mmap.mmap:
    """Maps a file into memory, which reads nothing of it; what is written there stays there."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite, in one pass and without a copy where possible."""
    if tensor.numel() == 0:
        return True
    # A NaN anywhere is the least and the greatest number. What is in 8 bits knows no order here.
    least, greatest = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return math.isfinite(least.item()) and math.isfinite(greatest.item())


def read_header(path: Path) -> Header:
    """Reads the header of a safetensors file and checks all of it; reads nothing behind it.

    Raises:
        FileError: The file is missing, unreadable, truncated, empty, damaged, or of another format.
    """
    try:
        text, size_bytes = _header_text(path)
    except OSError as error:
        raise FileError(_unreadable(path, error)) from error
    try:
        header = json.loads(text.decode())
        metadata, entries = _split(header)
        "".join(entries).encode()  # half a surrogate pair cannot even be shown
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{path.name} has a damaged header ({error}). Download it again."
        ) from error
    if not entries:
        raise FileError(
            f"{path.name} holds no tensors ({size_bytes} bytes, only a header). "
            "Download or save it again."
        )
    forms: dict[str, Form] = {}
    spans: dict[str, tuple[int, int]] = {}
    start = 8 + len(text)
    for key, entry in entries.items():
        try:
            forms[key], (begin, end) = _form(entry)
        except ValueError as error:
            raise FileError(_invalid(path, f"{key}: {error}")) from error
        spans[key] = (start + begin, start + end)
    expected_bytes = max(end for _, end in spans.values())
    if size_bytes < expected_bytes:
        raise FileError(_truncated(path, expected_bytes, size_bytes))
    if size_bytes > expected_bytes or not _adjoin(spans.values(), start):
        raise FileError(_invalid(path, "its tensors do not fill the file without gap or overlap"))
    return Header(path, metadata, forms, spans)


@lru_cache(maxsize=4096)
def hollow(form: Form) -> Tensor:
    """Returns a tensor of some form without numbers, on the meta device."""
    # A dtype that PyTorch lacks is packed in bytes, which no role takes either.
    dtype = getattr(torch, DTYPES[form.dtype][1], torch.uint8)
    return torch.empty(form.shape, dtype=dtype, device="meta")


def config_beside(path: Path) -> Path:
    """Returns where PEFT keeps the configuration of an adapter file."""
    return path.with_name("adapter_config.json")


def _read_config(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns PEFT's configuration, and a note where there is one that cannot be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, RecursionError) as error:
        return {}, (f"{path.name} beside the file cannot be read and is not used: {error}.",)
    if not isinstance(config, dict):
        return {}, (f"{path.name} beside the file is no configuration and is not used.",)
    return config, ()


def gone(path: Path) -> str:
    """Returns the message for a file that was listed and is not there."""
    return f"{path.name} is not there any more. Refresh the list and choose again."


def _header_text(path: Path) -> tuple[bytes, int]:
    """Returns the JSON of the header and the size of the file."""
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
        if size_bytes < 8 + length:
            raise FileError(_truncated(path, 8 + length, size_bytes))
        return first + file.read(length - 1), size_bytes


def _split(header: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the metadata and the entries of a parsed header.

    Raises:
        ValueError: The metadata are anything but strings.
    """
    entries = dict(header)
    metadata: Any = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise ValueError("__metadata__ does not hold strings")
    return metadata, entries


def _form(entry: object) -> tuple[Form, tuple[int, int]]:
    """Returns what the header says of a tensor, and where it begins and ends.

    Raises:
        ValueError: The entry is of another kind, or contradicts itself.
    """
    if not isinstance(entry, dict):
        raise ValueError("its entry is no object")
    dtype, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"its dtype {dtype!r} is unknown")
    sizes, (begin, end) = _sizes(shape), _sizes(offsets)
    if (end - begin) * 8 != math.prod(sizes) * DTYPES[dtype][0]:
        raise ValueError(f"{dtype} of shape {shape} has not {end - begin} bytes")
    if math.prod(size or 1 for size in sizes) > MAX_ELEMENTS:  # beside a size of 0
        raise ValueError(f"its shape {shape} is too large")
    return Form(dtype, sizes), (begin, end)


def _sizes(values: Any) -> tuple[int, ...]:
    if isinstance(values, list) and set(map(type, values)) <= {int}:
        sizes: tuple[int, ...] = tuple(values)
        if min(sizes, default=0) >= 0:
            return sizes
    raise ValueError(f"{values!r} are no sizes")


def _adjoin(spans: Iterable[tuple[int, int]], reached: int) -> bool:
    """Whether each span begins where the one before it ends, from `reached` on."""
    for begin, end in sorted(spans):
        if begin != reached:
            return False
        reached = end
    return True


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return gone(path)
    return f"{path.name} cannot be read: {error.strerror or error}."


def _invalid(path: Path, reason: str) -> str:
    return f"{path.name} is not a valid safetensors file ({reason}). Download or save it again."


def _truncated(path: Path, expected_bytes: int, size_bytes: int) -> str:
    return (
        f"{path.name} is truncated: it should have {expected_bytes:,} bytes and has {size_bytes:,}. "
        "The download or copy was cut off; fetch it again."
    )
