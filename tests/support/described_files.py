"""Small adapter files with metadata as trainers write it, and pictures to put beside them."""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_described(
    path: Path, metadata: Mapping[str, object] | None = None, *, rank: int = 4
) -> None:
    """Writes a LoRA for SDXL of one layer; values of the metadata that are no strings become JSON."""
    module = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"
    tensors = {
        f"{module}.lora_down.weight": torch.ones(rank, 2048),
        f"{module}.lora_up.weight": torch.ones(640, rank),
    }
    strings = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (metadata or {}).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, strings)


def png(width: int = 4, height: int = 3, colour: tuple[int, int, int] = (200, 80, 40)) -> bytes:
    """Returns a picture of one colour."""
    rows = (b"\0" + bytes(colour) * width) * height
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(rows)),
            _chunk(b"IEND", b""),
        )
    )


def data_address(data: bytes, content_type: str = "image/png") -> str:
    """Returns a picture as ModelSpec keeps it in a header."""
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    length, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
    return length + kind + data + check
