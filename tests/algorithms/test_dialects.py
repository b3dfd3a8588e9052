"""Adapters under the names of other tools: the same change of every weight, cut as the tool cuts."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.editing.dialects import DialectName, in_dialect, spelling_of
from anyadapter.algorithms.errors import EditingError, NoMatchError, ShapeError
from anyadapter.algorithms.families import diffusion_model_part
from anyadapter.algorithms.formats.parse import AdapterSet
from anyadapter.algorithms.formats.write import settled, to_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from named_files import (
    BY_NAME,
    FLUX,
    UNET,
    H,
    Layers,
    assert_same,
    clip,
    effect,
    flux,
    loha,
    lora,
    random,
    read,
    unet,
    weights,
)
from oracles import lycoris, peft


def through(
    adapters: AdapterSet, key_maps: Sequence[KeyMap], dialect: DialectName, *, whole: bool = False
) -> AdapterSet:
    """What is read of a set that was saved in a dialect."""
    named, _ = in_dialect(adapters, key_maps, dialect, whole=whole)
    return read(*to_tensors(settled(named), spelling_of(dialect)))


def flux_file() -> dict[str, Tensor]:
    """A LoRA on every layer, as kohya has it: one on each fused weight, of different ranks."""
    return {
        key: tensor
        for number, (name, shape) in enumerate(FLUX.items())
        for key, tensor in lora(
            "lora_unet_" + name.replace(".", "_"), shape, 1 + number % 3
        ).items()
    }


def by_hand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The change of every weight by the formula of LoRA, of a file with the names of the host."""
    changes: dict[str, Tensor] = {}
    for name in FLUX:
        start = "lora_unet_" + name.replace(".", "_")
        up, down = (tensors[f"{start}.lora_{one}.weight"].double() for one in ("up", "down"))
        scale = float(tensors[f"{start}.alpha"]) / down.shape[0]
        changes[f"diffusion_model.{name}.weight"] = up @ down * scale
    return changes


DIALECTS: tuple[DialectName, ...] = (
    *("kohya", "lycoris", "diffusers"),
    *("peft", "comfy", "onetrainer"),
)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@each_dialect
def test_a_file_of_kohya_makes_the_same_changes_in_every_dialect_and_back(
    dialect: DialectName,
) -> None:
    tensors = flux_file()
    expected = by_hand(tensors)
    there = through(read(tensors), [flux()], dialect)
    assert_same(effect(there, flux()), expected)
    back = through(there, [flux()], "kohya")
    assert_same(effect(back, flux()), expected)
    before = {module: one.rank for module, (one,) in read(tensors).adapters.items()}
    assert {module: one.rank for module, (one,) in back.adapters.items()} == before


@pytest.mark.parametrize("family", ["SD 1.x", "SDXL"])
@each_dialect
def test_a_file_for_a_unet_makes_the_same_changes_in_every_dialect_and_back(
    family: str, dialect: DialectName
) -> None:
    tensors: dict[str, Tensor] = {}
    for target in map(Target, unet(family).shapes):
        if target.parameter == "bias":
            continue
        name = unet(family).name(target, "kohya")
        assert name is not None
        tensors |= lora(name, unet(family).shapes[target.weight])
    before = effect(read(tensors), unet(family))
    assert len(before) == len(UNET)
    there = through(read(tensors), [unet(family)], dialect)
    assert_same(effect(there, unet(family)), before)
    again, strings = to_tensors(through(there, [unet(family)], "kohya"))
    assert again.keys() == tensors.keys(), strings


