"""Adapters baked into a model: as weight patches they mean what they meant as hooks."""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_merging import ModelMergeSimple
from torch import Tensor, nn

from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.binding import Bound
from anyadapter.algorithms.errors import EditingError, UnsupportedLayerError
from anyadapter.algorithms.keymap import Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.schedule import Schedule
from anyadapter.algorithms.strength import Dial, Placed, merged_bias, merged_weight
from anyadapter.nodes.adapting import CLIP, MODEL
from anyadapter.nodes.host.applying import Mode, apply
from anyadapter.nodes.host.baking import bake
from anyadapter.nodes.host.memory import KEY
from anyadapter.nodes.host.weights import Weights, read_weights
from anyadapter.nodes.merging import baked_parts
from base_directory import CHECKPOINT_NAME, example_workflow
from comfy_server import ComfyServer
from made_adapters import Applied
from pictures import Pictures
from workflows import api_form, text_to_latent

CPU = torch.device("cpu")
WEIGHT, BIAS = "diffusion_model.layer.weight", "diffusion_model.layer.bias"
TOLERANCE = 1e-4
"""Of the effect, as for every picture of a method: rounding in float32."""


class Model(nn.Module):
    """One layer, under a name that nodes which merge models look for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = nn.Module()
        self.diffusion_model.layer = layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.diffusion_model.layer(x)


def linear(dtype: torch.dtype = torch.float32, *, bias: bool = True, outputs: int = 8) -> nn.Module:
    layer = comfy.ops.manual_cast.Linear(6, outputs, bias=bias, dtype=dtype)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape).to(dtype)
    return layer


def patcher_of(layer: nn.Module) -> ModelPatcher:
    return ModelPatcher(Model(layer), CPU, CPU)


def bound(adapter: Adapter, rows: Rows | None = None, weight: str = WEIGHT) -> Bound:
    return Bound("a", Target(weight, rows), adapter)


def adapted(
    base: ModelPatcher, items: Sequence[Bound], strength: float, mode: Mode = "hook"
) -> ModelPatcher:
    clone = base.clone()
    apply(clone, items, Dial(strength, "style.safetensors"), mode)
    return clone


def baked(patcher: ModelPatcher, *, by_chance: bool = False) -> ModelPatcher:
    clone = patcher.clone()
    bake(clone, by_chance=by_chance)
    return clone


def weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    """Loads a patcher as the host does before it saves, and returns its weights."""
    comfy.model_management.load_models_gpu([patcher], force_patch_weights=True)
    return {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}


def output(patcher: ModelPatcher, x: Tensor) -> Tensor:
    comfy.model_management.load_models_gpu([patcher])
    with torch.no_grad():
        return patcher.model(x)


def is_bare(patcher: ModelPatcher) -> bool:
    return all("forward" not in module.__dict__ for module in patcher.model.modules())


each_case = pytest.mark.parametrize("case", ADAPTER_CASES, ids=lambda case: case.name)


@each_case
@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 0.0])
def test_the_weights_of_a_baked_model_are_the_merged_ones(
    case: AdapterCase, strength: float
) -> None:
    layer = case.layers()[0].to(torch.float32)
    adapter = case.on(case.layers()[0]).to(CPU, torch.float32)
    base = patcher_of(layer.module)
    before = weights(base)
    after = weights(baked(adapted(base, [bound(adapter)], strength)))
    placed = [Placed(adapter, strength)]
    expected = {WEIGHT: merged_weight(before[WEIGHT], placed)}
    if BIAS in before:
        expected[BIAS] = merged_bias(before[BIAS], 8, placed)
    assert after.keys() == expected.keys()
    for key in expected:
        assert torch.equal(after[key], expected[key])
    assert any(not torch.equal(after[key], before[key]) for key in before) == (strength != 0)


@each_case
def test_a_baked_model_computes_what_the_hooked_one_does(case: AdapterCase) -> None:
    whole = next((one for one in case.layers() if one.bias is not None), case.layers()[0])
    layer, adapter = whole.to(torch.float32), case.on(whole).to(CPU, torch.float32)
    base = patcher_of(layer.module)
    hooked = adapted(base, [bound(adapter)], 0.5)
    plain, by_hook = output(base, layer.x), output(hooked, layer.x)
    by_weight = output(baked(hooked), layer.x)
    assert not torch.equal(by_hook, plain)
    torch.testing.assert_close(by_weight, by_hook, atol=1e-4, rtol=1e-4)
    assert is_bare(base)


def lora(outputs: int = 8, *, bias: bool = False) -> Lora:
    shift = torch.randn(outputs) if bias else None
    return Lora(torch.randn(outputs, 3), torch.randn(3, 6), 1.5, shift)


@pytest.mark.parametrize("modes", [("hook", "hook"), ("hook", "patch"), ("patch", "hook")])
def test_loaders_of_both_modes_add_up_in_any_order(modes: tuple[Mode, Mode]) -> None:
    base = patcher_of(linear())
    before = weights(base)
    first, second = bound(lora()), bound(lora(3), Rows(2, 3))
    both = adapted(adapted(base, [first], 0.5, modes[0]), [second], -2.0, modes[1])
    placed = [Placed(first.adapter, 0.5), Placed(second.adapter, -2.0, Rows(2, 3))]
    after = weights(baked(both))
    torch.testing.assert_close(after[WEIGHT], merged_weight(before[WEIGHT], placed))
    again = adapted(baked(adapted(base, [first], 0.5, modes[0])), [second], -2.0, modes[1])
    torch.testing.assert_close(weights(baked(again))[WEIGHT], after[WEIGHT])


def test_factors_of_blocks_are_baked() -> None:
    base = patcher_of(linear())
    before = weights(base)
    item = replace(bound(lora()), factor=0.25)
    after = weights(baked(adapted(base, [item], 2.0)))
    assert torch.equal(after[WEIGHT], merged_weight(before[WEIGHT], [Placed(item.adapter, 0.5)]))
    off = baked(adapted(base, [replace(item, factor=0.0)], 2.0))
    assert torch.equal(weights(off)[WEIGHT], before[WEIGHT])


def test_patches_of_other_nodes_come_first() -> None:
    base = patcher_of(linear())
    before = weights(base)
    scaled = bound(Diff(torch.ones(8, 6)))
    clone = adapted(base, [scaled], 1.0)
    clone.add_patches({WEIGHT: ("diff", (torch.ones(8, 6),))}, 1.0, 3.0)
    torch.testing.assert_close(weights(baked(clone))[WEIGHT], 3 * before[WEIGHT] + 2)


def test_nothing_of_the_hooks_is_left_on_the_clone_and_all_of_it_on_the_origin() -> None:
    base = patcher_of(linear())
    hooked = adapted(base, [bound(lora())], 1.0)
    x = torch.randn(2, 6)
    before = output(hooked, x)
    made = baked(hooked)
    for place in (made.attachments, made.injections, made.additional_models):
        assert KEY not in place
    for kinds in (made.wrappers, made.callbacks):
        assert not any(KEY in several for several in kinds.values())
    weights(made)
    assert is_bare(made)
    assert hooked.get_attachment(KEY) is not None
    assert torch.equal(output(hooked, x), before)
    assert not hooked.patches
    torch.testing.assert_close(output(made, x), before)
    copied = copy.deepcopy(made.model)  # as nodes that compile or move a model may do
    torch.testing.assert_close(copied(x), before)


@pytest.mark.parametrize(
    ("dial", "why"),
    [
        (Dial(1.0, "a.safetensors", Schedule(((0.0, 1.0), (1.0, 0.0)))), "follows a schedule"),
        (Dial(1.0, "a.safetensors", on_request=True), "acts only on conditionings"),
    ],
)
def test_a_strength_that_is_no_number_is_refused(dial: Dial, why: str) -> None:
    clone = patcher_of(linear()).clone()
    apply(clone, [bound(lora())], dial, "hook")
    with pytest.raises(EditingError, match=f"a.safetensors {why}.*load it behind Bake"):
        bake(clone)
    with pytest.raises(EditingError, match=why):
        read_weights(clone, with_adapters=True)


def test_a_bias_that_the_layer_lacks_is_named() -> None:
    clone = adapted(patcher_of(linear(bias=False)), [bound(lora(bias=True))], 1.0)
    assert bake(clone).homeless_biases == (BIAS,)


def test_a_weight_that_grows_is_named() -> None:
    base = patcher_of(linear())
    larger = Lora(torch.randn(8, 3), torch.randn(3, 9), reshape=(8, 9))
    made = adapted(base, [bound(larger)], 1.0)
    assert bake(made).grown == (WEIGHT,)
    assert weights(made)[WEIGHT].shape == (8, 9)


def test_weights_are_read_with_adapters_of_either_mode() -> None:
    base = patcher_of(linear())
    hooked = adapted(base, [bound(lora(bias=True))], 0.5)
    both = adapted(hooked, [bound(lora())], 0.25, "patch")
    expected = weights(baked(both))
    output(hooked, torch.randn(2, 6))  # another one is in use
    reader = read_weights(both, with_adapters=True)
    assert all(torch.equal(reader.read(key), expected[key]) for key in expected)
    assert both.get_attachment(KEY) is not None


class Packed(nn.Module):
    """A layer whose weight is bytes, which only the layer understands."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 8
        self.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.uint8), requires_grad=False)
        self.bias = None


