"""What is trained of the models of all families: sd-scripts' and LyCORIS' sets, by their names."""

import re
from collections import Counter
from functools import cache

import comfy.lora
import pytest
import torch
from comfy import sd1_clip, sdxl_clip
from comfy.text_encoders import flux
from torch import nn

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.kohya_blocks import rules_of_arguments
from anyadapter.algorithms.training.layer_presets import LAYER_PRESETS
from anyadapter.algorithms.training.rules import PlacedRules, RuleTable
from anyadapter.algorithms.training.targets import Targets
from anyadapter.nodes.host.training_targets import clip_targets, model_targets
from name_lists import weights_of
from real_models import MODELS, as_clip, as_model, real_model

ENCODERS = {"sd1": sd1_clip.SD1ClipModel, "sdxl": sdxl_clip.SDXLClipModel, "flux": None}
ALIKE = {"wan_small", "wan_i2v", "pixart_alpha", "sdxl_refiner"}
"""Whose layers are named as those of another one here."""
every_family = pytest.mark.parametrize("family", sorted({*MODELS} - ALIKE))


@cache
def model_of(family: str) -> nn.Module:
    return real_model(family)


@cache
def of_model(family: str) -> Targets:
    return model_targets(as_model(model_of(family)))


@cache
def encoders_of(family: str) -> nn.Module:
    device = torch.device("meta")
    with device:
        if family == "flux":
            return flux.flux_clip(torch.float16)(device=device, dtype=torch.float16)
        return ENCODERS[family](device=device)


@cache
def of_clip(family: str) -> Targets:
    return clip_targets(as_clip(encoders_of(family)))


def chosen(preset: str, targets: Targets, *, norms: bool = False) -> PlacedRules:
    return RuleTable.of_preset(preset).on(targets, norms=norms)


def names(placed: PlacedRules) -> set[str]:
    return {one.layer.name for one in placed.chosen}


def of_diffusers(family: str, pattern: str) -> set[str]:
    """Names as sd-scripts makes them of the layers of diffusers' model whose path has a pattern."""
    layers = [named.name for named in weights_of(family) if named.is_layer]
    return {"lora_unet_" + name.replace(".", "_") for name in layers if re.search(pattern, name)}


@every_family
def test_every_layer_has_a_name_of_its_own_that_the_host_knows(family: str):
    known = comfy.lora.model_lora_keys_unet(model_of(family), {})
    targets = of_model(family)
    assert all(known[layer.name] == layer.target.weight for layer in targets.layers)
    assert len({layer.name for layer in targets.layers}) == len(targets.layers)


@pytest.mark.parametrize("family", ENCODERS)
def test_every_layer_of_a_text_encoder_has_a_name_that_the_host_knows(family: str):
    known = comfy.lora.model_lora_keys_clip(encoders_of(family), {})
    targets = of_clip(family)
    assert all(known[layer.name] == layer.target.weight for layer in targets.layers)
    assert len({layer.name for layer in targets.layers}) == len(targets.layers)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_lierla_has_the_modules_of_sd_scripts(family: str):
    found = names(chosen("LierLa", of_model(family)))
    assert found == of_diffusers(family, r"\.attentions\.")
    assert len(found) == 192


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_c3lier_adds_resnets_and_samplers(family: str):
    found = names(chosen("C3Lier", of_model(family)))
    assert found == of_diffusers(family, r"\.(attentions|resnets|downsamplers|upsamplers)\.")
    assert len(found) == 192 + 86


def test_sdxl_has_the_numbers_and_the_names_of_sd_scripts():
    lierla, c3lier = (chosen(name, of_model("sdxl")) for name in ("LierLa", "C3Lier"))
    assert (len(lierla.chosen), len(c3lier.chosen)) == (722, 722 + 66)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in names(lierla)
    assert Counter(one.layer.kind for one in c3lier.chosen)["kxk"] == 38


