"""Writes an adapter set: the inverse of parsing."""

import torch
from torch import Tensor

from .embeddings import embedding_tensors
from .parse import AdapterSet


def to_tensors(adapter_set: AdapterSet) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a file that holds this set.

    Each role is written with its first spelling, so the spelling of the file that was read may
    change, the names of the modules do not.
    """
    tensors: dict[str, Tensor] = {}
    for module, adapters in adapter_set.adapters.items():
        for adapter in adapters:
            for suffix, value in adapter.stored().items():
                tensors[module + suffix] = torch.as_tensor(value)
    tensors.update(embedding_tensors(adapter_set.embeddings))
    return tensors, dict(adapter_set.metadata.strings)
