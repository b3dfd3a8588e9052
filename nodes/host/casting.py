"""Frozen layers that make their weight anew at each call, and once more for the gradient.

A weight that is quantised, or stored in float16 or fp8, or lies on the CPU, or is patched on the way, is
a new tensor at each call. The gradient of the input needs it, so autograd keeps it until then: of a whole model that
is a second set of weights, in the wider dtype. Here it keeps none.
"""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...algorithms.layers import Layer
from .layers import ORDINARY, is_of_torch_or_host, layer_of

Forward = Callable[[Tensor], Tensor]


def casting_forwards(model: nn.Module) -> Generator[tuple[nn.Module, Forward]]:
    """Yields the layers whose weight may be made at a call, each with a `forward` that keeps none."""
    for module in model.modules():
        if not hasattr(module, "weight_function") or not is_of_torch_or_host(module):
            continue
        if "forward" in module.__dict__:  # somebody adds to what it computes, with gradients
            continue
        layer = layer_of(module)
        if layer is None or layer.kind not in ("linear", "conv") or layer.padding_mode != "zeros":
            continue
        yield module, partial(_forward, module, layer, module.forward)


def _forward(module: Any, layer: Layer, original: Forward, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or not x.requires_grad or not _is_made(module, x):
        return original(x)
    y: Tensor = _Cast.apply(x, layer, original)  # pyright: ignore[reportAssignmentType]
    return y


def _is_made(module: Any, x: Tensor) -> bool:
    """Whether the weight that an input meets is another tensor than the module's own."""
    weight: Tensor = module.weight
    if type(weight) not in ORDINARY:
        return True
    is_own = (weight.dtype, weight.device) == (x.dtype, x.device)
    return not is_own or bool(module.weight_function)


class _Cast(torch.autograd.Function):
    """A layer, with its gradient by its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, original: Forward) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return original(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return ctx.layer.gradient_of_input(gradient, ctx.shape), None, None
