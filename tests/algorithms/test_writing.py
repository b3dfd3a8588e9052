"""What a file holds: in the spelling of its tool, with what that tool and others can read."""

import json
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.editing.file_content import FileContent, Writing, file_content
from anyadapter.algorithms.errors import EditingError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.keymap import KeyMap
from named_files import Layers, assert_same, effect, flux, loha, lora, random, read, unet, weights
from oracles import peft

LAYER = "lora_unet_double_blocks_0_img_attn_proj"
OTHER = "lora_unet_double_blocks_0_img_mlp_0"
OF_DIFFUSERS = "transformer.transformer_blocks.0.attn.to_out.0"
OTHER_OF_DIFFUSERS = "transformer.transformer_blocks.0.ff.net.0.proj"
CONV = "lora_unet_input_blocks_1_0_in_layers_2"


def written(
    tensors: Mapping[str, Tensor], dialect: str = "as it is", key_map: KeyMap | None = None
) -> FileContent:
    """The file that is made of some tensors, which has to change a model as they do."""
    key_map = flux() if key_map is None else key_map
    before = read(tensors)
    content = file_content(
        before, Writing(dialect=dialect), [] if dialect == "as it is" else [key_map]
    )
    after = parse_tensors(content.tensors, content.strings, "a").as_trained()
    assert_same(effect(after, key_map), effect(before, key_map))
    return content


def of_peft(module: str, outputs: int, **more: Tensor) -> dict[str, Tensor]:
    tensors = {
        f"{module}.lora_A.weight": random(2, 6),
        f"{module}.lora_B.weight": random(outputs, 2),
    }
    return tensors | {f"{module}.{name.replace('__', '.')}": one for name, one in more.items()}


def with_dora(module: str, outputs: int) -> dict[str, Tensor]:
    return lora(module, (outputs, 6)) | {f"{module}.dora_scale": random(outputs, 1).abs() + 1}


def test_dora_of_diffusers_is_saved_so_that_diffusers_sees_it() -> None:
    tensors = of_peft(OF_DIFFUSERS, 6, lora_magnitude_vector=random(6).abs() + 1)
    content = written(tensors)
    assert content.tensors.keys() == tensors.keys()
    assert all(torch.equal(content.tensors[key], one) for key, one in tensors.items())
    config = json.loads(content.strings["lora_adapter_metadata"])
    assert config["transformer.use_dora"] is True
    assert config["transformer.r"] == config["transformer.lora_alpha"] == 2
    assert content.notes == ()


def test_a_scale_of_the_configuration_goes_into_the_tensors() -> None:
    said = {"transformer.r": 2, "transformer.lora_alpha": 8}
    before = read(of_peft(OF_DIFFUSERS, 6), {"lora_adapter_metadata": json.dumps(said)})
    content = file_content(before, Writing())
    assert json.loads(content.strings["lora_adapter_metadata"])["transformer.lora_alpha"] == 2
    assert_same(effect(content.adapter_set, flux()), effect(before, flux()))


def test_the_names_of_the_host_get_no_configuration() -> None:
    """diffusers would look for its own names in it, find none, and use the rank 8."""
    tensors = of_peft("diffusion_model.double_blocks.0.img_attn.proj", 6)
    content = written(tensors)
    assert content.tensors.keys() == tensors.keys()
    assert "lora_adapter_metadata" not in content.strings


def test_what_peft_has_no_place_for_is_saved_as_kohya_does_with_a_note() -> None:
    tensors = of_peft(OF_DIFFUSERS, 6) | {f"{OTHER_OF_DIFFUSERS}.diff": random(24, 6)}
    content = written(tensors)
    assert f"{OF_DIFFUSERS}.lora_up.weight" in content.tensors
    (note,) = content.notes
    assert "named as sd-scripts does" in note
    assert f"{OTHER_OF_DIFFUSERS} is full" in note


