"""What the metadata of an edited file say of its network, in the keys of sd-scripts and LyCORIS.

Source: sd-scripts 0.10.1 `networks/resize_lora.py` and `svd_merge_lora.py`, which write `Dynamic` for a
rank or alpha that differs from layer to layer; LyCORIS' arguments `conv_dim` and `conv_alpha`.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import Any

from ..adapters import Adapter
from ..adapters.diff import Diff
from ..adapters.dora import Dora
from ..adapters.loha import Loha, LohaTucker
from ..adapters.lokr import Lokr
from ..adapters.lora import Lora, LoraTucker
from ..adapters.norm import Norm
from .weight_shapes import has_kernel, told_shape

MODULE = "ss_network_module"
DIM, ALPHA = "ss_network_dim", "ss_network_alpha"
ARGUMENTS = "ss_network_args"
OF_NETWORK = (MODULE, DIM, ALPHA, ARGUMENTS)
LORA_MODULE, OTHER_MODULE = "networks.lora", "lycoris.kohya"
DYNAMIC = "Dynamic"


def network_metadata(adapters: Iterable[Adapter], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Returns the module, ranks and alphas of a file, and the arguments of its network.

    Args:
        adapters: All of the file.
        arguments: What else is to be said; `algo` is a method of LyCORIS.
    """
    every = list(adapters)
    known = all(isinstance(one, Lora | LoraTucker | Diff | Norm) for one in every)
    is_lora = known and any(isinstance(one, Lora | LoraTucker) for one in every)
    module = LORA_MODULE if is_lora and "algo" not in arguments else OTHER_MODULE
    return {MODULE: module, **network_sizes(every, arguments)}


def network_sizes(adapters: Iterable[Adapter], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Returns ranks and alphas of a file, those of kernels among the arguments of the network.

    A layer that has all the ranks of its weight counts as having those of the others.

    Args:
        adapters: All of the file.
        arguments: What else is to be said.
    """
    of_kernels, of_others = _Numbers(), _Numbers()
    for adapter in adapters:
        one = adapter.inner if isinstance(adapter, Dora) else adapter
        if isinstance(one, Lora | LoraTucker | Loha | LohaTucker | Lokr) and one.rank is not None:
            shape = told_shape(one) or ()
            kind = of_kernels if has_kernel(shape) else of_others
            kind.add(one.rank, one.alpha or float(one.rank), shape)
    strings: dict[str, str] = {}
    main = of_others if of_others.has_some else of_kernels
    if main.has_some:
        strings = {DIM: main.rank, ALPHA: main.alpha}
    said = dict(arguments)
    if of_kernels.has_some:
        said |= {"conv_dim": of_kernels.rank, "conv_alpha": of_kernels.alpha}
    return {**strings, ARGUMENTS: json.dumps(said)}


class _Numbers:
    """Ranks and alphas of several layers."""

    def __init__(self) -> None:
        """Begins with none."""
        self._found: set[tuple[int, float]] = set()
        self._full: set[tuple[int, float]] = set()
        """Of layers whose weight has no more ranks."""

    def add(self, rank: int, alpha: float, shape: tuple[int, ...]) -> None:
        is_full = rank >= min(shape[0], prod(shape[1:]))
        (self._full if is_full else self._found).add((rank, alpha))

    @property
    def has_some(self) -> bool:
        return bool(self._found or self._full)

    @property
    def rank(self) -> str:
        return _only({rank for rank, _ in self._found or self._full})

    @property
    def alpha(self) -> str:
        return _only({alpha for _, alpha in self._found or self._full})


def _only(values: Collection[int | float]) -> str:
    return str(*values) if len(values) == 1 else DYNAMIC
