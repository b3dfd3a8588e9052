"""GLoRA against LyCORIS, the old order against its formula, and how the orders are told apart."""

import pytest
import torch
from torch import Tensor

from adapter_cases import random
from anyadapter.algorithms.adapters.glora import Glora, GloraOld
from anyadapter.algorithms.errors import ShapeError, UndecidedError
from layer_cases import LayerCase, product_cases
from oracles import (
    SINGLE,
    lycoris,
    of_lycoris,
    only,
    read,
    read_all,
    require_effect,
    weight_effect,
)

UNGROUPED = [case for case in SINGLE if case.layer.groups == 1]
"""LyCORIS gives a grouped convolution as many inputs as it has in all groups, and fails."""
WITHOUT_KERNELS = [case for case in product_cases() if set(case.layer.weight_shape[2:]) <= {1}]
RS_LORA = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"rs_lora": "True"}'}


def file_of(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"x.{name}.weight": random(*shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("case", UNGROUPED, ids=lambda case: case.name)
def test_it_equals_the_forward_of_lycoris(case: LayerCase) -> None:
    effect, tensors = of_lycoris(lycoris.glora.GLoRAModule, case, lora_dim=4, alpha=2.0)
    adapter = read(tensors)
    assert isinstance(adapter, Glora)
    assert (adapter.rank, adapter.alpha) == (4, 2.0)
    require_effect(case, adapter, effect)


def test_a_rank_stabilised_one_has_the_effect_of_its_training() -> None:
    case = UNGROUPED[0]
    settings = {"lora_dim": 4, "alpha": 2.0, "rs_lora": True}
    effect, tensors = of_lycoris(lycoris.glora.GLoRAModule, case, **settings)
    adapters = read_all(tensors, RS_LORA)
    require_effect(case, only(adapters), effect)
    assert adapters.notes == (
        "Corrected, as the metadata prove it, in 1 layer: "
        "GLoRA of LyCORIS with rsLoRA: times the root of the rank.",
    )
    as_others = read_all(tensors, RS_LORA, corrections=False)
    require_effect(case, only(as_others), effect / 2)
    assert not as_others.notes


@pytest.mark.parametrize("case", WITHOUT_KERNELS, ids=lambda case: case.name)
def test_the_old_order_equals_its_formula(case: LayerCase) -> None:
    outputs, inputs, *ones = case.layer.weight_shape
    tensors = file_of(
        a1=(4, inputs, *ones), a2=(inputs, 4, *ones), b1=(4, inputs, *ones), b2=(outputs, 4, *ones)
    )
    adapter = read(tensors | {"x.alpha": torch.tensor(2.0)})
    assert isinstance(adapter, GloraOld)
    assert adapter.rank == 4
    a1, a2, b1, b2 = (tensors[f"x.{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    weight = case.weight.flatten(1)
    changed = weight + 2 / 4 * (weight @ a2 @ a1 + b2 @ b1)
    require_effect(case, adapter, weight_effect(case, changed.reshape(case.weight.shape)))


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_the_weight_tells_the_order_on_a_square_layer(old: bool) -> None:
    # Rank 4 on 6 x 6 in one order has the shapes of rank 6 on 4 x 4 in the other.
    tensors = file_of(a1=(6, 4), a2=(4, 6), b1=(6, 4), b2=(4, 6)) | {"x.alpha": torch.tensor(3.0)}
    adapter = read(tensors)
    assert adapter.rank == 4
    a1, a2, b1, b2 = (tensors[f"x.{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    weight = random(4, 4) if old else random(6, 6)
    as_new = 3 / 4 * (random(6, 6) @ a1 @ a2 + b1 @ b2)
    as_old = 3 / 6 * (random(4, 4) @ a2 @ a1 + b2 @ b1)
    expected = as_old if old else as_new
    torch.testing.assert_close(adapter.delta_weight(weight), expected)


def test_the_order_on_a_square_layer_of_its_own_rank_is_not_guessed() -> None:
    adapter = read(file_of(a1=(4, 4), a2=(4, 4), b1=(4, 4), b2=(4, 4)))
    with pytest.raises(UndecidedError, match="all 4 x 4"):
        adapter.delta_weight(random(4, 4))


def test_factors_that_do_not_chain_are_named() -> None:
    with pytest.raises(ShapeError, match="so R is 3 here, but 4 in a1"):
        read(file_of(a1=(6, 4), a2=(3, 6), b1=(8, 4), b2=(4, 6)))


def test_a_layer_of_other_inputs_is_refused() -> None:
    adapter = read(file_of(a1=(6, 4), a2=(4, 6), b1=(8, 4), b2=(4, 6)))
    with pytest.raises(ShapeError, match=r"changes 6 inputs, the weight is \[8, 5\]"):
        adapter.delta_weight(torch.rand(8, 5))


def test_a_missing_alpha_is_said() -> None:
    (note,) = read_all(file_of(a1=(6, 4), a2=(4, 6), b1=(8, 4), b2=(4, 6))).notes
    assert note == "Nothing in the file says it, so it was assumed for 1 layer: scale 1."
