"""What an adapter is by its content, whatever its file is called and wherever it stands in a list."""

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter


def digest(value: Adapter) -> bytes:
    """Returns a digest of all fields of an adapter: equal for those of the same bits only."""
    found = hashlib.blake2b(digest_size=16)
    _take(found, value)
    return found.digest()


def _take(found: "hashlib.blake2b", value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{list(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().data)
    elif is_dataclass(value):
        found.update(type(value).__name__.encode())
        for one in fields(value):
            found.update(one.name.encode())
            _take(found, getattr(value, one.name))
    else:
        found.update(repr(value).encode())
