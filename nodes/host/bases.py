"""The base weights of a model, one at a time, for whoever looks at changes of them."""

from typing import Any

from torch import Tensor, nn

from ...algorithms.binding import Bound
from .weights import Weights


def module_of(part: Any) -> nn.Module:
    """Returns the module tree of a MODEL or CLIP, by whose keys bindings name their targets."""
    module = getattr(part, "cond_stage_model", None)
    return part.model if module is None else module


def base_of(weights: Weights, item: Bound) -> tuple[Tensor | None, Tensor | None]:
    """Returns weight and bias that an adapter changes, on the CPU in float32, its rows of them.

    No weight where its numbers cannot be had: it is quantised in a way that is unknown here.
    """
    target = item.target
    weight = weights.read(target.weight)
    bias = weights.read(target.bias) if target.parameter == "weight" else None
    if target.rows is not None:
        weight = None if weight is None else target.rows.take(weight)
        bias = None if bias is None else target.rows.take(bias)
    return weight, bias
