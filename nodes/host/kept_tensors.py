"""Tensors that another run will ask for again, on disk under a digest of what they were made from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ...algorithms.errors import StorageError
from ...algorithms.formats.write import apart
from .whole_files import replace_bytes


class KeptTensors:
    """A folder of such files. What they were made from is told by texts, and never changes."""

    def __init__(self, folder: Path, form: str, what: str) -> None:
        """Takes the folder, which is made.

        Args:
            folder: Where the files are.
            form: Part of every key: another one where another version would make other tensors.
            what: The user's word for the contents.
        """
        self._folder, self._form, self._what = folder, form, what

    def read(self, *made_from: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Returns tensors and header; None where no file is, or one that was cut off by a crash."""
        try:
            with safe_open(self._path(made_from), "pt") as file, torch.inference_mode(False):
                # Copies, since a file that is mapped cannot be replaced on Windows.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except (OSError, SafetensorError):
            return None

    def write(
        self,
        *made_from: str,
        tensors: Mapping[str, Tensor],
        header: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a file, whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        path = self._path(made_from)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, save(apart(tensors), dict(header) if header else None))
        except OSError as error:
            raise StorageError(
                f"{self._what} cannot be kept in {self._folder} ({error.strerror}): make room there, "
                "or keep them in memory."
            ) from error

    def _path(self, made_from: tuple[str, ...]) -> Path:
        parts = "\n".join((self._form, *made_from))
        key = hashlib.blake2b(parts.encode(), digest_size=20).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"


def digest_of_weights(model: nn.Module, also: str) -> str:
    """Returns what changes when the weights of a model do, or something else that is told.

    Args:
        model: The model.
        also: What its results depend on besides.
    """
    digest = hashlib.blake2b(also.encode(), digest_size=20)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """Returns the bytes of a tensor's numbers, in their order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
