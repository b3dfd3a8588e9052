"""The files that benchmarks run on: a base directory with checkpoints and adapters."""

import zlib
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

import adapter_files
from base_directory import (
    ROOT,
    cached_checkpoint,
    cached_large_checkpoint,
    link_or_copy,
    link_pack,
)
from small_world import LARGE_UNET, SMALL_UNET

Size = Literal["small", "large"]

FOLDER = ROOT / ".host" / "bench"
BASE = FOLDER / "base"
"""The base directory of the ComfyUI that is measured."""
ADAPTERS = BASE / "models" / "loras"
SHAPES = {"small": SMALL_UNET, "large": LARGE_UNET}


def make_base(size: Size) -> None:
    """Makes the base directory, with the pack and a checkpoint in it."""
    for folder in ("models/checkpoints", "models/loras", "custom_nodes", "input", "output"):
        (BASE / folder).mkdir(parents=True, exist_ok=True)
    link_pack(BASE / "custom_nodes" / "anyadapter")
    if not checkpoint(size).exists():
        link_or_copy(_source(size), checkpoint(size))


def checkpoint(size: Size) -> Path:
    """Returns where the checkpoint of a size is in the base directory."""
    return BASE / "models" / "checkpoints" / _source(size).name


def adapter(kind: str, size: Size, number: int = 0) -> str:
    """Returns the name of an adapter file for the checkpoint of a size, made if it is not there.

    Args:
        kind: A key of `adapter_files.KINDS`.
        size: Of the checkpoint.
        number: Another one is another file of the same kind, with other numbers in it.
    """
    assert adapter_files.__file__ is not None
    made_by = zlib.crc32(Path(adapter_files.__file__).read_bytes())
    name = f"{kind}-{number}-{size}-{made_by:08x}.safetensors"
    if not (ADAPTERS / name).exists():
        print(f"Making {name} ...", flush=True)
        adapter_files.write_adapter(
            *(kind, ADAPTERS / name),
            number=number,
            checkpoint=checkpoint(size),
            shape=SHAPES[size],
        )
    return name


def bytes_in(name: str, dtype: torch.dtype) -> int:
    """Returns how large the tensors of an adapter file are in another dtype."""
    return sum(tensor.numel() for tensor in load_file(ADAPTERS / name).values()) * dtype.itemsize


def _source(size: Size) -> Path:
    return cached_checkpoint() if size == "small" else cached_large_checkpoint()
