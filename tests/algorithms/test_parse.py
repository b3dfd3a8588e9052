"""Parsing: which method, which module, what is left over, and what a file means by alpha."""

import json
import math

import pytest
import torch
from torch import Tensor

from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.adapters import ADAPTERS, Adapter, by_name
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.errors import (
    FormatError,
    MissingTensorError,
    NonFiniteError,
    ShapeError,
)
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors

each_case = pytest.mark.parametrize("case", ADAPTER_CASES, ids=lambda case: case.name)


def adapter_of(case: AdapterCase) -> Adapter:
    return case.make(case.layers()[0])


def parse(tensors: dict[str, Tensor], **metadata: str) -> AdapterSet:
    return parse_tensors(tensors, metadata, "style.safetensors")


def lora(up: str = ".lora_up.weight", down: str = ".lora_down.weight") -> dict[str, Tensor]:
    return {f"x{up}": torch.ones(3, 2), f"x{down}": torch.ones(2, 5)}


@each_case
def test_write_then_parse_gives_the_same_tensors_and_metadata(case: AdapterCase) -> None:
    adapter = adapter_of(case)
    strings = {"ss_network_module": "networks.lora", "anything": "else"}
    tensors, metadata = to_tensors(
        AdapterSet("a", {"lora_unet_x": (adapter,)}, AdapterMetadata(strings))
    )
    parsed = parse_tensors(tensors, metadata, "a")
    assert metadata == strings
    assert parsed.metadata.strings == strings
    assert not parsed.unclaimed
    ((module, (result,)),) = parsed.adapters.items()
    assert module == "lora_unet_x"
    assert type(result) is type(adapter)
    assert result.tensors().keys() == adapter.tensors().keys()
    for name, tensor in adapter.tensors().items():
        assert torch.equal(result.tensors()[name], tensor)
    assert getattr(result, "alpha", None) == getattr(adapter, "alpha", None)


@each_case
def test_a_foreign_tensor_beside_a_method_is_left_over(case: AdapterCase) -> None:
    tensors, _ = to_tensors(AdapterSet("a", {"x": (adapter_of(case),)}, AdapterMetadata({})))
    parsed = parse(tensors | {"x.gizmo": torch.ones(1), "y.alpha": torch.tensor(1.0)})
    assert parsed.unclaimed == ("x.gizmo", "y.alpha")
    assert len(parsed.adapters["x"]) == 1


WITHOUT_IT_ANOTHER_METHOD = ("mid", "oft_s", "e")


def test_half_of_a_lora_is_an_error() -> None:
    with pytest.raises(MissingTensorError, match=r"x has lora_up.weight, but LoRA needs"):
        parse({"x.lora_up.weight": torch.ones(3, 2)})


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)
def test_a_method_lacking_a_required_tensor_is_an_error(method: type[Adapter]) -> None:
    case = next(case for case in ADAPTER_CASES if type(adapter_of(case)) is method)
    tensors, _ = to_tensors(AdapterSet("a", {"x": (adapter_of(case),)}, AdapterMetadata({})))
    whole = {key.replace("x.", "y.", 1): tensor for key, tensor in lora().items()}
    for role in method.roles:
        suffix = role.suffixes[0]
        without = {key: one for key, one in tensors.items() if not f".{key}".endswith(suffix)}
        own = {"x" + other.suffixes[0] for other in method.roles if not other.shared}
        if role.required and role.field not in WITHOUT_IT_ANOTHER_METHOD and own & without.keys():
            with pytest.raises(MissingTensorError, match=r"x has \S+, but .+ needs"):
                parse(without | whole)


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (".lora_up.weight", ".lora_down.weight"),
        (".lora_B.weight", ".lora_A.weight"),
        (".lora_B", ".lora_A"),
        ("_lora.up.weight", "_lora.down.weight"),
        (".lora.up.weight", ".lora.down.weight"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    ],
)
def test_every_spelling_of_lora_is_known(up: str, down: str) -> None:
    (adapter,) = parse(lora(up, down)).adapters["x"]
    assert isinstance(adapter, Lora)
    assert adapter.alpha is None
    assert adapter.scale == 1.0


