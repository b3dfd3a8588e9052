"""Writes an adapter set: the inverse of parsing."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .embeddings import embedding_tensors
from .parse import COMMON, AdapterSet


def to_tensors(adapter_set: AdapterSet) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a file that holds this set.

    Each role is written with its first spelling, so the spelling of the file that was read may
    change, the names of the modules do not. A tensor that serves all modules is written once, where
    PEFT has it; its configuration goes into the header.
    """
    tensors: dict[str, Tensor] = {}
    for module, adapters in adapter_set.adapters.items():
        for adapter in adapters:
            for suffix, value in adapter.stored().items():
                tensor = torch.as_tensor(value)
                key = _common_key(module, suffix) if suffix in COMMON else module + suffix
                if tensors.setdefault(key, tensor) is not tensor:
                    tensors[module + suffix] = tensor  # another file's, joined to this set
    tensors.update(embedding_tensors(adapter_set.embeddings))
    strings = dict(adapter_set.metadata.strings)
    if adapter_set.metadata.config:
        strings["lora_adapter_metadata"] = json.dumps(adapter_set.metadata.config)
    return tensors, strings


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors on the CPU of which none has memory that is another's, as the format needs it."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def _common_key(module: str, suffix: str) -> str:
    """Returns where a tensor stands that serves all modules of a model: beside the model's name."""
    start, dot, _ = module.partition(".")
    return start + suffix if dot else suffix[1:]