def test_a_file_with_alpha_beside_lora_a_keeps_its_numbers() -> None:
    tensors = of_peft(LAYER, 6, alpha=torch.tensor(3.0))
    found = written(tensors).tensors
    assert torch.equal(found[f"{LAYER}.lora_up.weight"], tensors[f"{LAYER}.lora_B.weight"])
    assert float(found[f"{LAYER}.alpha"]) == 3.0


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_dora_beside_plain_lora_is_refused_for_peft(dialect: str) -> None:
    """PEFT gave the plain layers magnitudes of its own: 83 % off, or a RuntimeError."""
    with pytest.raises(EditingError, match=r"DoRA is in 1 of 2 layers.* not in .*Convert it to"):
        written(with_dora(LAYER, 6) | lora(OTHER, (24, 6)), dialect)
    written(with_dora(LAYER, 6) | lora(OTHER, (24, 6)), "kohya")


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_dora_with_a_bias_is_refused_for_peft(dialect: str) -> None:
    tensors = with_dora(LAYER, 6) | {f"{LAYER}.lora_up.bias": random(6)}
    with pytest.raises(EditingError, match=r"DoRA.* changes the bias too in 1 layer"):
        written(tensors, dialect)
    written(tensors, "kohya")


def test_a_bias_of_some_layers_is_one_of_all_in_peft() -> None:
    """The others had none to load, and PEFT a tensor without numbers there."""
    tensors = lora(LAYER, (6, 6)) | {f"{LAYER}.lora_up.bias": random(6)} | lora(OTHER, (24, 6))
    before = read(tensors)
    content = file_content(before, Writing(dialect="diffusers"), [flux()])
    assert content.tensors[f"{OTHER_OF_DIFFUSERS}.lora_B.bias"].shape == (24,)
    assert not content.tensors[f"{OTHER_OF_DIFFUSERS}.lora_B.bias"].any()
    assert content.tensors[f"{OF_DIFFUSERS}.lora_B.bias"].any()
    assert json.loads(content.strings["lora_adapter_metadata"])["transformer.lora_bias"] is True


@pytest.mark.parametrize("kind", ["bias in one layer", "DoRA"])
def test_peft_has_every_tensor_of_what_is_saved_and_makes_the_same_weights(kind: str) -> None:
    tensors = lora(LAYER, (6, 6)) | lora(OTHER, (24, 6))
    if kind == "DoRA":
        tensors = with_dora(LAYER, 6) | with_dora(OTHER, 24)
    else:
        tensors[f"{LAYER}.lora_up.bias"] = random(6)
    content = file_content(read(tensors), Writing(dialect="peft"), [flux()])
    shapes = {name.partition(".")[2]: size for name, size in (TO_OUT, FF)}
    config = json.loads(content.strings["lora_adapter_metadata"])
    base = Layers(shapes)
    before = weights(base)
    model = peft.get_peft_model(base, peft.LoraConfig(**config))
    result = peft.set_peft_model_state_dict(model, dict(content.tensors))
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    after = weights(model.merge_and_unload())
    for name in shapes:
        every = content.adapter_set.adapters[f"base_model.model.{name}"]
        (adapter,) = every
        change = adapter.delta_weight(before[f"{name}.weight"])
        assert change is not None
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + change)
        shift = adapter.delta_bias(None)
        expected = before[f"{name}.bias"] + (0 if shift is None else shift)
        torch.testing.assert_close(after[f"{name}.bias"], expected)


TO_OUT = (OF_DIFFUSERS, (6, 6))
FF = (OTHER_OF_DIFFUSERS, (24, 6))


