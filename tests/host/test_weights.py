"""Weights of a model, read one at a time: as they are meant, whatever is loaded at that moment."""

from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import pytest
import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from torch import Tensor, nn

from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.binding import Bound
from anyadapter.algorithms.keymap import Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Dial
from anyadapter.nodes.host.applying import apply
from anyadapter.nodes.host.bases import base_of
from anyadapter.nodes.host.weights import read_weights

CPU = torch.device("cpu")
KEY = "block.linear.weight"


class Model(nn.Module):
    def __init__(
        self, dtype: torch.dtype = torch.float32, ops: type = comfy.ops.manual_cast
    ) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.linear = ops.Linear(6, 8, dtype=dtype)
        self.block.norm = ops.LayerNorm(8, dtype=dtype)
        self.embedding = comfy.ops.manual_cast.Embedding(5, 4, dtype=dtype)
        self.position = nn.Parameter(torch.empty(3))
        for parameter in self.parameters():
            parameter.requires_grad = False
            parameter.data = torch.randn(parameter.shape).to(parameter.dtype)


@pytest.fixture
def base() -> ModelPatcher:
    return ModelPatcher(Model(), CPU, CPU)


def state(patcher: ModelPatcher) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}


def load(patcher: ModelPatcher) -> None:
    comfy.model_management.load_models_gpu([patcher])


def patched(base: ModelPatcher) -> ModelPatcher:
    clone = base.clone()
    clone.add_patches({KEY: ("diff", (torch.ones(8, 6),))}, 0.5)
    clone.add_patches({KEY: ("diff", (torch.ones(8, 6),))}, 2.0, 3.0)
    return clone


def bound(weight: str, full: Diff, rows: Rows | None = None) -> Bound:
    return Bound("a", Target(weight, rows), full)


def test_every_parameter_is_read(base: ModelPatcher) -> None:
    weights, before = read_weights(base), state(base)
    assert set(weights.keys) == before.keys()
    for key in weights.keys:
        assert weights.shape(key) == tuple(before[key].shape)
        read = weights.read(key)
        assert torch.equal(read, before[key])
        read.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(base).items())
    assert weights.read("block.linear.scale") is None
    assert weights.read("nowhere.weight") is None


@pytest.mark.parametrize("in_use", ["nothing", "origin", "patched", "another", "lowvram"])
def test_patches_count_once_whatever_is_loaded(base: ModelPatcher, in_use: str) -> None:
    before, clone = state(base), patched(base)
    another = base.clone()
    another.add_patches({KEY: ("diff", (torch.full((8, 6), 7.0),))}, 1.0)
    if in_use == "lowvram":
        clone.load(CPU, lowvram_model_memory=1)
        assert isinstance(clone.model.block.linear.weight_function[0], LowVramPatch)
    elif in_use != "nothing":
        load({"origin": base, "patched": clone, "another": another}[in_use])
    now = state(base)
    for patcher, expected in (
        (base, before[KEY]),
        (clone, 3 * (before[KEY] + 0.5) + 2),
        (another, before[KEY] + 7),
    ):
        torch.testing.assert_close(read_weights(patcher).read(KEY), expected)
    assert all(torch.equal(tensor, now[key]) for key, tensor in state(base).items())
    clone.detach()


def test_conditioning_hooks_in_use_do_not_count(base: ModelPatcher) -> None:
    before = state(base)[KEY]
    base.hook_backup[KEY] = (before, CPU)
    base.model.block.linear.weight.data += 1
    assert torch.equal(read_weights(base).read(KEY), before)


def test_wrappers_and_objects_of_this_clone_count(base: ModelPatcher) -> None:
    before, clone = state(base), base.clone()
    clone.add_weight_wrapper(KEY, lambda weight: weight * 2)
    clone.add_object_patch("block.norm", nn.LayerNorm(8))
    clone.add_object_patch("position", nn.Parameter(torch.full((3,), 5.0)))
    clone.add_patches({"block.norm.weight": ("diff", (torch.ones(8),))}, 1.0)
    load(clone)  # now its objects stand in the model that all clones share
    for patcher, linear, norm, position in (
        (base, before[KEY], before["block.norm.weight"], before["position"]),
        (clone, before[KEY] * 2, torch.full((8,), 2.0), torch.full((3,), 5.0)),
    ):
        weights = read_weights(patcher)
        assert torch.equal(weights.read(KEY), linear)
        assert torch.equal(weights.read("block.norm.weight"), norm)
        assert torch.equal(weights.read("position"), position)
    clone.detach()


