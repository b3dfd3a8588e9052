"""Adapters on their layers, for whoever makes others of them: places, strengths, base weights."""

from dataclasses import replace

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.errors import EditingError, NoMatchError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.nodes.placing import placed
from real_models import real_model

CPU = torch.device("cpu")
PROJ_IN = "lora_unet_down_blocks_0_attentions_0_proj_in"
TO_OUT = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return ModelPatcher(real_model("sd1"), CPU, CPU)


def file() -> AdapterSet:
    """Holds a LoRA for a convolution and a text encoder, and a change relative to a weight."""
    tensors = {
        f"{PROJ_IN}.lora_up.weight": torch.ones(320, 2, 1, 1),
        f"{PROJ_IN}.lora_down.weight": torch.ones(2, 320, 1, 1),
        f"{TEXT}.lora_up.weight": torch.ones(768, 2),
        f"{TEXT}.lora_down.weight": torch.ones(2, 768),
        f"{TO_OUT}.weight": torch.ones(1280),
        f"{TO_OUT}.on_input": torch.tensor(False),
    }
    return parse_tensors(tensors, {}, "cat.safetensors").as_trained()


def test_adapters_are_on_the_weights_that_their_names_mean(model: ModelPatcher):
    sites = {site.module: site for site in placed(file(), model).sites}
    target = sites[PROJ_IN].target
    assert target is not None
    assert target.weight == "diffusion_model.input_blocks.1.1.proj_in.weight"
    assert sites[PROJ_IN].shape == (320, 320, 1, 1)
    assert sites[TEXT].target is None


def test_strengths_are_those_of_the_part_and_of_the_block(model: ModelPatcher):
    for connected in (model, None):
        placing = placed(
            file(), connected, strength_model=0.5, strength_clip=2.0, blocks="IN:0.5, OUT:0"
        )
        strengths = {site.module: site.strength for site in placing.sites}
        assert strengths == {PROJ_IN: 0.25, TEXT: 2.0, TO_OUT: 0.0}


def test_a_change_that_depends_on_the_weight_takes_the_model(model: ModelPatcher):
    (alone,) = (site for site in placed(file()).sites if site.module == TO_OUT)
    with pytest.raises(EditingError, match=rf"\(IA\)\^3 changes in {TO_OUT}.*connect the model"):
        alone.form()
    (site,) = (site for site in placed(file(), model).sites if site.module == TO_OUT)
    assert site.target is not None
    assert site.shape is not None
    weight = torch.randn(site.shape, generator=torch.Generator().manual_seed(0))
    layer = model.model.get_submodule(site.target.module)
    layer.weight, layer.bias = torch.nn.Parameter(weight), None
    assert torch.equal(site.weight(), weight)
    assert site.form().norm() == pytest.approx(float(torch.linalg.vector_norm(weight)))


def test_what_has_no_place_is_told(model: ModelPatcher):
    nowhere = {
        "lora_unet_nowhere.lora_up.weight": torch.ones(3, 2),
        "lora_unet_nowhere.lora_down.weight": torch.ones(2, 3),
    }
    text = {f"{TEXT}.lora_up.weight": torch.ones(768, 2)}
    text |= {f"{TEXT}.lora_down.weight": torch.ones(2, 768)}
    for_another, partly = (
        parse_tensors(tensors, {}, "cat.safetensors").as_trained()
        for tensors in (nowhere, nowhere | text)
    )
    with pytest.raises(NoMatchError, match=r"Nothing of cat\.safetensors fits.*lora_unet_nowhere"):
        placed(for_another, model)
    # What is for a part that is not connected may be right.
    placing = placed(partly, model)
    assert placing.sites[0].target is None
    assert "lora_unet_nowhere" in placing.notes[0]


def test_a_weight_that_a_patch_makes_larger_is_told(model: ModelPatcher):
    (site,) = (site for site in placed(file(), model).sites if site.module == TO_OUT)
    assert site.target is not None
    layer = model.model.get_submodule(site.target.module)
    layer.weight, layer.bias = torch.nn.Parameter(torch.ones(1280, 1280)), None
    control = model.clone()
    larger = torch.ones(1280, 1290)
    control.add_patches({site.target.weight: ("diff", (larger, {"pad_weight": True}))})
    (site,) = (site for site in placed(file(), control).sites if site.module == TO_OUT)
    told = r"patch makes that larger: \[1280, 1290\] instead of \[1280, 1280\]. Connect the model"
    with pytest.raises(EditingError, match=told):
        site.form()


def test_several_doras_of_a_layer_keep_apart(model: ModelPatcher):
    def dora(outputs: int, inputs: int) -> Dora:
        inner = Lora(torch.ones(outputs, 2), torch.ones(2, inputs))
        return Dora(inner, dora_scale=torch.ones(inputs))

    tells = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2"
    square = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    doras = (dora(320, 320), dora(320, 320))
    adapters = {tells: (dora(320, 1280),), square: doras}
    sites = placed(replace(file(), adapters=adapters), model).sites
    found = [site.adapter for site in sites if site.module == square]
    assert [one.inner for one in found] == [one.inner for one in doras]
    assert all(one.flat_axis == "inputs" for one in found)