class OwnPatcher(ModelPatcher):
    """As the one for GGUF files: it hands patches to the layer, which unpacks and patches."""

    def patch_weight_to_device(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def test_packed_weights_are_left_to_a_patcher_that_knows_them_or_refused() -> None:
    item = bound(lora())
    with pytest.raises(UnsupportedLayerError, match="cannot patch the weights of diffusion_model"):
        bake(adapted(patcher_of(Packed()), [item], 1.0))
    assert bake(adapted(OwnPatcher(Model(Packed()), CPU, CPU), [item], 1.0)).packed == (WEIGHT,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_weight_is_unpacked_changed_and_packed_again(dtype: torch.dtype) -> None:
    ops = comfy.ops.mixed_precision_ops(compute_dtype=dtype, full_precision_mm=True)
    layer, whole = ops.Linear(6, 8), torch.randn(8, 6).to(dtype)
    layout, scale = "TensorCoreFP8Layout", whole.abs().max().float() / 448
    held = comfy.quant_ops.QuantizedTensor.from_float(whole, layout, scale=scale)
    layer.weight, layer.bias.data = nn.Parameter(held, requires_grad=False), torch.randn(8)
    layer.layout_type, layer.quant_format = layout, "float8_e4m3fn"
    adapter = lora()
    clone = adapted(patcher_of(layer), [bound(adapter)], 0.5)
    base = read_weights(clone).read(WEIGHT)
    expected = merged_weight(base, [Placed(adapter, 0.5)])
    baked_in = bake(clone, by_chance=True)
    assert not baked_in.packed
    assert baked_in.by_chance == 0
    comfy.model_management.load_models_gpu([clone])
    patched = clone.model.diffusion_model.layer.weight
    assert type(patched) is type(held)
    # A step of fp8, by chance to the farther side, is an eighth.
    torch.testing.assert_close(patched.dequantize().float(), expected, rtol=0.126, atol=0.01)
    assert not torch.allclose(base, expected, rtol=0.126, atol=0.01)


SMALL = 0.3
"""Of the distance to the next number: the nearest one is where it was."""
WIDE = 4096


def nearly_one(dtype: torch.dtype) -> tuple[ModelPatcher, float]:
    """A model of ones with an adapter that adds less than they can hold, and the next number."""
    step = torch.finfo(dtype).eps
    layer = linear(dtype, outputs=WIDE)
    layer.weight.data.fill_(1.0)
    change = Diff(torch.full((WIDE, 6), SMALL * step))
    return adapted(patcher_of(layer), [bound(change)], 1.0), 1.0 + step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["hook", "patch"])
def test_by_chance_small_changes_are_kept_in_the_mean(dtype: torch.dtype, mode: Mode) -> None:
    hooked, above = nearly_one(dtype)
    made = baked(hooked) if mode == "patch" else hooked
    assert (weights(baked(made))[WEIGHT] == 1).all()
    rounded = weights(baked(made, by_chance=True))[WEIGHT]
    assert rounded.dtype == dtype
    assert set(rounded.float().unique().tolist()) == {1.0, above}
    count = rounded.numel()
    # Five standard deviations of a share.
    share = (rounded != 1).float().mean().item()
    assert share == pytest.approx(SMALL, abs=5 * (SMALL * (1 - SMALL) / count) ** 0.5)
    again = baked(made, by_chance=True)
    assert torch.equal(weights(again)[WEIGHT], rounded)
    # Partly loaded, the host patches at every call: the same numbers.
    again.detach()
    again.load(CPU, lowvram_model_memory=1)
    again.model.diffusion_model.layer.bias = None
    with torch.no_grad():
        assert torch.equal(again.model(torch.eye(6)).T, rounded.float())
    again.detach()


@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("runs_in", [torch.float16, torch.bfloat16])
def test_what_is_computed_with_in_another_dtype_is_rounded_to_that(
    kept: torch.dtype, runs_in: torch.dtype
) -> None:
    # ComfyUI 0.28 keeps a weight as its file has it, and casts and patches it while the model runs.
    step = torch.finfo(runs_in).eps
    layer = linear(kept, outputs=WIDE)
    layer.weight.data.fill_(1.0)
    change = Diff(torch.full((WIDE, 6), SMALL * step))
    made = baked(adapted(patcher_of(layer), [bound(change)], 1.0), by_chance=True)
    weight = torch.ones(WIDE, 6, dtype=runs_in)
    found = comfy.lora.calculate_weight(made.patches[WEIGHT], weight, WEIGHT, runs_in)
    assert found.dtype == runs_in
    assert set(found.float().unique().tolist()) == {1.0, 1.0 + step}
    assert found.float().mean().item() == pytest.approx(1 + SMALL * step, abs=0.02 * step)


def test_numbers_are_read_as_they_are_before_they_are_rounded() -> None:
    hooked, above = nearly_one(torch.bfloat16)
    exact = torch.full((WIDE, 6), 1 + SMALL * (above - 1))
    for made in (baked(hooked), baked(hooked, by_chance=True)):
        torch.testing.assert_close(Weights(made, with_adapters=True).read(WEIGHT), exact)
        assert torch.equal(read_weights(made).read(WEIGHT), torch.ones(WIDE, 6))


def test_parameters_are_rounded_apart_from_each_other() -> None:
    layer = linear(torch.bfloat16, outputs=512)
    layer.weight.data.fill_(1), layer.bias.data.fill_(1)
    change = Diff(torch.full((512, 6), 0.004), torch.full((512,), 0.004))
    made = weights(baked(adapted(patcher_of(layer), [bound(change)], 1.0), by_chance=True))
    assert len(made[BIAS].unique()) == 2
    assert not torch.equal(made[WEIGHT].flatten()[:512], made[BIAS])


def test_a_loader_behind_keeps_the_rounding_and_another_bake_sets_it() -> None:
    hooked, _ = nearly_one(torch.bfloat16)
    by_chance = baked(hooked, by_chance=True)
    nothing = bound(Diff(torch.zeros(WIDE, 6)))
    assert (weights(adapted(by_chance, [nothing], 1.0, "patch"))[WEIGHT] != 1).any()
    assert (weights(baked(by_chance))[WEIGHT] == 1).all()
    x = torch.ones(1, 6, dtype=torch.bfloat16)
    assert not torch.equal(output(by_chance, x), output(baked(by_chance), x))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float32])
