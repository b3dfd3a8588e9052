"""What a module computes while adapters are on it: its own output, then the rule of strength."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .layers import Layer
from .strength import Placed, hooked_output

PlacedOn = Callable[[torch.device, torch.dtype], Sequence[Placed]]
"""Gives the adapters of one module with their tensors on a device, in a dtype."""


class Dispatcher:
    """Stands in for the `forward` of one module and speaks for all adapters on it.

    The saved `forward` computes the base product, so whatever it does about casting, offloading
    or quantised weights stays in force. After `retire` it only passes calls on, for the case that
    somebody else has wrapped it meanwhile and it cannot be taken out.
    """

    def __init__(self, original: Callable[..., Tensor], layer: Layer, placed_on: PlacedOn) -> None:
        self._original = original
        self._layer = replace(layer, run=original)
        self._placed_on: PlacedOn | None = placed_on

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the output of the module with its adapters."""
        y = self._original(*args, **kwargs)
        if self._placed_on is None:
            return y
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        return hooked_output(x, y, self._layer, self._placed_on(x.device, x.dtype))

    def retire(self) -> None:
        """Lets go of the adapters: from now on calls are passed on unchanged."""
        self._placed_on = None
