"""Extract Adapter on the small SD 1.5: the base with what comes out is the tuned model again."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

import training_world
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.editing.extraction import METHODS, Method
from anyadapter.algorithms.errors import EditingError
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.nodes import extracting
from anyadapter.nodes.adapting import Wish, adapt
from anyadapter.nodes.extracting import ExtractAdapter
from anyadapter.nodes.host.weights import Weights
from without_page import without_page

UNET = "diffusion_model."
MATRIX = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q"
WITH_BIAS = f"{UNET}middle_block.1.transformer_blocks.0.ff.net.2"
POINT = f"{UNET}output_blocks.0.1.proj_in"
KERNEL = f"{UNET}input_blocks.1.0.in_layers.2"
GROUP_NORM = f"{UNET}out.0"
LAYER_NORM = f"{UNET}middle_block.1.transformer_blocks.0.norm2"
TEXT = "clip_l.transformer.text_model.encoder.layers.3."
OF_MODEL = {
    f"{MATRIX}.weight": 4,
    f"{WITH_BIAS}.weight": 2,
    f"{WITH_BIAS}.bias": 0,
    f"{POINT}.weight": 4,
    f"{KERNEL}.weight": 3,
    f"{GROUP_NORM}.weight": 0,
    f"{GROUP_NORM}.bias": 0,
    f"{LAYER_NORM}.bias": 0,
}
"""Parameter that was trained -> rank of its change; 0 for what is no matrix."""
OF_CLIP = {
    f"{TEXT}mlp.fc1.weight": 4,
    f"{TEXT}self_attn.q_proj.bias": 0,
    f"{TEXT}layer_norm1.weight": 0,
}
ARGUMENTS = {"size": "rank", "rank": 4, "kept_energy": 0.9, "error": 0.1}


def patcher_of(part: Any) -> ModelPatcher:
    return getattr(part, "patcher", part)


def tuned(part: Any, ranks: Mapping[str, int]) -> Any:
    """A clone whose weights are another, by patches of the host."""
    clone, changes = part.clone(), {}
    shapes = {key: tuple(value.shape) for key, value in patcher_of(part).model_state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    for key, rank in ranks.items():
        outputs, *inputs = shapes[key]
        columns = torch.Size(inputs).numel()
        if rank:
            change = torch.randn(outputs, rank, generator=generator) @ torch.randn(
                rank, columns, generator=generator
            )
            change = change.reshape(shapes[key]) * (0.1 / (rank * columns) ** 0.5)
        else:
            change = torch.randn(shapes[key], generator=generator) * 0.1
        changes[key] = ("diff", (change,))
    assert set(clone.add_patches(changes)) == set(ranks)
    return clone


def numbers(part: Any, keys: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = Weights(patcher_of(part), with_adapters=True)
    found = {key: weights.read(key) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


@pytest.fixture(scope="module")
def models() -> Any:
    return training_world.models()


@pytest.fixture(scope="module")
def model_tuned(models: Any) -> Any:
    return tuned(models.model, OF_MODEL)


@pytest.fixture(scope="module")
def clip_tuned(models: Any) -> Any:
    return tuned(models.clip, OF_CLIP)


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    without_page(monkeypatch, extracting, ExtractAdapter)


def extract(method: Method = "LoRA", **inputs: Any) -> tuple[AdapterSet, str]:
    adapter_set, report = ExtractAdapter.execute(method=method, **{**ARGUMENTS, **inputs}).args
    return adapter_set, report


@pytest.fixture(scope="module")
def whole(models: Any, model_tuned: Any, clip_tuned: Any) -> Iterator[tuple[AdapterSet, str]]:
    """A LoRA of model and text encoders."""
    with pytest.MonkeyPatch.context() as patch:
        without_page(patch, extracting, ExtractAdapter)
        yield extract(
            model_tuned=model_tuned,
            model_base=models.model,
            clip_tuned=clip_tuned,
            clip_base=models.clip,
        )


def assert_same(made: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert made.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(made[key], tensor, rtol=0, atol=2e-6, msg=key)


def test_only_what_was_trained_has_adapters(whole: tuple[AdapterSet, str]) -> None:
    adapter_set, report = whole
    kinds = {
        module: [type(one) for one in several] for module, several in adapter_set.adapters.items()
    }
    block = "mid_block_attentions_0_transformer_blocks_0"
    assert kinds == {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": [Lora],
        f"lora_unet_{block}_ff_net_2": [Lora, Diff],
        f"lora_unet_{block}_norm2": [Norm],
        "lora_unet_up_blocks_0_attentions_0_proj_in": [Lora],
        "lora_unet_down_blocks_0_resnets_0_conv1": [Lora],
        "lora_unet_conv_norm_out": [Norm],
        "lora_te_text_model_encoder_layers_3_mlp_fc1": [Lora],
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj": [Diff],
        f"text_encoders.{TEXT}layer_norm1": [Norm],
    }
    assert "9 layers" in report
    assert "Exact within the precision of float32" in report
    assert adapter_set.metadata.strings["ss_base_model_version"] == "sd_v1"
    assert adapter_set.metadata.strings["ss_network_dim"] == "4"


def test_load_adapter_makes_the_tuned_model_of_the_base(
    models: Any, model_tuned: Any, clip_tuned: Any, whole: tuple[AdapterSet, str]
) -> None:
    adapted = adapt(Wish("x", mode="patch", trained=whole[0]), models.model, models.clip)
    assert_same(numbers(adapted.model, OF_MODEL), numbers(model_tuned, OF_MODEL))
    assert_same(numbers(adapted.clip, OF_CLIP), numbers(clip_tuned, OF_CLIP))


def test_the_stock_loader_makes_the_tuned_model_of_the_base(
    models: Any,
    model_tuned: Any,
    clip_tuned: Any,
    whole: tuple[AdapterSet, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tensors, _ = to_tensors(whole[0])
    keys = comfy.lora.model_lora_keys_unet(models.model.model, {})
    keys = comfy.lora.model_lora_keys_clip(models.clip.cond_stage_model, keys)
    patches = comfy.lora.load_lora(tensors, keys)
    assert "not loaded" not in caplog.text
    for part, wanted, trained in (
        (models.model, model_tuned, OF_MODEL),
        (models.clip, clip_tuned, OF_CLIP),
    ):
        clone = part.clone()
        assert set(clone.add_patches(patches)) >= set(trained)
        assert_same(numbers(clone, trained), numbers(wanted, trained))


def test_what_no_checkpoint_holds_is_no_difference(models: Any) -> None:
    """ComfyUI never fills this weight: extracted adapters held what was in its memory before."""
    projection = "clip_l.transformer.text_projection.weight"
    wanted = f"{TEXT}mlp.fc1.weight"
    clip_tuned = tuned(models.clip, {projection: 0, wanted: 2})
    made, report = extract(clip_tuned=clip_tuned, clip_base=models.clip)
    assert [*made.adapters] == ["lora_te_text_model_encoder_layers_3_mlp_fc1"]
    assert "text_projection" not in report


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_read_back_as_it_was_made(
    models: Any, model_tuned: Any, method: Method
) -> None:
    made, report = extract(method, model_tuned=model_tuned, model_base=models.model)
    tensors, strings = to_tensors(made)
    read = parse_tensors(tensors, strings, "made.safetensors").as_trained()
    assert not read.unclaimed
    assert report.startswith(f"{method} of 6 layers")
    wish = Wish("x", mode="patch", trained=made)
    again = Wish("x", mode="patch", trained=read)
    one, other = (adapt(each, models.model, None).model for each in (wish, again))
    assert_same(numbers(one, OF_MODEL), numbers(other, OF_MODEL))
    if method in ("DoRA", "full"):
        assert_same(numbers(one, OF_MODEL), numbers(model_tuned, OF_MODEL))


def test_a_size_by_error_gives_each_layer_its_rank(models: Any, model_tuned: Any) -> None:
    made, report = extract(
        size="error", error=0.001, model_tuned=model_tuned, model_base=models.model
    )
    ranks = {one.rank for several in made.adapters.values() for one in several if one.rank}
    assert ranks == {2, 3, 4}
    assert "rank 2 to 4." in report
    assert made.metadata.strings["ss_network_dim"] == "Dynamic"


def test_kernels_have_their_own_rank_and_the_lost_part_is_told(
    models: Any, model_tuned: Any
) -> None:
    made, report = extract(conv_rank=1, model_tuned=model_tuned, model_base=models.model)
    (kernel,) = made.adapters["lora_unet_down_blocks_0_resnets_0_conv1"]
    assert kernel.rank == 1
    assert "Error" in report
    assert "conv1" in report


def test_layers_of_other_shapes_are_named_and_left_out(models: Any, model_tuned: Any) -> None:
    """Inpainting models have nine channels to begin with."""
    inpainting = model_tuned.clone()
    wider = torch.nn.Conv2d(9, 320, 3, padding=1)
    inpainting.add_object_patch(f"{UNET}input_blocks.0.0", wider)
    made, report = extract(model_tuned=inpainting, model_base=models.model)
    assert "input_blocks.0.0.weight ([320, 4, 3, 3] and [320, 9, 3, 3])" in report
    assert "lora_unet_conv_in" not in made.adapters
    assert len(made.adapters) >= 6


def grown(part: Any, key: str) -> Any:
    """A clone with a patch that makes a weight larger, as that of a control LoRA of Flux."""
    outputs, inputs, *kernel = dict(patcher_of(part).model_state_dict())[key].shape
    clone, larger = part.clone(), torch.full((outputs, 2 * inputs, *kernel), 0.01)
    clone.add_patches({key: ("diff", (larger, {"pad_weight": True}))})
    return clone


@pytest.mark.parametrize("side", ["tuned", "base", "both"])
def test_weights_that_a_patch_makes_larger_are_named_and_left_out(
    models: Any, model_tuned: Any, side: str
) -> None:
    key = f"{KERNEL}.weight"
    of_tuned, of_base = (
        grown(part, key) if side in (which, "both") else part
        for which, part in (("tuned", model_tuned), ("base", models.model))
    )
    made, report = extract(model_tuned=of_tuned, model_base=of_base)
    told = r"a patch makes weights larger .*: lora_unet_down_blocks_0_resnets_0_conv1\."
    assert re.search(told, report)
    assert "lora_unet_down_blocks_0_resnets_0_conv1" not in made.adapters
    assert len(made.adapters) == 5


def test_a_bias_that_cannot_be_read_is_named_and_its_weight_kept(
    models: Any, model_tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Weights.read

    def of_one(weights: Weights, key: str) -> Tensor | None:
        tuned_one = weights._patcher is model_tuned
        return None if tuned_one and key == f"{WITH_BIAS}.bias" else read(weights, key)

    monkeypatch.setattr(Weights, "read", of_one)
    made, report = extract(model_tuned=model_tuned, model_base=models.model)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
    assert (
        f"numbers cannot be had (they are quantised in a way that is unknown here): the bias of {name}."
        in report
    )
    assert [type(one) for one in made.adapters[name]] == [Lora]
    _, without = extract(norms_and_biases=False, model_tuned=model_tuned, model_base=models.model)
    assert "the bias of" not in without


def test_the_user_can_stop_it_while_it_looks_at_what_no_file_names(
    models: Any, model_tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        raise AssertionError("it went on")

    monkeypatch.setattr(Weights, "read", stopped)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extract(model_tuned=model_tuned, model_base=models.model)


def test_the_user_can_stop_it(models: Any, model_tuned: Any) -> None:
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extract(model_tuned=model_tuned, model_base=models.model)


def test_hooks_do_not_count_and_it_is_said(
    models: Any, model_tuned: Any, whole: tuple[AdapterSet, str]
) -> None:
    hooked = adapt(Wish("x", trained=whole[0]), models.model, None).model
    with pytest.raises(EditingError, match=r"no difference .* tuned diffusion model by hooks"):
        extract(model_tuned=hooked, model_base=models.model)
    _, report = extract(model_tuned=model_tuned, model_base=hooked)
    assert "base diffusion model by hooks" in report


def test_what_is_missing_or_the_same_is_an_error(models: Any, model_tuned: Any) -> None:
    with pytest.raises(EditingError, match="nothing to compare"):
        extract()
    with pytest.raises(EditingError, match="only one is connected"):
        extract(model_tuned=model_tuned, clip_tuned=models.clip, clip_base=models.clip)
    with pytest.raises(EditingError, match="no difference"):
        extract(model_tuned=models.model.clone(), model_base=models.model)