def test_the_names_are_those_of_the_tools() -> None:
    tensors = lora("lora_unet_double_blocks_0_img_attn_qkv", (18, 6))
    both = tensors | lora("lora_te1_text_model_encoder_layers_0_mlp_fc1", (12, 6))
    named, notes = in_dialect(read(both), [flux(), clip()], "diffusers")
    parts = [f"transformer.transformer_blocks.0.attn.to_{one}" for one in "qkv"]
    assert [*named.adapters] == [*parts, "text_encoder.text_model.encoder.layers.0.mlp.fc1"]
    assert notes == ("1 layer split into parts of the weight.",)
    written, strings = to_tensors(settled(named), "peft")
    assert {key.rpartition(".lora_")[2] for key in written} == {"A.weight", "B.weight"}
    config = json.loads(strings["lora_adapter_metadata"])
    assert config["transformer.r"] == config["transformer.lora_alpha"] == 2
    assert config["text_encoder.target_modules"] == ["text_model.encoder.layers.0.mlp.fc1"]
    alone, _ = in_dialect(read(tensors), [flux()], "peft")
    assert next(iter(alone.adapters)) == "base_model.model.transformer_blocks.0.attn.to_q"


def test_parts_that_share_a_factor_become_one_of_the_same_rank() -> None:
    whole = read(lora("lora_unet_single_blocks_0_linear1", (42, 6), rank=3))
    parts, _ = in_dialect(whole, [flux()], "diffusers")
    assert [one.rank for (one,) in parts.adapters.values()] == [3] * 4
    ((one,),) = in_dialect(parts, [flux()], "comfy")[0].adapters.values()
    ((before,),) = whole.adapters.values()
    assert one.rank == 3
    for name, tensor in before.tensors().items():
        assert torch.equal(one.tensors()[name], tensor)


def test_a_part_without_change_and_ranks_of_other_parts_are_left_out() -> None:
    """As in sd-scripts' `split_qkv`: the ranks of q, k and v side by side."""
    tensors = {
        f"transformer.transformer_blocks.0.attn.to_{one}.lora_{letter}.weight": random(*shape)
        for rank, one in ((1, "q"), (2, "k"))
        for letter, shape in (("B", (H, rank)), ("A", (rank, H)))
    }
    joined, notes = in_dialect(read(tensors), [flux()], "kohya")
    ((one,),) = joined.adapters.values()
    assert one.rank == 3
    assert notes == ("1 layer joined to a fused weight.",)
    parts, _ = in_dialect(joined, [flux()], "diffusers")
    ranks = {module[-1]: one.rank for module, (one,) in parts.adapters.items()}
    assert ranks == {"q": 1, "k": 2, "v": 1}  # of v: a rank of zeros
    assert_same(
        {key: value for key, value in effect(parts, flux()).items() if value.norm()},
        effect(read(tensors), flux()),
    )


def test_scales_of_different_parts_are_put_into_the_factors() -> None:
    tensors = lora("transformer.transformer_blocks.0.attn.to_q", (6, 6), alpha=1.0)
    tensors |= lora("transformer.transformer_blocks.0.attn.to_v", (6, 6), alpha=5.0)
    assert_same(
        effect(through(read(tensors), [flux()], "kohya"), flux()), effect(read(tensors), flux())
    )


def biased(module: str, outputs: int) -> dict[str, Tensor]:
    return lora(module, (outputs, 6)) | {f"{module}.lora_up.bias": random(outputs)}


def whole(module: str, outputs: int) -> dict[str, Tensor]:
    return {f"{module}.diff": random(outputs, 6), f"{module}.diff_b": random(outputs)}


def dora(module: str, outputs: int) -> dict[str, Tensor]:
    return lora(module, (outputs, 6)) | {f"{module}.dora_scale": random(outputs, 1).abs()}


@pytest.mark.parametrize("make", [biased, loha, whole, dora])
def test_other_methods_are_cut_and_joined_by_rows(
    make: Callable[[str, int], dict[str, Tensor]],
) -> None:
    tensors = make("lora_unet_double_blocks_0_img_attn_qkv", 18)
    tensors |= make("lora_unet_final_layer_adaLN_modulation_1", 12)
    expected = effect(read(tensors), flux())
    # OneTrainer has diffusers' layers and kohya's spelling.
    parts = through(read(tensors), [flux()], "onetrainer")
    assert len(parts.adapters) == 4
    assert_same(effect(parts, flux()), expected)
    again = through(parts, [flux()], "kohya")
    assert len(again.adapters) == 2
    assert_same(effect(again, flux()), expected)


