"""What a module computes while adapters are on it: its plan, at the strengths of the moment."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layers import Layer
from .plan import LayerPlan
from .strength import Strengths

Running = Callable[[torch.device, torch.dtype], tuple[LayerPlan, Strengths]]
"""Gives the plan of one module for inputs on a device, in a dtype, and the strengths right now."""


class Dispatcher:
    """Stands in for the `forward` of one module and speaks for all adapters on it.

    The saved `forward` computes the base product, so whatever it does about casting, offloading
    or quantised weights stays in force; only where it does none of these can a plan use the weight
    itself. After `retire` it only passes calls on, for the case that somebody else has wrapped it
    meanwhile and it cannot be taken out.
    """

    def __init__(
        self, original: Callable[..., Tensor], layer: Layer, running: Running, *, alone: bool
    ) -> None:
        """Takes what it stands in for, and where its plan is to be had.

        Args:
            original: The module's `forward`.
            layer: The module as a layer.
            running: Asked at every call.
            alone: Whether `original` is the forward of the module's class, and not something that
                somebody put before it.
        """
        self._original = original
        self._layer = replace(layer, run=original, lend_weight=layer.lend_weight if alone else None)
        self._running: Running | None = running
        self._alone = alone

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the output of the module with its adapters."""
        if self._running is None:
            return self._original(*args, **kwargs)
        if not args:  # the input by name
            name, *_ = kwargs
            args = (kwargs.pop(name),)
        x: Tensor
        x, *rest = args
        plan, strengths = self._running(x.device, x.dtype)
        layer = self._layer
        if rest or kwargs:  # which only the module itself understands
            run = partial(_with, self._original, rest, kwargs)
            layer = replace(layer, run=run, lend_weight=None)
        return plan.run(x, layer, strengths, fresh=self._alone)

    @staticmethod
    def below(forward: Callable[..., Any], *, retired_only: bool) -> Callable[..., Any]:
        """Returns what a `forward` is without the dispatchers that stand on it.

        Args:
            forward: Of a dispatcher, or of anything else: that comes back as it is.
            retired_only: Whether to stop at one that still speaks for adapters.
        """
        owner = getattr(forward, "__self__", None)
        while isinstance(owner, Dispatcher) and not (retired_only and owner._running):
            forward = owner._original
            owner = getattr(forward, "__self__", None)
        return forward

    def retire(self) -> None:
        """Lets go of the adapters: from now on calls are passed on unchanged."""
        self._running = None


def _with(
    forward: Callable[..., Tensor], rest: list[Any], named: dict[str, Any], x: Tensor
) -> Tensor:
    return forward(x, *rest, **named)