def test_what_needs_no_rounding_of_ours_gets_none(dtype: torch.dtype) -> None:
    hooked, above = nearly_one(torch.float8_e4m3fn)
    hooked.model.diffusion_model.layer.to(dtype)
    clone = hooked.clone()
    assert bake(clone, by_chance=True).by_chance == 0
    # ComfyUI rounds fp8 by chance, with either choice.
    assert torch.equal(weights(clone)[WEIGHT].float(), weights(baked(hooked))[WEIGHT].float())
    mean = weights(clone)[WEIGHT].float().mean().item()
    assert mean == pytest.approx(1 + SMALL * (above - 1), abs=2e-3)


@pytest.mark.parametrize("first", ["baked", "plain"])
def test_models_are_merged_with_a_baked_one(first: str) -> None:
    base = patcher_of(linear())
    before = weights(base)
    change = torch.randn(8, 6)
    made = baked(adapted(base, [bound(Diff(change))], 2.0))
    pair = (made, base) if first == "baked" else (base, made)
    ((merged),) = ModelMergeSimple().merge(*pair, 0.25)
    share = 0.25 if first == "baked" else 0.75
    torch.testing.assert_close(weights(merged)[WEIGHT], before[WEIGHT] + share * 2 * change)


class Clip:
    """What a CLIP is to the node."""

    def __init__(self, patcher: ModelPatcher) -> None:
        self.patcher = patcher

    def clone(self) -> "Clip":
        return Clip(self.patcher.clone())


