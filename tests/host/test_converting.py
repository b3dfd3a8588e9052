"""Convert Adapter on the small checkpoint: what it makes, ComfyUI's own loader reads and does."""

import comfy.lora
import comfy.model_management
import comfy.sd
import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.errors import EditingError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.nodes import converting
from anyadapter.nodes.converting import ConvertAdapter
from anyadapter.nodes.placing import placed
from base_directory import cached_checkpoint
from without_page import without_page

BLOCK = "lora_unet_down_blocks_0"
QUERY = f"{BLOCK}_attentions_0_transformer_blocks_0_attn1_to_q"
KERNEL = f"{BLOCK}_resnets_0_conv1"
POINTWISE = f"{BLOCK}_attentions_0_proj_in"
NORM = f"{BLOCK}_resnets_0_norm1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
WEIGHTS = {
    QUERY: "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    KERNEL: "diffusion_model.input_blocks.1.0.in_layers.2.weight",
    POINTWISE: "diffusion_model.input_blocks.1.1.proj_in.weight",
    NORM: "diffusion_model.input_blocks.1.0.in_layers.0.weight",
    TEXT: "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
}


@pytest.fixture(scope="module")
def loaded():
    return comfy.sd.load_checkpoint_guess_config(str(cached_checkpoint()), output_vae=False)[:2]


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return without_page(monkeypatch, converting, ConvertAdapter)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator) * 0.1


def file() -> AdapterSet:
    """A file of five methods; those on the query and in the text encoder depend on the weight."""
    tensors = {
        f"{QUERY}.lora_up.weight": random(320, 4),
        f"{QUERY}.lora_down.weight": random(4, 320),
        f"{QUERY}.dora_scale": random(320, 1).abs() + 0.5,
        f"{KERNEL}.hada_w1_a": random(320, 2),
        f"{KERNEL}.hada_w1_b": random(2, 2880),
        f"{KERNEL}.hada_w2_a": random(320, 2) + 0.1,
        f"{KERNEL}.hada_w2_b": random(2, 2880) + 0.2,
        f"{POINTWISE}.lokr_w1": random(8, 8),
        f"{POINTWISE}.lokr_w2_a": random(40, 3),
        f"{POINTWISE}.lokr_w2_b": random(3, 40),
        f"{POINTWISE}.alpha": torch.tensor(2.0),
        f"{NORM}.w_norm": random(320),
        f"{NORM}.b_norm": random(320),
        f"{TEXT}.oft_blocks": random(96, 8, 8),
        f"{TEXT}.alpha": torch.tensor(0.0),
    }
    return parse_tensors(
        tensors, {"ss_network_module": "lycoris.kohya"}, "cat.safetensors"
    ).as_trained()


def convert(source: AdapterSet, to="LoRA", size="all of it", **more):
    made, report = ConvertAdapter.execute(
        source, to, size, **{"rank": 4, "kept_energy": 0.9, "error": 0.1} | more
    ).result
    return made, report


def weight_of(loaded, module: str) -> Tensor:
    part = loaded[1].cond_stage_model if module == TEXT else loaded[0].model
    return part.get_parameter(WEIGHTS[module]).detach().float().clone()


def by_stock_loader(loaded, adapter_set: AdapterSet) -> dict[str, Tensor]:
    """The weights that ComfyUI's own loader makes of a file."""
    names = comfy.lora.model_lora_keys_unet(loaded[0].model, {})
    names = comfy.lora.model_lora_keys_clip(loaded[1].cond_stage_model, names)
    tensors = {key: one.contiguous() for key, one in to_tensors(adapter_set)[0].items()}
    patches = comfy.lora.load_lora(tensors, names)
    return {
        module: comfy.lora.calculate_weight(
            [(1.0, patches[key], 1.0, None, None)], weight_of(loaded, module), key
        )
        for module, key in WEIGHTS.items()
    }


@pytest.mark.parametrize("to", ["LoRA", "full difference"])
def test_the_stock_loader_makes_the_weights_of_the_source(loaded, shown, to):
    source = file()
    made, report = convert(source, to, model=loaded[0], clip=loaded[1])
    found = by_stock_loader(loaded, made)
    for module, (adapter,) in source.adapters.items():
        weight = weight_of(loaded, module)
        expected = adapter.delta_weight(weight)
        error = (found[module] - weight - expected).norm() / expected.norm()
        assert error < 2e-5, module
    assert [*made.adapters[NORM]] == [*source.adapters[NORM]]
    assert "Exact within the precision of float32, in 5 layers." in report
    assert shown == [report]
    if to == "LoRA":
        assert made.adapters[KERNEL][0].down.shape == (4, 320, 3, 3)
        assert made.adapters[POINTWISE][0].up.shape == (320, 24, 1, 1)
        assert "In 2 layers the LoRA is larger than the weight" in report


def test_the_error_that_is_told_is_that_of_the_weights(loaded):
    source = file()
    made, report = convert(
        source, size="error", error=0.3, conv_rank=1, model=loaded[0], clip=loaded[1]
    )
    found = by_stock_loader(loaded, made)
    lost = exact = 0.0
    for module, (adapter,) in source.adapters.items():
        weight = weight_of(loaded, module)
        expected = adapter.delta_weight(weight)
        error = (found[module] - weight - expected).norm() ** 2
        assert module == KERNEL or error <= (0.3 * expected.norm()) ** 2
        lost, exact = lost + error, exact + expected.norm() ** 2
    exact += source.adapters[NORM][0].b_norm.norm() ** 2
    assert made.adapters[KERNEL][0].rank == 1
    assert f"Error {100 * float(lost / exact) ** 0.5:.2g} % of the change" in report


def test_without_the_model_it_says_what_to_connect(loaded):
    with pytest.raises(EditingError, match=r"LoRA with DoRA, OFT.* in 2 layers .*MODEL and CLIP"):
        convert(file())
    with pytest.raises(EditingError, match=rf"OFT.*first in {TEXT}\). Connect the CLIP"):
        convert(file(), model=loaded[0])


def test_a_lora_is_resized_alone():
    up, down = random(40, 8), random(8, 30)
    tensors = {f"{QUERY}.lora_up.weight": up, f"{QUERY}.lora_down.weight": down}
    source = parse_tensors(tensors, {"ss_network_module": "networks.dylora"}, "cat").as_trained()
    made, _ = convert(source, size="rank")
    (lora,) = made.adapters[QUERY]
    values = torch.linalg.svdvals(up @ down)
    lost = (up @ down - lora.up @ lora.down).norm()
    assert lora.rank == 4
    assert lost == pytest.approx(float(values[4:].norm()), rel=1e-5)
    cut, report = convert(source, "as it is", cut=3)
    assert torch.equal(cut.adapters[QUERY][0].up, up[:, :3])
    assert "LoRA in 1 layer, rank 3" in report


def test_the_largest_rank_limits_all_of_it(loaded):
    made, report = convert(file(), largest_rank=4, model=loaded[0], clip=loaded[1])
    assert {one.rank for several in made.adapters.values() for one in several} == {4, None}
    assert "Error " in report


def test_it_stops_where_the_user_cancels(loaded):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        convert(file(), model=loaded[0], clip=loaded[1])


def test_the_result_has_its_places_in_the_model(loaded):
    made, _ = convert(file(), model=loaded[0], clip=loaded[1])
    sites = placed(made, *loaded).sites
    assert {site.module for site in sites if site.target is not None} == {*WEIGHTS}