def test_what_cannot_be_cut_is_named_and_made_whole_if_asked() -> None:
    start = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{start}.lokr_w1": random(3, 2), f"{start}.lokr_w2": random(6, 3)}
    with pytest.raises(EditingError, match=r"img_attn_qkv is LoKr .* convert it to LoRA first"):
        in_dialect(read(tensors), [flux()], "onetrainer")
    found = through(read(tensors), [flux()], "onetrainer", whole=True)
    assert_same(effect(found, flux()), effect(read(tensors), flux()))
    inputs = lora(start, (18, 6)) | {f"{start}.dora_scale": random(1, 6)}
    with pytest.raises(EditingError, match="LoRA with DoRA"):
        in_dialect(read(inputs), [flux()], "onetrainer", whole=True)


def test_dora_on_some_parts_only_is_not_joined() -> None:
    parts = [f"transformer.transformer_blocks.0.attn.to_{one}" for one in "qkv"]
    every = [dora(part, 6) for part in parts]
    with pytest.raises(EditingError, match="DoRA"):
        in_dialect(read(every[0] | every[1]), [flux()], "kohya")
    with pytest.raises(EditingError, match="DoRA"):
        in_dialect(read(every[0] | every[1] | lora(parts[2], (6, 6))), [flux()], "kohya")


def dora_of_inputs(module: str, outputs: int) -> dict[str, Tensor]:
    return lora(module, (outputs, 6)) | {f"{module}.dora_scale": random(1, 6).abs()}


@pytest.mark.parametrize("whole", [False, True])
def test_dora_with_lengths_of_inputs_is_not_joined(whole: bool) -> None:
    """Was joined as if they were of outputs, where the parts are square, and an IndexError else."""
    start = "transformer.transformer_blocks.0.attn.to_"
    tensors = {key: one for name in "qkv" for key, one in dora_of_inputs(start + name, 6).items()}
    with pytest.raises(EditingError, match=r"to_q is LoRA with DoRA .* convert it to LoRA first"):
        in_dialect(read(tensors), [flux()], "kohya", whole=whole)
    start = "transformer.single_transformer_blocks.0."
    for name, outputs in {"attn.to_q": 6, "attn.to_k": 6, "attn.to_v": 6, "proj_mlp": 24}.items():
        tensors |= dora_of_inputs(start + name, outputs)
    one = {key: tensor for key, tensor in tensors.items() if key.startswith(start)}
    with pytest.raises(EditingError, match=r"to_q is LoRA with DoRA .* convert it to LoRA first"):
        in_dialect(read(one), [flux()], "kohya", whole=whole)


