"""What autograd keeps between forward and backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(run: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Returns the bytes that are kept for the gradients, besides those of known tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run()
    assert y.requires_grad
    storages = (one.untyped_storage() for place, one in found.items() if place not in own)
    return sum(storage.nbytes() for storage in storages)
