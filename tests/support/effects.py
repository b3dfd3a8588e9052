"""The effect of an adapter on a layer in hook and in patch mode, held against another tool's."""

import torch
from torch import Tensor

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.strength import Placed, hooked_output, merged_bias, merged_weight
from layer_cases import LayerCase


def hooked_effect(case: LayerCase, adapter: Adapter, strength: float = 1.0) -> Tensor:
    """Returns what an adapter adds to the output in hook mode."""
    base = case.module(case.x)
    ready = Placed(adapter.prepared(torch.empty(case.weight.shape, device="meta")), strength)
    return hooked_output(case.x, base, case.layer, [ready]) - base


def merged_effect(case: LayerCase, adapter: Adapter, strength: float = 1.0) -> Tensor:
    """Returns what an adapter adds to the output in patch mode."""
    placed = [Placed(adapter, strength)]
    weight = merged_weight(case.weight, placed)
    bias = merged_bias(case.bias, case.layer.weight_shape[0], placed)
    return case.with_base(weight, bias) - case.module(case.x)


def weight_effect(case: LayerCase, weight: Tensor) -> Tensor:
    """Returns what another weight adds to the output."""
    return case.with_base(weight.to(case.x.dtype), case.bias) - case.module(case.x)


def require_same_effect(case: LayerCase, adapter: Adapter, expected: Tensor) -> None:
    """Checks both modes against the effect that another tool has, or a formula."""
    assert expected.norm() > 0.05 * case.module(case.x).norm()
    for effect in (hooked_effect(case, adapter), merged_effect(case, adapter)):
        assert (effect - expected).norm() < 1e-5 * expected.norm()