def test_a_core_makes_the_tucker_form() -> None:
    tensors = {
        "x.lora_up.weight": torch.ones(8, 4, 1, 1),
        "x.lora_mid.weight": torch.ones(4, 3, 3, 5),
        "x.lora_down.weight": torch.ones(3, 6, 1, 1),
    }
    (adapter,) = parse(tensors).adapters["x"]
    assert isinstance(adapter, LoraTucker)


def test_two_methods_on_one_module_are_both_kept() -> None:
    adapters = parse(lora() | {"x.diff_b": torch.ones(3)}).adapters["x"]
    assert [type(adapter) for adapter in adapters] == [Lora, Diff]


def test_shapes_that_contradict_each_other_are_named() -> None:
    tensors = {"x.lora_up.weight": torch.ones(3, 4), "x.lora_down.weight": torch.ones(2, 5)}
    with pytest.raises(
        ShapeError, match=r"x: down has shape \(2, 5\), so R is 2 here, but 4 in up"
    ):
        parse(tensors)


def test_a_tensor_with_too_few_axes_is_named() -> None:
    with pytest.raises(ShapeError, match=r"x: down has shape \(5,\), but \[R I \.\.\.\]"):
        parse({"x.lora_up.weight": torch.ones(3, 4), "x.lora_down.weight": torch.ones(5)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    tensors = lora()
    tensors["x.lora_up.weight"][1, 1] = value
    with pytest.raises(NonFiniteError, match=r"x\.lora_up\.weight contains NaN or infinity"):
        parse(tensors)


def test_an_alpha_that_overflowed_counts_as_missing() -> None:
    (adapter,) = parse(lora() | {"x.alpha": torch.tensor(1e9).half()}).adapters["x"]
    assert isinstance(adapter, Lora)
    assert adapter.alpha is None


def test_an_alpha_of_several_numbers_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"x\.alpha should be one number"):
        parse(lora() | {"x.alpha": torch.ones(2)})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.diffusion_model.out.2.weight", "is a checkpoint"),
        ("string_to_param.*", "textual inversion"),
        ("conv.weight", "holds no adapter that is known"),
    ],
)
def test_a_file_without_adapters_says_what_it_seems_to_be(key: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse({key: torch.ones(2)})


def scale_of(adapter_set: AdapterSet) -> float:
    ((adapter,),) = adapter_set.adapters.values()
    assert isinstance(adapter, Lora)
    return adapter.scale


def peft(**config: object) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})}


def peft_tensors() -> dict[str, Tensor]:
    return {
        "unet.mid.to_q.lora_A.weight": torch.ones(4, 5),
        "unet.mid.to_q.lora_B.weight": torch.ones(3, 4),
    }


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 2}, 0.5),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, 1.0),
        ({"r": 8, "lora_alpha": 2, "rank_pattern": {"to_q": 4}}, 0.5),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"mid.to_q": 12}}, 3.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 12}}, 0.5),
        ({"r": 4}, 1.0),
    ],
)
def test_the_scale_of_a_peft_file_comes_from_its_metadata(
    config: dict[str, object], scale: float
) -> None:
    parsed = parse(peft_tensors(), **peft(**config))
    assert scale_of(parsed) == 1.0
    assert scale_of(parsed.as_trained()) == scale


def test_metadata_of_the_network_fill_in_a_missing_alpha_only() -> None:
    parsed = parse(lora(), ss_network_alpha="1.0").as_trained()
    assert scale_of(parsed) == 0.5
    with_alpha = parse(lora() | {"x.alpha": torch.tensor(4.0)}, ss_network_alpha="1.0")
    assert scale_of(with_alpha.as_trained()) == 2.0
    assert scale_of(parse(lora(), ss_network_alpha="Dynamic").as_trained()) == 1.0


def test_a_dylora_of_lycoris_gets_the_scale_it_was_trained_with() -> None:
    args = json.dumps({"algo": "dylora", "block_size": "2"})
    tensors = {
        "x.lora_up.weight": torch.ones(3, 8),
        "x.lora_down.weight": torch.ones(8, 5),
        "x.alpha": torch.tensor(4.0),
    }
    whole = parse(tensors, ss_network_args=args).as_trained()
    assert scale_of(whole) == 4.0 * 2 / 8
    assert scale_of(whole.sliced(4)) == 4.0 * 2 / 4


