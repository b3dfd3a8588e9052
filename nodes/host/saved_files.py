"""Adapters that are saved: names in the host's LoRA folder, and files that are whole or not there.

Whoever saves takes a name that is nobody's, with a number if need be. The name is taken in one step
when all is written, so that two that save at once, in whatever processes, get two files.
"""

import errno
import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

import folder_paths
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...algorithms.errors import StorageError
from ...algorithms.formats.write import apart
from .files import FOLDER
from .whole_files import gone_on_failure, put_where_nothing_is, replacing

ENDING = ".safetensors"
STATE_FOLDER = "-state"
"""A folder with this behind a name says that a training has the name."""
HEADER_BYTES = 2**20
"""More than the header of an adapter takes."""
LEFT_AFTER = 24 * 3600.0
"""Seconds after which a file that nobody writes to is what a crash has left."""

FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
"""Characters that no name has on Windows, whose folders are shared with other systems."""
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that mean a device there."""
HALVES = re.compile(r"[\ud800-\udfff]")
"""Characters that are only half of one: no file system knows how to write them."""
LONGEST = 200
"""Bytes of a part of a name, as most disks count: with number, step and ending no more than 255."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_IN_RUST = (39, 112) if os.name == "nt" else NO_SPACE
"""What safetensors calls an `os error`: the system's own numbers, which on Windows are no `errno`."""


def checked_name(name: str) -> str:
    """Returns a name for an adapter, its folders parted by slashes, as it is used.

    Raises:
        StorageError: It leads out of the LoRA folder, or is no name on some system.
    """
    parts = [part.strip() for part in name.strip().replace("\\", "/").split("/")]
    parts[-1] = parts[-1].removesuffix(ENDING)
    for part in parts:
        why = _why_not(part)
        if why:
            shown = HALVES.sub("\N{REPLACEMENT CHARACTER}", name)
            raise StorageError(
                f'"{shown}" cannot be the name of an adapter: {why}. Write a name, with folders before '
                "it if you like: styles/cat."
            )
    return "/".join(parts)


def _why_not(part: str) -> str:
    """Returns why a part of a name is refused; empty if it is not."""
    if not part:
        return "a part of it is empty"
    if part[0] == ".":
        return "a part of it begins with a dot"
    if part[-1] == ".":
        return "a part of it ends with a dot"
    if HALVES.search(part):
        return "a character of it is only half of one"
    if len(part.encode()) > LONGEST:
        return (
            f"a part of it is longer than {LONGEST} bytes, of which many letters have two to four"
        )
    found = FORBIDDEN.search(part)
    if found:
        return f"no name has {found[0]!r} on Windows"
    if DEVICES.fullmatch(part):
        return f"{part} is a device on Windows"
    return ""


def dated_name(name: str) -> str:
    """Returns a name as it is used, with what the host puts in for `%year%` and the like.

    Raises:
        StorageError: As `checked_name`, or there is no LoRA folder or it cannot be used.
    """
    name = checked_name(name)
    if "%" not in name:
        return name
    folder = os.path.abspath(lora_folder())  # noqa: PTH100, the host compares it as a string
    with _explained(Path(folder, name)):
        *_, filled = folder_paths.get_save_image_path(name, folder)
    return checked_name(filled)


