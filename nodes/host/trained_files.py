"""Where the results of training go: adapters in the host's LoRA folder, and states to go on from.

    cat.safetensors                     the adapter
    cat-step00001000.safetensors        the adapter after 1000 steps
    cat-state/resume.state              what it takes to go on; safetensors under another ending, so
                                        that the host does not list it among the LoRA files

A run owns its name from its beginning: whoever makes the folder `cat-state` first has it.
"""

import errno
import glob
import hashlib
import itertools
import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from ...algorithms.errors import TrainingError
from ...algorithms.formats.write import apart
from .files import FOLDER
from .whole_files import replacing

ENDING = ".safetensors"
STATE_FOLDER = "-state"
STATE_FILE = "resume.state"
STATE_VERSION = "anyadapter training state 1"
HEADER_BYTES = 2**20
"""More than the header of an adapter takes."""

FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
"""Characters that no name has on Windows, whose folders are shared with other systems."""
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that mean a device there."""
LONGEST = 120
"""Characters of a part of a name: with number, step and ending it is still a name everywhere."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checked_name(name: str) -> str:
    """Returns a name for an adapter, its folders parted by slashes, as it is used.

    Raises:
        TrainingError: It leads out of the LoRA folder, or is no name on some system.
    """
    parts = [part.strip() for part in name.strip().replace("\\", "/").split("/")]
    parts[-1] = parts[-1].removesuffix(ENDING)
    for part in parts:
        why = _why_not(part)
        if why:
            raise TrainingError(
                f'"{name}" cannot be the name of an adapter: {why}. Write a name, with folders before '
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
    if len(part) > LONGEST:
        return f"a part of it has more than {LONGEST} characters"
    found = FORBIDDEN.search(part)
    if found:
        return f"no name has {found[0]!r} on Windows"
    if DEVICES.fullmatch(part):
        return f"{part} is a device on Windows"
    return ""


def free_name(name: str) -> str:
    """Returns a name that is nobody's, with a number if need be, and makes it this run's own.

    Its folder for states is made; `release` takes an empty one away again.

    Args:
        name: As the user wrote it.

    Raises:
        TrainingError: It cannot be a name, or nothing can be written there.
    """
    names = numbered(checked_name(name))
    return next(free for free in names if not _is_taken(free) and _claimed(free))


def numbered(name: str) -> Iterator[str]:
    """Returns a name, and without end the same with a number, for whoever looks for a free one."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _claimed(name: str) -> bool:
    """Whether a name is this run's own now; not if somebody was faster.

    Raises:
        TrainingError: Nothing can be written there.
    """
    folder = state_folder(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        inner = folder if folder.parent.is_dir() else folder.parent
        if not inner.is_dir():
            raise TrainingError(
                f"Where the folder {inner} is needed is a file. Choose another name."
            ) from None
        return False
    except OSError as error:
        raise TrainingError(
            f"Nothing can be written to {folder.parent} ({error}). Give ComfyUI leave to write there."
        ) from error
    return True


def release(name: str) -> None:
    """Gives up the folder for states of a run that has none."""
    with suppress(OSError):  # there is one
        state_folder(name).rmdir()


def checkpoint_name(name: str, step: int) -> str:
    """Returns the name of an adapter that is written after some steps."""
    return f"{name}-step{step:08d}"


def output_path(name: str) -> Path:
    """Returns the path of the adapter of a name, in the first of the host's LoRA folders.

    Raises:
        TrainingError: The host has no LoRA folder.
    """
    return _folder() / f"{name}{ENDING}"


def state_folder(name: str) -> Path:
    """Returns the path of the folder for states of a name.

    Raises:
        TrainingError: The host has no LoRA folder.
    """
    return _folder() / f"{name}{STATE_FOLDER}"


def write_adapter(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes an adapter, whole or not at all; the host lists it at once.

    Raises:
        TrainingError: It cannot be written, for want of space for example; an old one is still there.
    """
    _write(path, tensors, {"format": "pt", **metadata})
    # The host looks at the times of folders, which some disks keep in steps of two seconds.
    folder_paths.filename_list_cache.pop(FOLDER, None)


def write_state(name: str, tensors: Mapping[str, Tensor], text: str) -> None:
    """Writes what it takes to go on, so that at any moment the old or the new state is there.

    Args:
        name: Of the run.
        tensors: Its tensors.
        text: All else.

    Raises:
        TrainingError: It cannot be written; the old one is still there.
    """
    header = {"version": STATE_VERSION, "state": text, "sha256": _digest(tensors, text)}
    _write(state_folder(name) / STATE_FILE, tensors, header)


def read_state(name: str) -> tuple[dict[str, Tensor], str]:
    """Returns what `write_state` has written last.

    Raises:
        TrainingError: There is none, or it is damaged.
    """
    path = state_folder(checked_name(name)) / STATE_FILE
    if not path.is_file():
        raise TrainingError(
            f"There is nothing to go on from: {path} does not exist. States are written by a training "
            "that is told to keep them."
        )
    what = f"{path} cannot be used to go on from:"
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            # Copies, since a file that is mapped cannot be replaced on Windows.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{what} it is damaged ({error}). Start anew from the adapter."
        ) from error
    if header.get("version") != STATE_VERSION:
        raise TrainingError(f"{what} it is no state of this version of Any Adapter.")
    text = header.get("state", "")
    if header.get("sha256") != _digest(tensors, text):
        raise TrainingError(
            f"{what} its contents are not what was written. Start anew from the adapter."
        )
    return tensors, text


def state_time(name: str) -> float | None:
    """Returns when the state of a name was written last, as a Unix time; None where there is none."""
    try:
        return (state_folder(checked_name(name)) / STATE_FILE).stat().st_mtime
    except (OSError, TrainingError):
        return None


def _folder() -> Path:
    folders = folder_paths.get_folder_paths(FOLDER)
    if not folders:
        raise TrainingError("ComfyUI has no folder for LoRA files, so that nothing can be saved.")
    return Path(folders[0])


def _is_taken(name: str) -> bool:
    """Whether there is an adapter of a name, or one after some steps, in any of the LoRA folders."""
    checkpoints = f"{glob.escape(name)}-step*{ENDING}"
    folders = map(Path, folder_paths.get_folder_paths(FOLDER))
    return any(
        (folder / f"{name}{ENDING}").exists() or any(folder.glob(checkpoints)) for folder in folders
    )


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    needed = size + HEADER_BYTES + sum(map(len, header.values()))
    with _explained(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, "the disk is full")
        with replacing(path) as new:
            new.write_bytes(b"")
            mode = new.stat().st_mode  # what others may do with it, as with any new file
            save_file(apart(tensors), new, header)
            new.chmod(mode)


@contextmanager
def _explained(path: Path, needed: int) -> Generator[None]:
    """Says what to do where a file cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in NO_SPACE or "os error 28" in str(error):
            raise TrainingError(
                f"{path.name} could not be written: it needs {_megabytes(needed)} MB, and there are "
                f"{_megabytes(shutil.disk_usage(path.parent).free)} MB free in {path.parent}. Free "
                "some space there, and go on from the last state that was written."
            ) from error
        raise TrainingError(
            f"{path.name} could not be written to {path.parent} ({error}). Close what has the file "
            "open, give ComfyUI leave to write there, and go on from the last state that was written."
        ) from error


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns a hash of all that a state holds."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(uint8).numpy().data)
    return total.hexdigest()