@pytest.mark.parametrize("mode", ["hook", "patch"])
def test_adapters_of_the_pack_do_not_count(base: ModelPatcher, mode: str) -> None:
    clone = patched(base)
    expected = read_weights(clone).read(KEY)
    apply(clone, [bound(KEY, Diff(torch.randn(8, 6)))], Dial(1.0), mode)
    load(clone)
    assert torch.equal(read_weights(clone).read(KEY), expected)
    clone.detach()


def test_the_base_of_an_adapter_is_its_rows_in_the_order_of_the_file(base: ModelPatcher) -> None:
    before, weights = state(base), read_weights(base)
    rows = Rows(2, 4, lambda tensor: tensor.flip(0))
    weight, bias = base_of(weights, bound(KEY, Diff(torch.ones(4, 6)), rows))
    assert torch.equal(weight, before[KEY][2:6].flip(0))
    assert torch.equal(bias, before["block.linear.bias"][2:6].flip(0))
    assert base_of(weights, bound("position", Diff(torch.ones(3))))[1] is None


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_narrow_numbers_are_read_in_float32(dtype: torch.dtype) -> None:
    base = ModelPatcher(Model(dtype), CPU, CPU)
    stored, clone = state(base)[KEY], patched(base)
    load(clone)
    assert torch.equal(read_weights(base).read(KEY), stored.float())
    torch.testing.assert_close(read_weights(clone).read(KEY), 3 * (stored.float() + 0.5) + 2)
    clone.detach()


SCALED = getattr(comfy.ops, "scaled_fp8_ops", None)
"""ComfyUI 0.3.75 has it; later versions have tensors that know their scale."""


@pytest.mark.parametrize("make", [SCALED] if SCALED else [])
def test_the_scale_of_an_fp8_weight_counts_once(make) -> None:
    model = Model(ops=make(override_dtype=torch.float8_e4m3fn))
    model.block.linear.scale_weight.data.fill_(0.25)
    base = ModelPatcher(model, CPU, CPU)
    expected, clone = model.block.linear.weight.float() * 0.25, patched(base)
    load(clone)
    assert torch.equal(read_weights(base).read(KEY), expected)
    torch.testing.assert_close(read_weights(clone).read(KEY), 3 * (expected + 0.5) + 2)
    assert "block.linear.scale_weight" not in read_weights(base).keys
    clone.detach()


def quantised(values: Tensor) -> Tensor:
    kind, scale = comfy.quant_ops.QuantizedTensor, values.abs().max().float() / 448
    return kind.from_float(values, "TensorCoreFP8Layout", scale=scale)


def test_a_quantised_tensor_is_read_by_its_meaning() -> None:
    base = ModelPatcher(Model(), CPU, CPU)
    whole = (torch.randn(8, 6) * 0.01).bfloat16()
    base.model.block.linear.weight = nn.Parameter(quantised(whole), requires_grad=False)
    held = base.model.block.linear.weight
    dtype = held.dequantize().dtype
    with torch.inference_mode():  # as every node runs
        read = read_weights(base).read(KEY)
    assert held.dequantize().dtype == dtype  # casting one in ComfyUI 0.3.75 changes itself
    assert type(read) is Tensor
    assert 0 < (read - whole.float()).norm() / whole.float().norm() < 0.05


class Packed(nn.Module):
    """A layer as those of GGUF files: it dequantises and patches at once, in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 8
        self.weight = nn.Parameter(torch.arange(48, dtype=torch.uint8), requires_grad=False)
        self.weight.patches = [5]
        self.bias = None

    def cast_bias_weight(self, dtype: torch.dtype, device: torch.device):
        values = self.weight.reshape(8, 6).to(device, dtype)
        return values + sum(self.weight.patches), None


def test_a_layer_that_unpacks_its_weight_is_asked_without_its_patches() -> None:
    model = Model()
    model.block.linear = Packed()
    weights = read_weights(ModelPatcher(model, CPU, CPU))
    assert weights.shape(KEY) == (8, 6)
    assert torch.equal(weights.read(KEY), torch.arange(48.0).reshape(8, 6))
    assert model.block.linear.weight.patches == [5]


def test_a_weight_that_nobody_can_unpack_is_not_read() -> None:
    model = Model()
    model.block.linear = nn.Module()
    vars(model.block.linear).update(in_features=6, out_features=8)
    model.block.linear.weight = nn.Parameter(torch.empty(24).byte(), requires_grad=False)
    assert read_weights(ModelPatcher(model, CPU, CPU)).read(KEY) is None


def test_the_text_encoders_are_read_by_their_own_keys(base: ModelPatcher) -> None:
    clip = SimpleNamespace(patcher=base, cond_stage_model=base.model)
    assert torch.equal(read_weights(clip).read(KEY), state(base)[KEY])