@pytest.mark.parametrize(
    ("family", "starts"),
    [
        ("sd1", {"lora_te_": 72}),
        ("sdxl", {"lora_te1_": 72, "lora_te2_": 192}),
        ("flux", {"lora_te1_": 72}),
    ],
)
def test_lierla_has_the_text_encoders_of_sd_scripts(family: str, starts: dict[str, int]):
    found = names(chosen("LierLa", of_clip(family)))
    layers = r"text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
    assert all(re.fullmatch(rf"lora_te\d?_{layers}", name) for name in found)
    assert Counter(name[: name.index("text")] for name in found) == starts


@pytest.mark.parametrize("preset", sorted(LAYER_PRESETS))
def test_t5_is_trained_only_where_a_rule_says_so(preset: str):
    both = of_model("sd1").joined(of_clip("flux"))
    t5 = [name for name in names(chosen(preset, both)) if "encoder_block" in name]
    assert not t5
    switched = RuleTable.parse("T5.attn: on").followed_by(RuleTable.of_preset(preset)).on(both)
    assert sum("SelfAttention" in name for name in names(switched)) == 4 * 24


def test_flux_has_the_blocks_of_sd_scripts():
    found = names(chosen("LierLa", of_model("flux")))
    assert len(found) == 19 * 10 + 38 * 3
    assert all(re.match(r"lora_unet_(double|single)_blocks_\d+_", name) for name in found)
    assert "lora_unet_double_blocks_0_img_attn_qkv" in found


@pytest.mark.parametrize(
    ("preset", "sd1", "sdxl", "flux", "wan"),
    [
        ("full", 282, 794, 314, 407),
        ("unet-only", 282, 794, 314, 407),
        ("full-lin", 282 - 52, 794 - 40, 314, 406),
        ("attn-mlp", 192, 722, 19 * 8 + 76, 400),
        ("attn-only", 128, 560, 19 * 4 + 76, 320),
        ("unet-transformer-only", 192, 722, 304, 400),
        ("ia3", 64 + 16, 280 + 70, 19 * 4, 160 + 40),
    ],
)
def test_presets_have_as_many_layers(preset: str, sd1: int, sdxl: int, flux: int, wan: int):
    counts = [len(chosen(preset, of_model(name)).chosen) for name in ("sd1", "sdxl", "flux", "wan")]
    assert counts == [sd1, sdxl, flux, wan]


def test_convolution_blocks_are_those_of_lycoris():
    found = names(chosen("unet-convblock-only", of_model("sd1")))
    assert found == of_diffusers("sd1", r"\.(resnets|downsamplers|upsamplers)\.")
    with pytest.raises(TrainingError, match="none of 314 layers"):
        chosen("unet-convblock-only", of_model("flux"))


@every_family
@pytest.mark.parametrize("preset", ["LierLa", "full", "attn-mlp", "attn-only", "ia3"])
def test_presets_mean_something_in_every_family(family: str, preset: str):
    placed = chosen(preset, of_model(family))
    assert len(placed.chosen) >= 32
    assert all(one.layer.kind != "norm" for one in placed.chosen)


def test_ia3_scales_the_inputs_of_the_second_layer_of_an_mlp():
    both = of_model("sd1").joined(of_clip("sd1"))
    placed = chosen("ia3", both)
    sides = {one.layer.name: "on_input" in one.options for one in placed.chosen}
    start = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    assert sides[f"{start}_attn1_to_k"] is False
    assert sides[f"{start}_ff_net_2"] is True
    assert sides["lora_te_text_model_encoder_layers_0_mlp_fc2"] is True
    assert len(sides) == 80 + 36


def test_norms_are_those_of_the_modules_that_are_trained():
    norms = {
        preset: sum(
            one.layer.kind == "norm" for one in chosen(preset, of_model("sd1"), norms=True).chosen
        )
        for preset in ("LierLa", "C3Lier", "unet-convblock-only", "attn-only")
    }
    # 16 transformers of a group norm and three layer norms, 22 resnets of two group norms.
    assert norms == {"LierLa": 64, "C3Lier": 108, "unet-convblock-only": 44, "attn-only": 0}