@pytest.mark.parametrize("make", [lora, with_dora], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("dialect", ["as it is", "kohya", "comfy", "onetrainer"])
@pytest.mark.parametrize("with_diff", [False, True])
def test_a_bias_is_written_where_comfyui_reads_it(
    make: object, dialect: str, with_diff: bool
) -> None:
    tensors = (lora(LAYER, (6, 6)) if make is lora else with_dora(LAYER, 6)) | {
        f"{LAYER}.lora_up.bias": random(6)
    }
    if with_diff:
        tensors[f"{LAYER}.diff_b"] = random(6) + 1
    found = written(tensors, dialect).tensors
    assert not any(key.endswith(".lora_up.bias") for key in found)
    (shift,) = (one for key, one in found.items() if key.endswith(".diff_b"))
    expected = tensors[f"{LAYER}.lora_up.bias"] * 1.5 / 2
    assert torch.allclose(shift, expected + tensors.get(f"{LAYER}.diff_b", torch.zeros(6)))


@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
@pytest.mark.parametrize("dora", [False, True])
def test_a_core_is_multiplied_into_the_first_factor_for_peft(dialect: str, dora: bool) -> None:
    """Was never saved, as what was read had not the name of what it was made of."""
    tensors = {
        f"{CONV}.lora_up.weight": random(8, 2, 1, 1),
        f"{CONV}.lora_mid.weight": random(2, 2, 3, 3),
        f"{CONV}.lora_down.weight": random(2, 8, 1, 1),
        f"{CONV}.alpha": torch.tensor(1.0),
    }
    tensors |= {f"{CONV}.dora_scale": random(8, 1, 1, 1).abs() + 1} if dora else {}
    content = written(tensors, dialect, unet("SDXL"))
    assert all(key.endswith(("A.weight", "B.weight", "vector")) for key in content.tensors)


def two(first: float, second: float, *, dtype: torch.dtype = torch.float32) -> AdapterSet:
    """LoRA and LoHa of different alphas on one layer, as Combine Adapters may give it."""
    (one,) = read(lora(LAYER, (6, 6), alpha=first)).adapters[LAYER]
    (other,) = read({**loha(LAYER, 6), f"{LAYER}.alpha": torch.tensor(second)}).adapters[LAYER]
    assert isinstance(one, Lora)
    both = (one.to("cpu", dtype), other.to("cpu", dtype))
    return AdapterSet("a", {LAYER: both}, read(lora(LAYER, (6, 6))).metadata)


@pytest.mark.parametrize("alphas", [(1.5, 1.5), (1.5, 3.0), (1.5, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_methods_on_a_layer_are_saved_with_one_alpha(
    alphas: Sequence[float], dtype: torch.dtype
) -> None:
    """Was an error that spoke of two LoHas."""
    before = two(alphas[0], alphas[1], dtype=dtype)
    content = file_content(before, Writing())
    after = parse_tensors(content.tensors, content.strings, "a").as_trained()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    assert_same(effect(after, flux()), effect(before, flux()), tolerance)


def test_an_alpha_with_another_meaning_is_said_to_be_in_the_way() -> None:
    tensors = {f"{LAYER}.oft_blocks": random(3, 2, 2), f"{LAYER}.alpha": torch.tensor(0.25)}
    (oft,) = read(tensors).adapters[LAYER]
    (one,) = read(lora(LAYER, (6, 6))).adapters[LAYER]
    both = AdapterSet("a", {LAYER: (one, oft)}, read(tensors).metadata)
    with pytest.raises(EditingError, match=r"LoRA and OFT.*, each with its own alpha"):
        file_content(both, Writing())


def test_dylora_in_a_file_without_alpha_is_said_to_act_otherwise_when_cut() -> None:
    tensors = lora(LAYER, (6, 6), rank=4)
    before = read(tensors, {"ss_network_module": "networks.dylora"})
    (note,) = file_content(before, Writing(dialect="diffusers"), [flux()]).notes
    assert "first ranks of this DyLoRA" in note
    assert file_content(before, Writing(dialect="kohya"), [flux()]).notes == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_rounding_leaves_most_of_the_small_change_of_dora(dtype: str, dialect: str) -> None:
    """In bfloat16 44 % of the change were lost, as its magnitudes were rounded too."""
    (key,) = [key for key in flux().shapes if "img_attn.proj.weight" in key]
    weight = random(*flux().shapes[key])
    up, down = random(6, 2), random(2, 6)
    part = 0.003 * weight.norm() / (up @ down).norm()
    tensors = {
        f"{LAYER}.lora_up.weight": up * part,
        f"{LAYER}.lora_down.weight": down,
        f"{LAYER}.alpha": torch.tensor(2.0),
        f"{LAYER}.dora_scale": (weight + up @ down * part).norm(dim=1, keepdim=True) * 1.001,
    }
    before = read(tensors)
    after = file_content(before, Writing(dtype, dialect), [flux()]).adapter_set
    assert_same(effect(after, flux()), effect(before, flux()), 0.01)


@pytest.mark.parametrize("dialect", ["kohya", "comfy", "lycoris", "onetrainer"])
def test_loha_on_a_kernel_gets_the_axes_that_the_tool_reads(dialect: str) -> None:
    """ComfyUI and LyCORIS fail on OneTrainer's factors with kernels."""
    tensors = {
        f"{CONV}.hada_w1_a": random(8, 2, 1, 1),
        f"{CONV}.hada_w1_b": random(2, 8, 3, 3),
        f"{CONV}.hada_w2_a": random(8, 2, 1, 1) + 1,
        f"{CONV}.hada_w2_b": random(2, 8, 3, 3) + 1,
        f"{CONV}.alpha": torch.tensor(2.0),
    }
    found = written(tensors, dialect, unet("SDXL")).tensors
    axes = {one.ndim for one in found.values() if one.ndim}
    assert axes == ({4} if dialect == "onetrainer" else {2})
