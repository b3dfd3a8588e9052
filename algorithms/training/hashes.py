"""Hashes by which tools know a file: of its tensors, whatever its metadata, and of a base model.

Source: sd-scripts 0.10.1, `library/train_util.py` and `library/model_util.py`.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..formats.write import apart

LEGACY_START = 2**20
LEGACY_BYTES = 2**16
"""Of a file, the part of which AUTOMATIC1111's first hash is."""
LEGACY_DIGITS = 8


def with_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns metadata of an adapter with the hashes of its tensors.

    `sshs_model_hash` is the SHA-256 of what stands behind the header. `sshs_legacy_hash` is part of
    that of the file as it would be with the keys `ss_` alone, so that it depends on these.

    Args:
        metadata: What the file says of itself.
        tensors: What it holds.
    """
    own = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    data = memoryview(safetensors.torch.save(apart(tensors), own))
    (length,) = struct.unpack("<Q", data[:8])
    whole = hashlib.sha256(data[8 + length :]).hexdigest()
    return {
        **metadata,
        "sshs_model_hash": whole,
        "sshs_legacy_hash": _legacy(data[LEGACY_START : LEGACY_START + LEGACY_BYTES]),
        **({"modelspec.hash_sha256": f"0x{whole}"} if "modelspec.title" in metadata else {}),
    }


def file_hashes(path: Path) -> tuple[str, str]:
    """Returns AUTOMATIC1111's first hash of a file, and its SHA-256.

    They are `ss_sd_model_hash` and `ss_new_sd_model_hash` of a base model.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        file.seek(LEGACY_START)
        legacy = _legacy(file.read(LEGACY_BYTES))
        file.seek(0)
        whole = hashlib.sha256()
        while piece := file.read(2**20):
            whole.update(piece)
    return legacy, whole.hexdigest()


def _legacy(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:LEGACY_DIGITS]
