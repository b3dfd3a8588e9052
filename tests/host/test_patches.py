"""Adapters as patches of ComfyUI: computed, joined, moved and taken off as the host does it."""

from collections.abc import Sequence

import comfy.lora
import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from torch import Tensor, nn

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.ia3 import Ia3Peft
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.binding import Bound
from anyadapter.algorithms.errors import ShapeError
from anyadapter.algorithms.keymap import Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Placed, merged_bias, merged_weight
from anyadapter.nodes.host.layers import shapes_of
from anyadapter.nodes.host.patches import AdapterPatch, add_patches
from anyadapter.nodes.host.weights import read_weights

CPU = torch.device("cpu")


class Model(nn.Module):
    """Three layers in a row, as the host builds them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.linear = ops.Linear(6, 8, dtype=dtype)
        self.bare = ops.Linear(8, 8, bias=False, dtype=dtype)
        self.norm = ops.LayerNorm(8, dtype=dtype)
        generator = torch.Generator().manual_seed(2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.bare(self.linear(x)))


def lora(outputs: int, inputs: int) -> Lora:
    bias = torch.randn(outputs)
    return Lora(torch.randn(outputs, 3), torch.randn(3, inputs), 1.5, bias)


def bound(weight: str, adapter: Adapter, rows: Rows | None = None) -> Bound:
    return Bound("a", Target(weight, rows), adapter)


@pytest.fixture
def base() -> ModelPatcher:
    return ModelPatcher(Model(), CPU, CPU)


def patched(base: ModelPatcher, items: Sequence[Bound], strength: float) -> ModelPatcher:
    clone = base.clone()
    add_patches(clone, items, strength)
    return clone


def loaded(patcher: ModelPatcher) -> dict[str, Tensor]:
    """Loads a patcher as the host does before it samples, and returns its weights."""
    comfy.model_management.load_models_gpu([patcher])
    return {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}


def calculated(value: AdapterPatch, weight: Tensor, key: str, strength: float = 1.0) -> Tensor:
    """Computes a patch as the host does."""
    patch = (strength, value, 1.0, None, None)
    return comfy.lora.calculate_weight([patch], weight.clone(), key)


def test_weight_and_bias_become_the_merged_ones(base: ModelPatcher) -> None:
    items = [lora(8, 6), Diff(torch.randn(8, 6), torch.randn(8))]
    before = loaded(base)
    after = loaded(patched(base, [bound("linear.weight", item) for item in items], 0.7))
    placed = [Placed(item, 0.7) for item in items]
    merged = before | {
        "linear.weight": merged_weight(before["linear.weight"], placed),
        "linear.bias": merged_bias(before["linear.bias"], 8, placed),
    }
    assert not torch.equal(merged["linear.bias"], before["linear.bias"])
    assert all(torch.equal(after[key], merged[key]) for key in merged)


def test_a_weight_that_another_clone_has_made_larger_right_now_is_what_it_was(
    base: ModelPatcher,
) -> None:
    # As control LoRAs of Flux do: the host keeps what it was, for all clones.
    before = loaded(base)
    larger = base.clone()
    for key, shape in {"linear.weight": (8, 9), "norm.weight": (12,)}.items():
        larger.add_patches({key: ("diff", (torch.ones(shape), {"pad_weight": True}))})
    assert loaded(larger)["linear.weight"].shape == (8, 9)
    shapes = {key: tuple(tensor.shape) for key, tensor in before.items()}
    assert shapes_of(base) == shapes
    reader = read_weights(base)
    assert {key: reader.shape(key) for key in before} == shapes
    adapter = lora(8, 6)
    clone = patched(base, [bound("linear.weight", adapter)], 0.7)
    merged = merged_weight(before["linear.weight"], [Placed(adapter, 0.7)])
    assert torch.equal(loaded(clone)["linear.weight"], merged)


def test_the_shape_that_a_weight_gets_is_told(base: ModelPatcher) -> None:
    # ComfyUI 0.28 asks before it loads: it computes weights of the same shape while the model runs.
    def larger(inputs: int) -> Lora:
        return Lora(torch.randn(8, 3), torch.randn(3, inputs), reshape=(8, inputs))

    for adapters, shape in (
        ([lora(8, 6)], None),
        ([larger(9), lora(8, 6)], (8, 9)),
        ([larger(9), larger(12)], (8, 12)),
    ):
        clone = base.clone()
        for adapter in adapters:  # each by a node of its own
            add_patches(clone, [bound("linear.weight", adapter)], 1.0)
        (patch,) = clone.patches["linear.weight"]
        assert patch[1].calculate_shape("linear.weight") == shape
        told = getattr(comfy.lora, "calculate_shape", None)
        if told is not None:
            assert told([patch], base.model.linear.weight, "linear.weight") == (shape or (8, 6))


def test_taking_patches_off_restores_every_bit() -> None:
    base = ModelPatcher(Model(torch.float16), CPU, CPU)
    before = loaded(base)
    items = [bound("linear.weight", lora(8, 6)), bound("norm.weight", Norm(torch.randn(8)))]
    after = loaded(patched(base, items, 0.3))
    assert not torch.equal(after["norm.weight"], before["norm.weight"])
    again = loaded(base)
    assert all(torch.equal(again[key], before[key]) for key in before)


def test_a_second_loader_joins_the_first_patch(base: ModelPatcher) -> None:
    adapter = lora(8, 6)
    once = patched(base, [bound("linear.weight", adapter)], 0.5)
    alone = loaded(once)
    twice = patched(once, [bound("linear.weight", adapter)], 0.25)
    assert {key: len(patches) for key, patches in twice.patches.items()} == {
        "linear.weight": 1,
        "linear.bias": 1,
    }
    expected = loaded(patched(base, [bound("linear.weight", adapter)], 0.75))
    after = loaded(twice)
    for key in expected:
        torch.testing.assert_close(after[key], expected[key])
    again = loaded(once)
    assert all(torch.equal(again[key], alone[key]) for key in alone)


def test_patches_of_others_stay_first_and_as_they_are(base: ModelPatcher) -> None:
    foreign = base.clone()
    foreign.add_patches({"linear.weight": ("diff", (torch.ones(8, 6),))}, 0.5)
    once = patched(foreign, [bound("linear.weight", lora(8, 6))], 1.0)
    twice = patched(once, [bound("linear.weight", lora(8, 6))], 1.0)
    first, second = twice.patches["linear.weight"]
    assert first is foreign.patches["linear.weight"][0]
    assert isinstance(second[1], AdapterPatch)
    assert len(second[1].loaded_keys.placed) == 2


def test_an_adapter_on_a_slice_changes_these_rows_only(base: ModelPatcher) -> None:
    before = loaded(base)
    adapter = lora(3, 6)
    after = loaded(patched(base, [bound("linear.weight", adapter, Rows(2, 3))], 1.0))
    rows = torch.zeros(8, dtype=torch.bool)
    rows[2:5] = True
    for key in ("linear.weight", "linear.bias"):
        changed = (after[key] != before[key]).reshape(8, -1).any(1)
        assert torch.equal(changed, rows)
    expected = before["linear.weight"][2:5] + adapter.delta_weight(torch.empty(3, 6))
    torch.testing.assert_close(after["linear.weight"][2:5], expected)


def test_two_slices_of_one_weight_make_one_patch(base: ModelPatcher) -> None:
    low = bound("linear.weight", lora(3, 6), Rows(0, 3))
    high = bound("linear.weight", lora(4, 6), Rows(4, 4))
    both = patched(base, [low, high], 1.0)
    assert len(both.patches["linear.weight"]) == 1
    after, before = loaded(both)["linear.weight"], loaded(base)["linear.weight"]
    assert (after[:3] != before[:3]).all()
    assert torch.equal(after[3], before[3])
    assert (after[4:] != before[4:]).all()


def test_a_change_of_a_bias_that_is_not_there_is_reported(base: ModelPatcher) -> None:
    clone = base.clone()
    assert add_patches(clone, [bound("bare.weight", lora(8, 8))], 1.0) == ["bare.bias"]
    assert set(clone.patches) == {"bare.weight"}


def test_a_change_of_the_bias_alone_patches_no_weight(base: ModelPatcher) -> None:
    shift = bound("linear.weight", Diff(diff_b=torch.ones(8)))
    assert set(patched(base, [shift], 1.0).patches) == {"linear.bias"}


@pytest.mark.parametrize("order", [1, -1], ids=["named last", "named first"])
def test_a_bias_that_is_named_itself_sums_with_one_beside_its_weight(
    base: ModelPatcher, order: int
) -> None:
    # The host's names reach a bias too: one of the two changes was lost in silence.
    before = loaded(base)["linear.bias"]
    beside = bound("linear.weight", Diff(diff_b=torch.ones(8)))
    itself = bound("linear.bias", Diff(torch.full((8,), 10.0)))
    items = [beside, itself][::order]
    together = loaded(patched(base, items, 1.0))["linear.bias"]
    torch.testing.assert_close(together, before + 11)
    chained = patched(patched(base, items[:1], 1.0), items[1:], 1.0)
    torch.testing.assert_close(loaded(chained)["linear.bias"], before + 11)


@pytest.mark.parametrize("order", [1, -1])
def test_a_bias_that_is_scaled_and_named_itself_changes_from_the_base(
    base: ModelPatcher, order: int
) -> None:
    before = loaded(base)["linear.bias"]
    scaled = bound("linear.weight", Ia3Peft(torch.full((8, 1), 3.0)))
    itself = bound("linear.bias", Diff(torch.full((8,), 10.0)))
    together = loaded(patched(base, [scaled, itself][::order], 1.0))["linear.bias"]
    torch.testing.assert_close(together, 3 * before + 10)


@pytest.mark.parametrize("key", ["linear.weight", "linear.bias"])
def test_a_rebuilt_patch_computes_with_the_tensors_it_was_given(
    base: ModelPatcher, key: str
) -> None:
    full = Diff(torch.randn(8, 6), torch.randn(8))
    items = [bound("linear.weight", lora(8, 6)), bound("linear.weight", full)]
    value = patched(base, items, 0.5).patches[key][0][1]
    weight = base.model.state_dict()[key]
    expected = calculated(value, weight, key)
    assert not torch.equal(expected, weight)
    moved = tuple(tensor.clone() for tensor in value.weights)
    assert torch.equal(calculated(type(value)(value.loaded_keys, moved), weight, key), expected)
    zeros = tuple(torch.zeros_like(tensor) for tensor in value.weights)
    assert torch.equal(calculated(type(value)(value.loaded_keys, zeros), weight, key), weight)


def test_a_layer_patched_while_it_runs_gives_the_same_output(base: ModelPatcher) -> None:
    x = torch.randn(2, 6)
    items = [
        bound("linear.weight", lora(3, 6), Rows(2, 3)),
        bound("norm.weight", Norm(torch.randn(8), torch.randn(8))),
    ]
    clone = patched(base, items, 0.5)
    before = loaded(base)
    loaded(clone)
    whole = clone.model(x)
    clone.detach()
    clone.load(CPU, lowvram_model_memory=1)
    assert isinstance(clone.model.linear.weight_function[0], LowVramPatch)
    assert torch.equal(clone.model.linear.weight, before["linear.weight"])
    torch.testing.assert_close(clone.model(x), whole)
    clone.detach()


def test_an_adapter_that_does_not_fit_stops_the_run(base: ModelPatcher) -> None:
    with pytest.raises(ShapeError):
        patched(base, [bound("linear.weight", lora(8, 5))], 1.0)
    key = "linear.weight"
    value = patched(base, [bound(key, lora(8, 6))], 1.0).patches[key][0][1]
    with pytest.raises(ShapeError):
        calculated(value, torch.zeros(8, 5), key)


def test_the_strength_of_the_host_scales_the_whole_patch(base: ModelPatcher) -> None:
    key = "linear.weight"
    value = patched(base, [bound(key, lora(8, 6))], 1.0).patches[key][0][1]
    half = patched(base, [bound(key, value.loaded_keys.placed[0].adapter)], 0.5)
    zero = torch.zeros(8, 6)
    scaled = calculated(value, zero, key, 0.5)
    assert torch.equal(scaled, calculated(half.patches[key][0][1], zero, key))