@pytest.mark.parametrize("make", [lora, loha, whole])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_numbers_of_8_bits_are_widened_where_they_are_cut_and_joined(
    make: Callable[[str, Any], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    """Was a NotImplementedError of torch."""
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = make(name, (18, 6) if make is lora else 18)
    tensors = {key: one.to(dtype) if one.ndim else one for key, one in tensors.items()}
    expected = effect(read(tensors), flux())
    parts = through(read(tensors), [flux()], "onetrainer")
    assert_same(effect(parts, flux()), expected)
    narrow: dict[str, tuple[Adapter, ...]] = {
        module: tuple(one.to("cpu", dtype) for one in several)
        for module, several in parts.adapters.items()
    }
    joined = through(AdapterSet("a", narrow, parts.metadata), [flux()], "kohya")
    assert_same(effect(joined, flux()), expected)


def test_a_scale_that_is_no_power_of_two_is_not_rounded_to_8_bits() -> None:
    tensors = {
        key: one.to(torch.float8_e4m3fn) if one.ndim else one
        for key, one in lora("lora_unet_img_in", (6, 4)).items()
    }
    found = effect(through(read(tensors), [flux()], "diffusers"), flux())
    assert_same(found, effect(read(tensors), flux()), 1e-3)


def test_a_large_scale_does_not_go_beyond_float16() -> None:
    """Was an error that said that the training went wrong."""
    start = "lora_unet_img_in"
    tensors = {
        f"{start}.lora_up.weight": (random(6, 2) * 300).half(),
        f"{start}.lora_down.weight": (random(2, 4) * 1e-3).half(),
        f"{start}.alpha": torch.tensor(2 * 40000.0),
    }
    found = effect(through(read(tensors), [flux()], "diffusers"), flux())
    assert_same(found, effect(read(tensors), flux()), 1e-3)


@pytest.mark.parametrize("dialect", ["diffusers", "peft", "lycoris", "onetrainer"])
def test_a_layer_that_diffusers_is_not_known_to_have_is_refused(dialect: DialectName) -> None:
    """Was saved under the host's names, which no other tool reads, without a word."""
    keys = {"diffusion_model.blocks.0.self_attn.q_proj.weight": (6, 6)}
    unknown = KeyMap([], keys, [diffusion_model_part(keys, [], None)])
    one = lora("lora_unet_blocks_0_self_attn_q_proj", (6, 6))
    with pytest.raises(EditingError, match=r"has no name for .* Save it for another tool"):
        in_dialect(read(one), [unknown], dialect)
    in_dialect(read(one), [unknown], "kohya")
    keys = {"diffusion_model.double_blocks.0.own.weight": (6, 6)}
    own = KeyMap([], keys, [diffusion_model_part(keys, [], BY_NAME["Flux"])])
    with pytest.raises(EditingError, match="has no name for"):
        in_dialect(read(lora("lora_unet_double_blocks_0_own", (6, 6))), [own], dialect)
    in_dialect(read(lora("lora_unet_double_blocks_0_own", (6, 6))), [own], "comfy")


def test_a_module_without_a_home_or_a_name_is_named() -> None:
    unknown = read(flux_file() | lora("lora_unet_gone", (6, 6)))
    with pytest.raises(EditingError, match=r"1 module without a home .* lora_unet_gone"):
        in_dialect(unknown, [flux()], "diffusers")
    with pytest.raises(NoMatchError, match="lora_te1_text_model"):
        in_dialect(read(lora("lora_te1_text_model_x", (6, 6))), [flux()], "diffusers")
    with pytest.raises(ShapeError):
        in_dialect(read(lora("lora_unet_img_in", (9, 9))), [flux()], "kohya")
    misfit = flux_file() | lora("lora_unet_img_in", (9, 9))
    with pytest.raises(EditingError, match="does not fit the model in 1 layer"):
        in_dialect(read(misfit), [flux()], "kohya")
    two = lora("lora_unet_img_in", (6, 4)) | lora(
        "lora_te1_text_model_encoder_layers_0_mlp_fc1", (12, 6)
    )
    with pytest.raises(EditingError, match="several models"):
        in_dialect(read(two), [flux(), clip()], "peft")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_scale_goes_into_both_factors_with_one_rounding(dtype: torch.dtype) -> None:
    """Values that float16 could not hold, had one factor the whole scale of 1 / 128."""
    tensors = lora("lora_unet_img_in", (6, 4), rank=4, alpha=4 / 128)
    tensors = {
        key: value if key.endswith("alpha") else (value * 1e-3).to(dtype)
        for key, value in tensors.items()
    }
    expected = effect(read(tensors), flux())
    found = effect(through(read(tensors), [flux()], "diffusers"), flux())
    assert_same(found, expected, 4 * torch.finfo(dtype).eps)


NO_PLACE = {
    "LoKr": {"lokr_w1": (2, 2), "lokr_w2": (3, 2)},
    "full": {"diff": (6, 4)},
    "OFT": {"oft_blocks": (3, 2, 2)},
    "LoRA with DoRA": {
        "lora_up.weight": (6, 2), "lora_down.weight": (2, 4), "dora_scale": (1, 4)
    },
}  # fmt: skip


@pytest.mark.parametrize("label", NO_PLACE)
def test_a_method_that_peft_has_no_place_for_is_refused(label: str) -> None:
    tensors = {f"lora_unet_img_in.{key}": random(*shape) for key, shape in NO_PLACE[label].items()}
    named, _ = in_dialect(read(tensors), [flux()], "diffusers")
    with pytest.raises(EditingError, match=rf"transformer\.x_embedder is {label}, .* Convert it"):
        to_tensors(settled(named), "peft")


def test_two_adapters_of_a_method_on_a_layer_are_not_written_over_each_other() -> None:
    one = read(lora("lora_unet_img_in", (6, 4)))
    ((adapter,),) = one.adapters.values()
    twice: dict[str, tuple[Adapter, ...]] = {"lora_unet_img_in": (adapter, adapter)}
    with pytest.raises(EditingError, match="two adapters of LoRA"):
        to_tensors(AdapterSet("a", twice, one.metadata))


MODEL = {
    "conv_in": (8, 6, 3, 3),
    "down.conv_in": (8, 6, 3, 3),
    "mid.to_q": (6, 6),
    "mid.to_k": (8, 6),
}


def test_peft_opens_what_is_written_for_it_and_does_the_same() -> None:
    tensors: dict[str, Tensor] = {}
    for rank, (path, shape) in enumerate(MODEL.items(), 1):
        tensors |= lora(f"base_model.model.{path}", shape, rank)
    for path, shape in MODEL.items():
        ones = [1] * (len(shape) - 2)
        scale = random(shape[0], 1, *ones).abs()
        tensors[f"base_model.model.{path}.dora_scale"] = scale
    adapters = read(tensors)
    written, strings = to_tensors(settled(adapters), "peft")
    config = json.loads(strings["lora_adapter_metadata"])
    assert config.pop("peft_type") == "LORA"
    base = weights(Layers(MODEL))
    model = peft.get_peft_model(Layers(MODEL), peft.LoraConfig(**config))
    result = peft.set_peft_model_state_dict(model, written)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    found = weights(model.merge_and_unload())
    for path in MODEL:
        (adapter,) = adapters.adapters[f"base_model.model.{path}"]
        weight = base[f"{path}.weight"]
        change = adapter.delta_weight(weight)
        assert change is not None
        torch.testing.assert_close(found[f"{path}.weight"], weight + change)


def test_lycoris_opens_what_is_settled_and_does_the_same() -> None:
    """Of PEFT's file the scale stands in its configuration only, and LyCORIS needs an alpha."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": True}
    tensors = {
        f"transformer.mid.{name}.lora_{letter}.weight": random(*shape)
        for name, outputs in (("to_q", 6), ("to_k", 8))
        for letter, shape in (("A", (2, 6)), ("B", (outputs, 2)))
    }
    strings = {
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})
    }
    written, strings = to_tensors(settled(read(tensors, strings)))
    assert "lora_adapter_metadata" not in strings
    layers = {"mid.to_q": (6, 6), "mid.to_k": (8, 6)}
    for path, shape in layers.items():
        outputs, inputs = shape
        layer = nn.Linear(inputs, outputs)
        module = lycoris.locon.LoConModule.make_module_from_state_dict(
            f"lycoris_{path}",
            layer,
            *lycoris_tensors(written, f"transformer.{path}"),
        )
        ups = [tensors[f"transformer.{path}.lora_{letter}.weight"] for letter in "BA"]
        change = ups[0] @ ups[1] * 3 / 2**0.5
        torch.testing.assert_close(module.get_diff_weight()[0], change)


def lycoris_tensors(written: Mapping[str, Tensor], module: str) -> list[Tensor | None]:
    names = lycoris.locon.LoConModule.weight_list
    return [written.get(f"{module}.{name}") for name in names]
