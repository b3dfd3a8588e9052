"""The state of a training through a real safetensors file."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from anyadapter.algorithms.training.state_files import pack, unpack


def through_a_file(state: object, path: Path) -> Any:
    """Writes a state to a file, and returns what is read from it."""
    tensors, text = pack(state)
    save_file(tensors, path, {"state": text})
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
        return unpack(tensors, file.metadata()["state"])
