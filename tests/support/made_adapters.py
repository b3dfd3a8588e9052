"""Adapters for the small checkpoint, one for each method, and checkpoints they are baked into.

The pack has no part in this file: what it loads is compared with what the tools that make adapters
compute (`made_by_lycoris`, `made_by_peft`), or with formulas in float64 (`written_by_hand`).
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from made_by_lycoris import LYCORIS_METHODS
from made_by_peft import PEFT_METHODS
from making import Change, Made, Method, Target, Task, targets
from small_world import write_atomically
from written_by_hand import HAND_METHODS

METHODS: dict[str, Method] = LYCORIS_METHODS | HAND_METHODS | PEFT_METHODS


@dataclass(frozen=True)
class Applied:
    """A method at its strengths; `rank` cuts a DyLoRA, 0 leaves it whole."""

    method: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    rank: int = 0


def file_name(method: str) -> str:
    """Returns the path of a method's file below a folder of adapters."""
    if METHODS[method].config is None:
        return f"{method}.safetensors"
    return f"{method}/adapter_model.safetensors"


def put_adapter(method: str, checkpoint: Path, folder: Path) -> str:
    """Returns the path of a method's file below a folder, where it is written if it is not there."""
    name = file_name(method)
    if not (folder / name).exists():
        write_adapter(method, checkpoint, folder)
    return name


def write_adapter(method: str, checkpoint: Path, folder: Path) -> None:
    """Writes the adapter file of a method, as the tool that trains it would."""
    made = METHODS[method]
    tensors: dict[str, Tensor] = {}
    for target, adapter in _make_all(method, checkpoint, 0):
        module = target.module_name(made.naming)
        own = {f"{module}.{suffix}": tensor for suffix, tensor in adapter.tensors.items()}
        tensors |= {
            key: _stored(tensor, made.dtype) for key, tensor in (own | adapter.common).items()
        }
    path = folder / file_name(method)
    write_atomically(tensors, path, made.metadata)
    if made.config is not None:
        text = json.dumps(made.config, indent=2, sort_keys=True)
        path.with_name("adapter_config.json").write_text(text, encoding="utf-8")


def bake(
    method: str,
    checkpoint: Path,
    path: Path,
    *,
    strength_model: float,
    strength_clip: float,
    rank: int = 0,
) -> None:
    """Writes the checkpoint with the effect of one adapter in its weights."""
    bake_sum([Applied(method, strength_model, strength_clip, rank)], checkpoint, path)


def bake_sum(applied: Sequence[Applied], checkpoint: Path, path: Path) -> None:
    """Writes the checkpoint with W + sum of strength * change(W), each change from the base."""
    tensors = load_file(checkpoint)
    for one in applied:
        for target, change in changes(one.method, checkpoint, one.rank).items():
            strength = one.strength_model if target.part == "unet" else one.strength_clip
            if strength == 0:
                continue
            tensors[target.weight] = tensors[target.weight] + strength * change.weight
            if change.bias is not None:
                tensors[target.bias] = tensors[target.bias] + strength * change.bias
    write_atomically(tensors, path)


@lru_cache(maxsize=2)
def changes(method: str, checkpoint: Path, rank: int) -> dict[Target, Change]:
    """Returns what a method does to each layer at full strength."""
    return {target: made.change() for target, made in _make_all(method, checkpoint, rank)}


@lru_cache(maxsize=1)
def _make_all(method: str, checkpoint: Path, rank: int) -> tuple[tuple[Target, Made], ...]:
    return tuple(_each_made(method, checkpoint, rank))


def _each_made(method: str, checkpoint: Path, rank: int) -> Iterator[tuple[Target, Made]]:
    made = METHODS[method]
    with safe_open(checkpoint, framework="pt") as file:
        base = _Lazy(file)
        for target in targets():
            if made.selects(target):
                # A layer's numbers depend on the method and its name alone.
                seed = zlib.crc32(f"{method} {target.weight}".encode())
                generator = torch.Generator().manual_seed(seed)
                yield target, made.make(Task(target, target.module(base), generator, rank))


class _Lazy(Mapping[str, Tensor]):
    """The tensors of an opened file, each read when asked for."""

    def __init__(self, file: safe_open) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Tensor:
        return self._file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
