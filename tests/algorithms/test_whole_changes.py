"""Weights and changes that a file stores whole: replacements, and changes of full rank."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from adapter_cases import random
from anyadapter.algorithms.adapters.diff import Diff, FullRank
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.replacement import Replacement
from anyadapter.algorithms.errors import MissingTensorError, ShapeError
from anyadapter.algorithms.formats.parse import parse_tensors
from layer_cases import LayerCase, norm_cases, product_cases
from oracles import SINGLE, lycoris, peft, read, read_all, require_effect, written

on_each = pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)


@on_each
def test_a_full_change_equals_the_forward_of_lycoris(case: LayerCase) -> None:
    made = lycoris.full.FullModule("lycoris_x", copy.deepcopy(case.module))
    made.apply_to()  # takes the weight off the module, and saves only then what was learned
    for parameter in made.parameters():
        parameter.data.add_(random(*parameter.shape).float())
    tensors = {f"x.{key}": tensor for key, tensor in made.custom_state_dict().items()}
    with torch.no_grad():
        effect = made(case.x) - case.module(case.x)
    adapter = read(tensors)
    assert isinstance(adapter, Diff)
    require_effect(case, adapter, effect)


@pytest.mark.parametrize("case", [*product_cases(), *norm_cases()], ids=lambda case: case.name)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_replacement_is_the_layer_with_the_stored_weight(
    case: LayerCase, strength: float
) -> None:
    weight, bias = random(*case.weight.shape), random(case.weight.shape[0])
    adapter = read({"x.set_weight": weight, "x.set_bias": bias})
    effect = case.with_base(weight, bias) - case.module(case.x)
    require_effect(case, adapter, effect * strength, strength)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norms = nn.Sequential(nn.LayerNorm(8))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norms(self.first(x)))


@pytest.mark.parametrize("raw", [False, True], ids=["as PEFT saves", "as in memory"])
@pytest.mark.parametrize("saved", [["last"], ["last", "norms"]], ids=["a layer", "a container"])
def test_layers_that_peft_saved_whole_are_replacements(saved: list[str], raw: bool) -> None:
    base = Model()
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    config = peft.LoraConfig(target_modules=["first"], modules_to_save=saved)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "default" in name:
            nn.init.normal_(parameter)
    tensors = peft.get_peft_model_state_dict(model)
    if raw:
        tensors = {key: tensor for key, tensor in model.state_dict().items() if "default" in key}
    adapters = read_all(tensors, config=written(config)).adapters
    whole = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): several[0]
        for name, several in adapters.items()
        if isinstance(several[0], Replacement)
    }
    assert set(whole) == ({"last"} if saved == ["last"] else {"last", "norms.0"})
    x = torch.randn(2, 6)
    plain = Model()
    (lora,) = adapters["base_model.model.first"]
    state = before | {"first.weight": before["first.weight"] + lora.delta_weight(torch.empty(8, 6))}
    for name, adapter in whole.items():
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        state[f"{name}.weight"] = weight + adapter.delta_weight(weight)
        state[f"{name}.bias"] = bias + adapter.delta_bias(bias)
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), model(x))


def test_a_header_of_diffusers_names_whole_layers_too() -> None:
    tensors = {
        "unet.mid.x.lora_A.weight": torch.ones(2, 5),
        "unet.mid.x.lora_B.weight": torch.ones(3, 2),
        "unet.conv_in.weight": torch.ones(4, 4, 3, 3),
        "unet.conv_out.weight": torch.ones(4, 4, 3, 3),
    }
    header = {"lora_adapter_metadata": json.dumps({"unet.modules_to_save": ["conv_in"]})}
    parsed = parse_tensors(tensors, header, "a")
    assert isinstance(parsed.adapters["unet.conv_in"][0], Replacement)
    assert parsed.unclaimed == ("unet.conv_out.weight",)


def test_a_replacement_of_another_shape_is_refused() -> None:
    adapter = Replacement(torch.ones(8, 6))
    with pytest.raises(ShapeError, match=r"stored weight is \[8, 6\], the model's \[8, 5\]"):
        adapter.delta_weight(torch.ones(8, 5))


@pytest.mark.parametrize("suffix", [".lora_down.weight", ".lora_A.weight"])
def test_a_first_factor_without_a_second_is_a_change_of_full_rank(suffix: str) -> None:
    change = torch.rand(8, 6)
    adapter = read({f"x{suffix}": change})
    assert isinstance(adapter, FullRank)
    assert torch.equal(adapter.delta_weight(torch.empty(8, 6)), change)
    with pytest.raises(ShapeError, match="the name of a LoRA's lora_down without a lora_up"):
        adapter.delta_weight(torch.empty(8, 5))


def test_the_scale_of_a_change_of_full_rank_is_assumed() -> None:
    notes = read_all({"x.lora_down.weight": torch.rand(8, 6), "x.alpha": torch.tensor(4.0)}).notes
    assert notes == (
        "Nothing in the file says it, so it was assumed for 1 layer: "
        "scale 1 of changes of full rank.",
    )


def test_a_first_factor_among_pairs_is_damage() -> None:
    pair = {"x.lora_up.weight": torch.ones(3, 2), "x.lora_down.weight": torch.ones(2, 5)}
    assert isinstance(read(pair), Lora)
    with pytest.raises(MissingTensorError, match=r"y has lora_down.weight, but LoRA needs"):
        read(pair | {"y.lora_down.weight": torch.ones(2, 5)})
