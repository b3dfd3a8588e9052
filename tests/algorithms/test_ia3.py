"""(IA)^3 against LyCORIS and PEFT, and which side a file means."""

import pytest
import torch
from lycoris.modules.ia3 import IA3Module
from torch import Tensor

from anyadapter.algorithms.adapters.ia3 import Ia3, Ia3Peft
from anyadapter.algorithms.errors import FormatError, ShapeError, UndecidedError
from anyadapter.algorithms.formats.parse import parse_tensors
from layer_cases import LayerCase
from oracles import KNOWN_TO_TOOLS, of_lycoris, of_peft, only, read, require_effect

from peft import IA3Config  # isort: skip  # after `oracles`

on_each = pytest.mark.parametrize("case", KNOWN_TO_TOOLS, ids=lambda case: case.name)
PEFT_KNOWS = [case for case in KNOWN_TO_TOOLS if len(case.layer.weight_shape) != 3]


@on_each
@pytest.mark.parametrize("on_input", [False, True], ids=["outputs", "inputs"])
def test_it_equals_the_forward_of_lycoris(case: LayerCase, on_input: bool) -> None:
    if on_input and case.layer.groups > 1:
        return  # LyCORIS fails there too
    made = IA3Module("lycoris_x", case.module, train_on_input=on_input)
    tensors, effect = of_lycoris(made, case)
    adapter = only(read(tensors))
    assert isinstance(adapter, Ia3)
    require_effect(case, adapter, effect)


@pytest.mark.parametrize("case", PEFT_KNOWS, ids=lambda case: case.name)
@pytest.mark.parametrize("feedforward", [[], ["x"]], ids=["outputs", "inputs"])
def test_it_equals_the_forward_of_peft(case: LayerCase, feedforward: list[str]) -> None:
    if feedforward and case.layer.groups > 1:
        return  # refused: see below
    config = IA3Config(target_modules=["x"], feedforward_modules=feedforward)
    tensors, options, effect = of_peft(config, case)
    adapter = only(read(tensors, config=options | {"feedforward_modules": feedforward}))
    assert isinstance(adapter, Ia3Peft)
    require_effect(case, adapter, effect)


def square(**config: object) -> Ia3Peft:
    tensors = {"base_model.model.mid.x.ia3_l": torch.rand(1, 6, 1, 1)}
    adapter = only(read(tensors, config=config))
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


def test_a_square_convolution_without_a_configuration_is_refused() -> None:
    with pytest.raises(UndecidedError, match="Only `feedforward_modules` in PEFT's adapter_config"):
        square().delta_weight(torch.rand(6, 6, 3, 3))


def test_the_axes_tell_the_side_of_a_square_linear_layer() -> None:
    weight = torch.rand(6, 6)
    for shape in ((6, 1), (1, 6)):
        factor = torch.rand(shape)
        adapter = only(read({"base_model.model.x.ia3_l.default": factor}))
        torch.testing.assert_close(adapter.delta_weight(weight), weight * (factor - 1))


def test_factors_of_all_groups_are_refused() -> None:
    weight = torch.rand(8, 6, 3, 3)
    for tensors in (
        {"x.weight": torch.rand(1, 12, 1, 1), "x.on_input": torch.tensor(1)},
        {"base_model.model.x.ia3_l": torch.rand(1, 12, 1, 1)},
    ):
        with pytest.raises(ShapeError, match=r"12 .*inputs, the weight is \[8, 6, 3, 3\].*groups"):
            only(read(tensors)).delta_weight(weight)


def test_a_plain_weight_alone_is_no_adapter() -> None:
    tensors = {"x.weight": torch.rand(6)}
    with pytest.raises(FormatError, match="no adapter that is known"):
        parse_tensors(tensors, {}, "a")
    lora: dict[str, Tensor] = {
        "y.lora_up.weight": torch.ones(3, 2),
        "y.lora_down.weight": torch.ones(2, 5),
    }
    assert parse_tensors(tensors | lora, {}, "a").unclaimed == ("x.weight",)