@every_family
def test_every_preset_is_a_table_that_can_be_written_and_read(family: str):
    targets = of_model(family)
    for name in LAYER_PRESETS:
        table = RuleTable.of_preset(name)
        read = RuleTable.parse(table.text()).optional()
        assert read.rules == table.rules
    assert "Trained: " in chosen("full", targets).describe()


def test_block_lists_of_sdxl_reach_the_three_parts_of_the_middle():
    ranks = ",".join(str(number) for number in range(1, 24))
    table = rules_of_arguments({"block_dims": ranks}, of_model("sdxl"), learning_rate=1e-4)
    placed = table.followed_by(RuleTable.of_preset("full")).on(of_model("sdxl"))
    by_block: dict[str, set[object]] = {}
    for one in placed.chosen:
        parts = one.layer.target.module.split(".")[1:]
        by_block.setdefault(".".join(parts[:2]), set()).add(one.options.get("rank"))
    outside = {name: by_block.pop(name) for name in list(by_block) if "block" not in name}
    assert by_block == {
        **{f"input_blocks.{number}": {number + 2} for number in range(9)},
        **{f"middle_block.{number}": {number + 11} for number in range(3)},
        **{f"output_blocks.{number}": {number + 14} for number in range(9)},
    }
    assert outside == {"time_embed.0": {1}, "time_embed.2": {1}, "label_emb.0": {1}, "out.2": {23}}


def test_parts_of_flux_have_their_ranks():
    arguments = {
        "img_attn_dim": "4",
        "single_mod_dim": "0",
        "in_dims": "8,0,0,0,2",
        "train_double_block_indices": "0-5,7",
        "train_single_block_indices": "none",
    }
    targets = of_model("flux")
    table = rules_of_arguments(arguments, targets, learning_rate=1e-4)
    placed = table.followed_by(RuleTable.of_preset("LierLa")).on(targets)
    blocks = {one.layer.place.block for one in placed.chosen}
    assert blocks == {*(f"D{number:02}" for number in (0, 1, 2, 3, 4, 5, 7)), "IN"}
    ranks = {one.layer.name: one.options.get("rank") for one in placed.chosen}
    assert ranks["lora_unet_double_blocks_0_img_attn_qkv"] == 4
    assert ranks["lora_unet_double_blocks_0_txt_attn_qkv"] is None
    assert (ranks["lora_unet_img_in"], ranks["lora_unet_txt_in"]) == (8, 2)
    assert "lora_unet_time_in_in_layer" not in ranks


@pytest.mark.parametrize(
    ("family", "arguments", "count"),
    [
        ("flux", {"train_blocks": "double"}, 190),
        ("flux", {"train_blocks": "single"}, 114),
        ("flux", {"train_blocks": "all"}, 304),
        ("flux", {"single_dim": "0", "train_blocks": "single"}, 38),
        ("sd35_medium", {"train_block_indices": "0"}, 12),
        ("sd35_medium", {"x_attn_dim": "0", "train_block_indices": "0"}, 8),
        ("sd35_medium", {"emb_dims": "1,1,1,1,1,1", "train_block_indices": "none"}, 8),
        ("lumina2", {"train_blocks": "refiners"}, 22),
        ("lumina2", {"train_blocks": "refiners", "attn_dim": "0"}, 14),
        ("lumina2", {"train_blocks": "noise_refiner", "refiner_dim": "0", "mlp_dim": "2"}, 6),
    ],
)
def test_arguments_of_transformers_choose_layers(
    family: str, arguments: dict[str, str], count: int
):
    targets = of_model(family)
    table = rules_of_arguments(arguments, targets, learning_rate=1e-4)
    table = table.followed_by(RuleTable.of_preset("LierLa"))
    assert len(table.on(targets).chosen) == count
