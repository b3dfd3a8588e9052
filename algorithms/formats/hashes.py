"""Hashes by which tools know a file: of its tensors, whatever its metadata.

Source: sd-scripts 0.10.1, `library/train_util.py` and `library/model_util.py`.
"""

import hashlib
import struct
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from .write import apart

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
    legacy = hashlib.sha256(data[LEGACY_START : LEGACY_START + LEGACY_BYTES]).hexdigest()
    specified = any(key in metadata for key in ("modelspec.title", "modelspec.hash_sha256"))
    return {
        **metadata,
        "sshs_model_hash": whole,
        "sshs_legacy_hash": legacy[:LEGACY_DIGITS],
        **({"modelspec.hash_sha256": f"0x{whole}"} if specified else {}),
    }