def test_a_dylora_of_kohya_keeps_its_alpha_when_it_is_cut() -> None:
    tensors = lora() | {"x.alpha": torch.tensor(1.0)}
    parsed = parse(tensors, ss_network_module="networks.dylora").as_trained()
    assert parsed.metadata.training == "DyLoRA"
    assert scale_of(parsed) == 0.5
    ((cut,),) = parsed.sliced(1).adapters.values()
    assert isinstance(cut, Lora)
    assert (cut.rank, cut.scale) == (1, 1.0)
    ((whole,),) = parsed.sliced(99).adapters.values()
    assert whole.rank == 2


@pytest.mark.parametrize(
    ("metadata", "training"),
    [
        ({"ss_network_module": "networks.lora_fa"}, "LoRA-FA"),
        ({"ss_network_args": '{"loraplus_lr_ratio": "16"}'}, "LoRA+"),
        ({"ss_network_module": "networks.lora"}, None),
        ({"ss_network_args": "not json"}, None),
        ({"ss_network_args": "[1]"}, None),
    ],
)
def test_training_that_leaves_no_mark_in_tensors_is_read_from_metadata(
    metadata: dict[str, str], training: str | None
) -> None:
    assert AdapterMetadata(metadata).training == training


def test_methods_are_found_by_name() -> None:
    assert all(by_name(method.name) is method for method in ADAPTERS)


FLOATS = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_dtype_of_trainers_gives_the_same_change(dtype: torch.dtype) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in lora().items()}
    (adapter,) = parse(tensors | {"x.alpha": torch.tensor(1.0).to(dtype)}).adapters["x"]
    assert torch.equal(adapter.delta_weight(torch.zeros(3, 5)).float(), torch.ones(3, 5))


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (torch.tensor(3.0), 1.5),
        (torch.tensor([3.0]), 1.5),
        (torch.tensor([[3.0]]), 1.5),
        (torch.tensor(3), 1.5),
        (torch.tensor([3], dtype=torch.int32), 1.5),
        (torch.tensor(3.0).to(torch.float8_e4m3fn), 1.5),
        (torch.tensor(0), 1.0),
        (torch.tensor(0.0), 1.0),
        (torch.tensor(float("nan")), 1.0),
        (torch.tensor(float("-inf")).half(), 1.0),
    ],
)
def test_alpha_comes_in_every_shape_and_dtype(alpha: Tensor, expected: float) -> None:
    assert scale_of(parse(lora() | {"x.alpha": alpha})) == expected


@pytest.mark.parametrize(
    ("alpha", "error"), [(torch.ones(0), ShapeError), (torch.tensor(1j), FormatError)]
)
def test_an_alpha_that_is_no_number_is_refused(alpha: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"x\.alpha should be"):
        parse(lora() | {"x.alpha": alpha})


def test_a_number_that_a_method_needs_must_be_finite() -> None:
    tensors = {"x.weight": torch.ones(3), "x.on_input": torch.tensor(math.nan)}
    with pytest.raises(NonFiniteError, match=r"x: x\.on_input contains NaN or infinity"):
        parse(tensors)


def test_rank_1_is_a_rank() -> None:
    tensors = {"x.lora_up.weight": torch.ones(3, 1), "x.lora_down.weight": torch.ones(1, 5)}
    (adapter,) = parse(tensors | {"x.alpha": torch.tensor(2.0)}).adapters["x"]
    assert torch.equal(adapter.delta_weight(torch.zeros(3, 5)), torch.full((3, 5), 2.0))


def test_rank_0_is_refused_by_the_name_of_its_tensor() -> None:
    tensors = {"x.lora_up.weight": torch.ones(3, 0), "x.lora_down.weight": torch.ones(0, 5)}
    with pytest.raises(ShapeError, match=r"x: x\.lora_up\.weight is empty, its shape is \[3, 0\]"):
        parse(tensors)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_factors_that_are_no_floats_are_refused(dtype: torch.dtype) -> None:
    tensors = lora() | {"x.lora_down.weight": torch.ones(2, 5).to(dtype)}
    with pytest.raises(FormatError, match=r"x\.lora_down\.weight is \w+, but down is made of"):
        parse(tensors)


def test_the_order_of_tensors_does_not_matter() -> None:
    tensors = lora() | {"x.alpha": torch.tensor(1.0), "y.diff": torch.ones(2, 2)}
    reverse = dict(reversed(tensors.items()))
    assert set(parse(reverse).adapters) == {"x", "y"}
    assert scale_of(parse({key: reverse[key] for key in reverse if key != "y.diff"})) == 0.5


