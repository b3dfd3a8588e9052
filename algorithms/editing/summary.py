"""What an adapter set consists of, as the reports of all that makes one say it."""

from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from ..errors import counted
from ..formats.parse import AdapterSet
from ..report import rank_span


def method_counts(adapter_set: AdapterSet) -> dict[str, int]:
    """Returns label of a method -> how many adapters are of it, the most frequent first."""
    labels = Counter(one.label for several in adapter_set.adapters.values() for one in several)
    return dict(labels.most_common())


def summary(adapter_set: AdapterSet) -> str:
    """Returns the methods and ranks, for example `LoRA in 6 layers, norm in 1 layer, rank 4 to 8`."""
    counts = method_counts(adapter_set).items()
    found = [f"{label} in {counted(count, 'layer')}" for label, count in counts]
    ranks = rank_span(adapter_set)
    return ", ".join([*found, f"rank {ranks}"] if ranks else found)


def megabytes(tensors: Iterable[Tensor]) -> str:
    """Returns how large tensors are, for example `12.5 MB`."""
    return f"{sum(one.numel() * one.element_size() for one in tensors) / 2**20:.1f} MB"
