"""(IA)^3 against LyCORIS and PEFT, and which side a file means."""

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.adapters.ia3 import Ia3, Ia3Peft
from anyadapter.algorithms.errors import FormatError, ShapeError, UndecidedError
from anyadapter.algorithms.formats.parse import parse_tensors
from layer_cases import LayerCase
from oracles import SINGLE, lycoris, of_lycoris, of_peft, peft, read, require_effect

on_each = pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
PEFT_KNOWS = [case for case in SINGLE if len(case.layer.weight_shape) != 3]


@on_each
@pytest.mark.parametrize("on_input", [False, True], ids=["outputs", "inputs"])
def test_it_equals_the_forward_of_lycoris(case: LayerCase, on_input: bool) -> None:
    if on_input and case.layer.groups > 1:
        return  # LyCORIS fails there too
    effect, tensors = of_lycoris(lycoris.ia3.IA3Module, case, train_on_input=on_input)
    adapter = read(tensors)
    assert isinstance(adapter, Ia3)
    require_effect(case, adapter, effect)


@pytest.mark.parametrize("case", PEFT_KNOWS, ids=lambda case: case.name)
@pytest.mark.parametrize("feedforward", [[], ["layer"]], ids=["outputs", "inputs"])
def test_it_equals_the_forward_of_peft(case: LayerCase, feedforward: list[str]) -> None:
    if feedforward and case.layer.groups > 1:
        return  # refused: see below
    config = peft.IA3Config(target_modules=["layer"], feedforward_modules=feedforward)
    effect, tensors, written = of_peft(config, case)
    adapter = read(tensors, config=written)
    assert isinstance(adapter, Ia3Peft)
    require_effect(case, adapter, effect)


def square(**config: object) -> Ia3Peft:
    tensors = {"base_model.model.mid.x.ia3_l": torch.rand(1, 6, 1, 1)}
    adapter = read(tensors, config={"peft_type": "IA3"} | config)
    assert isinstance(adapter, Ia3Peft)
    return adapter


@pytest.mark.parametrize(
    ("modules", "inputs"),
    [(["mid.x"], True), (["y"], False), ([], False), (r"mid\.x", True), (r".*\.y", False)],
)
def test_the_configuration_tells_the_side_of_a_square_convolution(
    modules: object, inputs: bool
) -> None:
    adapter = square(feedforward_modules=modules)
    weight, bias = torch.rand(6, 6, 3, 3), torch.rand(6)
    gain = adapter.factor.flatten() - 1
    expected = weight * (gain.reshape(1, 6, 1, 1) if inputs else gain.reshape(6, 1, 1, 1))
    torch.testing.assert_close(adapter.delta_weight(weight), expected)
    shift = adapter.delta_bias(bias)
    assert shift is None if inputs else torch.equal(shift, bias * gain)


@pytest.mark.parametrize("config", [{}, {"feedforward_modules": "("}, {"feedforward_modules": 3}])
def test_a_square_convolution_whose_side_nothing_tells_is_refused(
    config: dict[str, object],
) -> None:
    with pytest.raises(UndecidedError, match="Only `feedforward_modules` in PEFT's adapter_config"):
        square(**config).delta_weight(torch.rand(6, 6, 3, 3))


def test_the_axes_tell_the_side_of_a_square_linear_layer() -> None:
    weight = torch.rand(6, 6)
    for shape in ((6, 1), (1, 6)):
        factor = torch.rand(shape)
        adapter = read({"base_model.model.x.ia3_l.default": factor})
        torch.testing.assert_close(adapter.delta_weight(weight), weight * (factor - 1))


def test_factors_of_all_groups_are_refused() -> None:
    weight = torch.rand(8, 6, 3, 3)
    for tensors in (
        {"x.weight": torch.rand(1, 12, 1, 1), "x.on_input": torch.tensor(1)},
        {"base_model.model.x.ia3_l": torch.rand(1, 12, 1, 1)},
    ):
        with pytest.raises(ShapeError, match=r"12 .*inputs, the weight is \[8, 6, 3, 3\].*groups"):
            read(tensors).delta_weight(weight)


def test_a_plain_weight_alone_is_no_adapter() -> None:
    tensors = {"x.weight": torch.rand(6)}
    with pytest.raises(FormatError, match="no adapter that is known"):
        parse_tensors(tensors, {}, "a")
    lora: dict[str, Tensor] = {
        "y.lora_up.weight": torch.ones(3, 2),
        "y.lora_down.weight": torch.ones(2, 5),
    }
    assert parse_tensors(tensors | lora, {}, "a").unclaimed == ("x.weight",)