def test_a_file_with_half_of_its_layers_loads_what_is_there() -> None:
    layers = {f"{name}{key[1:]}": value for name in "abcd" for key, value in lora().items()}
    half = {key: value for key, value in layers.items() if key[0] in "ac"}
    assert set(parse(half).adapters) == {"a", "c"}


@pytest.mark.parametrize(
    "scale", ["weight_scale", "scale_weight", "comfy_quant", "weight_scale_2", "input_scale"]
)
def test_adapters_that_were_quantised_with_scales_are_refused(scale: str) -> None:
    tensors = lora() | {f"x.lora_up.{scale}": torch.tensor(0.5)}
    with pytest.raises(FormatError, match=f"quantised with scales .* x.lora_up.{scale}"):
        parse(tensors)


@pytest.mark.parametrize(
    ("second", "value"),
    [
        (".lora_B.weight", torch.ones(3, 2)),
        (".lora_A.weight", torch.ones(2, 5)),
        (".lora.up.weight", torch.ones(3, 2)),
    ],
)
def test_one_tensor_in_two_spellings_is_refused(second: str, value: Tensor) -> None:
    with pytest.raises(FormatError, match=rf"twice, as x\.lora_\w+\.weight and as x\{second}"):
        parse(lora() | {f"x{second}": value})


def test_a_change_of_the_bias_beside_a_dora_is_added() -> None:
    tensors = lora() | {"x.dora_scale": torch.ones(3, 1), "x.diff_b": torch.ones(3)}
    assert {type(adapter) for adapter in parse(tensors).adapters["x"]} == {Dora, Diff}


@pytest.mark.parametrize("block", ["shadow_block", "lily_block", "poly_router", "xlora_attn"])
def test_a_block_with_the_name_of_a_method_is_no_such_method(block: str) -> None:
    module = f"unet.{block}.a"
    tensors = {key.replace("x.", f"{module}.", 1): tensor for key, tensor in lora().items()}
    assert set(parse(tensors).adapters) == {module}


def test_dora_magnitudes_in_two_spellings_are_refused() -> None:
    magnitudes = {"x.dora_scale": torch.ones(3, 1), "x.lora_magnitude_vector": torch.ones(3)}
    with pytest.raises(FormatError, match=r"x: there are DoRA magnitudes in two spellings"):
        parse(lora() | magnitudes)


@pytest.mark.parametrize("options", [{"alpha_pattern": [1]}, {"alpha_pattern": {"(": 3}}])
def test_patterns_that_mean_nothing_are_passed_over(options: dict[str, object]) -> None:
    parsed = parse(peft_tensors(), **peft(r=4, lora_alpha=2, **options))
    assert scale_of(parsed.as_trained()) == 0.5


def test_a_required_number_that_is_nan_is_refused() -> None:
    tensors = {"x.weight": torch.ones(3), "x.on_input": torch.tensor(float("nan"))}
    with pytest.raises(NonFiniteError, match=r"x: x\.on_input contains NaN or infinity"):
        parse(tensors)


def test_positions_that_are_no_whole_numbers_are_refused() -> None:
    tensors = {"x.shira_weight": torch.ones(3), "x.shira_indices": torch.ones(2, 3).half()}
    with pytest.raises(FormatError, match=r"x\.shira_indices is float16, but indices is made of"):
        parse(tensors)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 0.0, 2.5])
def test_sizes_that_are_none_are_refused(size: float) -> None:
    with pytest.raises(ShapeError, match=r"x\.reshape_weight should hold sizes"):
        parse(lora() | {"x.reshape_weight": torch.tensor([size, 5.0])})


def test_factors_of_unequal_precision_are_computed_in_the_better_one() -> None:
    tensors = lora()
    tensors["x.lora_up.weight"] = tensors["x.lora_up.weight"].double()
    (adapter,) = parse(tensors).adapters["x"]
    change = adapter.delta_weight(torch.zeros(3, 5))
    assert change is not None
    assert change.dtype == torch.float64


def test_places_below_0_are_refused() -> None:
    tensors = {"x.shira_weight": torch.ones(3), "x.shira_indices": torch.tensor([[0, 1, -1]] * 2)}
    with pytest.raises(FormatError, match=r"x\.shira_indices holds places below 0"):
        parse(tensors)
