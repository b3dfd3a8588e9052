"""Factors near 1 keep their effect in a hook of low precision, which would round them to 1."""

import pytest
import torch

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.ia3 import Ia3Peft
from anyadapter.algorithms.adapters.road import Road
from anyadapter.algorithms.strength import Placed
from layer_cases import LayerCase, product_cases

NEAR_ONE = torch.full((8,), 1.003)
SMALL: dict[str, Adapter] = {
    "(IA)^3 of PEFT": Ia3Peft(NEAR_ONE.reshape(8, 1)),
    "RoAd": Road(torch.zeros(4), NEAR_ONE[:4], group=2),
}


def linear() -> LayerCase:
    return next(case for case in product_cases() if case.name == "linear, no bias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_a_small_change_reaches_the_output(name: str, dtype: torch.dtype) -> None:
    # In bfloat16 nothing of it was left.
    case = linear()
    low = case.to(dtype)
    exact = case.prepared(Placed(SMALL[name], 1.0)).adapter
    ready = low.prepared(Placed(SMALL[name], 1.0)).adapter
    expected = exact.delta_output(case.x, case.module(case.x), case.layer)
    found = ready.delta_output(low.x, low.module(low.x), low.layer)
    assert (found.double() - expected).norm() < 0.02 * expected.norm()