def numbered(name: str) -> Iterator[str]:
    """Returns a name, and without end the same with a number, for whoever looks for a free one."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def lora_folder() -> Path:
    """Returns the folder that adapters are written to: the first of the host's.

    Raises:
        StorageError: The host has no LoRA folder.
    """
    folders = folder_paths.get_folder_paths(FOLDER)
    if not folders:
        raise StorageError("ComfyUI has no folder for LoRA files, so that nothing can be saved.")
    return Path(folders[0])


def adapter_file(name: str) -> Path:
    """Returns the path that an adapter of a name is written to.

    Raises:
        StorageError: The host has no LoRA folder.
    """
    return lora_folder() / f"{name}{ENDING}"


def is_taken(name: str) -> bool:
    """Whether there is an adapter of a name, or one after some steps, in any of the LoRA folders."""
    checkpoints = f"{escape(name)}-step*{ENDING}"
    folders = map(Path, folder_paths.get_folder_paths(FOLDER))
    return any(
        (folder / f"{name}{ENDING}").exists() or any(folder.glob(checkpoints)) for folder in folders
    )


def write_new(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Writes an adapter under a name that is nobody's, and returns that name.

    The host lists it at once. Whatever goes wrong, no file of it is left.

    Args:
        name: As `checked_name` gives it; a number is put behind it where it is taken.
        tensors: What the file holds.
        metadata: What its header says.

    Raises:
        StorageError: It cannot be written, for want of space for example.
    """
    wanted = adapter_file(name)
    _clear_leftovers(wanted)
    new = wanted.with_name(f"{wanted.stem}.{secrets.token_hex(4)}.tmp")
    header = {"format": "pt", **metadata}
    with _explained(wanted, _size(tensors, header)), gone_on_failure(new):
        _fill(new, tensors, header)
        names = (one for one in numbered(name) if not _has_owner(one))
        free = next(one for one in names if put_where_nothing_is(new, adapter_file(one)))
    list_anew()
    return free


def write_over(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file in place of one that may be there, whole or not at all.

    Raises:
        StorageError: It cannot be written, for want of space for example; an old one is still there.
    """
    with _explained(path, _size(tensors, metadata)), replacing(path) as new:
        _fill(new, tensors, metadata)


def list_anew() -> None:
    """Makes the host look at its LoRA folders when it lists them next.

    By itself it looks at the times of folders, which some disks keep in steps of two seconds.
    """
    folder_paths.filename_list_cache.pop(FOLDER, None)


def _has_owner(name: str) -> bool:
    """Whether a name is that of a file, or of a training, which may not have written one yet."""
    return is_taken(name) or (lora_folder() / f"{name}{STATE_FOLDER}").exists()


def _clear_leftovers(path: Path) -> None:
    """Takes away what crashes have left of this name."""
    for left in path.parent.glob(f"{escape(path.stem)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):  # somebody else was faster, or has it open
            if time.time() - left.stat().st_mtime > LEFT_AFTER:
                left.unlink()


def _size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Returns about how many bytes a file takes, rather too many."""
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return numbers + HEADER_BYTES + sum(map(len, metadata.values()))


def _fill(new: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes to a file that nobody else has."""
    new.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(new.parent).free < _size(tensors, metadata):
        raise OSError(errno.ENOSPC, "the disk is full")
    new.write_bytes(b"")
    mode = new.stat().st_mode  # what others may do with it, as with any new file
    save_file(apart(tensors), new, dict(metadata))
    new.chmod(mode)


@contextmanager
def _explained(path: Path, needed: int = HEADER_BYTES) -> Generator[None]:
    """Says what to do where a file cannot be written.

    Raises:
        StorageError: It cannot.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _tells_of_no_space(error):
            raise StorageError(
                f"{path.name} could not be written: it needs {_megabytes(needed)} MB{_room(path)}. "
                "Free some space there."
            ) from error
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise StorageError(
                f"{path.name} could not be written to {path.parent}: such a name is too long for the "
                "disk. Choose a shorter one."
            ) from error
        raise StorageError(
            f"{path.name} could not be written to {path.parent} ({error}). Close what has the file "
            "open, and give ComfyUI leave to write there."
        ) from error


def _tells_of_no_space(error: Exception) -> bool:
    in_rust = (
        re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    )
    if in_rust:
        return int(in_rust[1]) in NO_SPACE_IN_RUST
    return getattr(error, "errno", None) in NO_SPACE


def _room(path: Path) -> str:
    """Returns the folder that a path leads to, and how much is free there if that can be had."""
    with suppress(OSError):  # a disk that was taken out, for example
        for folder in path.parents:
            if folder.is_dir():
                return f", and there are {_megabytes(shutil.disk_usage(folder).free)} MB free in {path.parent}"
    return f" in {path.parent}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"
