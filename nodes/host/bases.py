"""The base weights of a model, one at a time, for whoever looks at changes of them."""

from typing import Any

import torch
from torch import Tensor, nn

from ...algorithms.binding import Bound
from ...algorithms.errors import UnsupportedLayerError
from .layers import layer_of


def module_of(part: Any) -> nn.Module:
    """Returns the module tree of a MODEL or CLIP, by whose keys bindings name their targets."""
    module = getattr(part, "cond_stage_model", None)
    return part.model if module is None else module


def base_of(root: nn.Module, item: Bound) -> tuple[Tensor | None, Tensor | None]:
    """Returns weight and bias that an adapter changes, on the CPU in float32.

    No weight where its numbers cannot be had: it is quantised in a way that is unknown here.
    """
    owner = root.get_submodule(item.target.module)
    layer = layer_of(owner) if item.target.parameter == "weight" else None
    like = torch.empty(0)
    if layer is None:
        weight = getattr(owner, item.target.parameter)
        if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
            return None, None
        weight = weight.detach().to(like)
        return (weight if item.target.rows is None else item.target.rows.take(weight)), None
    if item.target.rows is not None:
        layer = layer.narrowed(item.target.rows)
    try:
        return layer.weight(like), layer.bias(like)
    except UnsupportedLayerError:
        return None, None