def test_the_report_says_what_was_baked_and_what_was_not() -> None:
    base = patcher_of(linear(bias=False))
    items = [replace(bound(lora(bias=True)), factor=factor) for factor in (0.5, 1.0)]
    model = adapted(adapted(base, items, 0.8), [bound(Diff(torch.ones(8, 6)))], 1.0, "patch")
    clip = Clip(patcher_of(linear()))
    parts, lines = baked_parts({MODEL: model, CLIP: clip}, by_chance=True)
    assert parts[MODEL].get_attachment(KEY) is None
    assert parts[CLIP] is clip
    assert lines == [
        "Baked into the diffusion model, 1 layer:",
        "style.safetensors: LoRA on 1 layer at 0.8, times weights of blocks from 0.5 to 1.",
        "Weight patches before, which stay: full.",
        "No weight is float16 or bfloat16: nothing is left to round by chance.",
        f"Lost, as the layers have no bias: the change of {BIAS}. As hooks they have it.",
        "The text encoder has no adapters of Any Adapter: it stays as it is.",
    ]
    parts, lines = baked_parts({MODEL: None, CLIP: Clip(model)})
    assert parts[MODEL] is None
    assert parts[CLIP].patcher.get_attachment(KEY) is None
    assert lines[0] == "Baked into the text encoder, 1 layer:"
    with pytest.raises(EditingError, match="connect a model or a CLIP"):
        baked_parts({MODEL: None, CLIP: None})


def test_a_saved_checkpoint_gives_the_picture_of_the_hooks(
    server: ComfyServer, pictures: Pictures
) -> None:
    applied = Applied("locon", 0.8, 0.8)
    hooked = pictures.loaded("hook", applied)
    workflow = json.loads(example_workflow("bake_and_save_checkpoint"))
    history = server.run(api_form(workflow, server))
    (report,) = history["outputs"]["3"]["text"]
    assert "Baked into the diffusion model" in report
    assert "Baked into the text encoder" in report
    (saved,) = (server.base_directory / "output" / "checkpoints").glob("any_adapter_*")
    checkpoint = server.base_directory / "models" / "checkpoints" / "any_adapter.safetensors"
    shutil.move(saved, checkpoint)
    latent = pictures.latent(text_to_latent(checkpoint.name))
    checkpoint.unlink()
    error = (latent - hooked).norm() / (hooked - pictures.plain).norm()
    assert error < TOLERANCE
    assert torch.equal(pictures.latent(text_to_latent(CHECKPOINT_NAME)), pictures.plain)
