"""Where the results of training go: adapters in the host's LoRA folder, and states to go on from.

    cat.safetensors                     the adapter
    cat-step00001000.safetensors        the adapter after 1000 steps
    cat-state/resume.state              what it takes to go on; safetensors under another ending, so
                                        that the host does not list it among the LoRA files

A run owns its name from its beginning: whoever makes the folder `cat-state` first has it.
"""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, uint8

from ...algorithms.errors import StorageError, TrainingError
from . import saved_files
from .saved_files import (
    STATE_FOLDER,
    adapter_file,
    is_taken,
    list_anew,
    lora_folder,
    numbered,
    write_over,
)

STATE_FILE = "resume.state"
STATE_VERSION = "anyadapter training state 1"


@contextmanager
def _of_training(advice: str = "") -> Generator[None]:
    """Makes errors of saving those of a training.

    Args:
        advice: What to do when the cause is removed.

    Raises:
        TrainingError: Something cannot be saved.
    """
    try:
        yield
    except StorageError as error:
        raise TrainingError(f"{error}{advice}") from error


GO_ON = " Then go on from the last state that was written."


def checked_name(name: str) -> str:
    """Returns a name for an adapter, its folders parted by slashes, as it is used.

    Raises:
        TrainingError: It leads out of the LoRA folder, or is no name on some system.
    """
    with _of_training():
        return saved_files.checked_name(name)


def free_name(name: str) -> str:
    """Returns a name that is nobody's, with a number if need be, and makes it this run's own.

    Its folder for states is made; `release` takes an empty one away again.

    Args:
        name: As the user wrote it.

    Raises:
        TrainingError: It cannot be a name, or nothing can be written there.
    """
    names = numbered(checked_name(name))
    return next(free for free in names if not is_taken(free) and _claimed(free))


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
    with _of_training():
        return adapter_file(name)


def state_folder(name: str) -> Path:
    """Returns the path of the folder for states of a name.

    Raises:
        TrainingError: The host has no LoRA folder.
    """
    with _of_training():
        return lora_folder() / f"{name}{STATE_FOLDER}"


def write_adapter(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes an adapter, whole or not at all; the host lists it at once.

    Raises:
        TrainingError: It cannot be written, for want of space for example; an old one is still there.
    """
    with _of_training(GO_ON):
        write_over(path, tensors, {"format": "pt", **metadata})
    list_anew()


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
    path = state_folder(name) / STATE_FILE
    with _of_training(GO_ON):
        write_over(path, tensors, header)


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


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns a hash of all that a state holds."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(uint8).numpy().data)
    return total.hexdigest()
