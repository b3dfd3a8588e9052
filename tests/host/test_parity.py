"""Our weights are ComfyUI's own, for every method that both have."""

import comfy.lora
import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.layers import Rows
from anyadapter.nodes.host.patches import add_patches

CPU = torch.device("cpu")
NAMES = {
    "a_linear": "linear.weight",
    "a_conv": "conv.weight",
    "a_pointwise": "pointwise.weight",
    "a_norm": "norm.weight",
    "a_query": ("linear.weight", (0, 2, 4)),
}
"""What the host's key maps hold: a key, or a key and (axis, start, length)."""


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.linear = ops.Linear(6, 8, dtype=dtype)
        self.conv = ops.Conv2d(6, 8, (3, 5), dtype=dtype)
        self.pointwise = ops.Conv2d(6, 8, 1, dtype=dtype)
        self.norm = ops.LayerNorm(8, dtype=dtype)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)


FILES = {
    "lora": {
        "a_linear.lora_up.weight": (8, 4),
        "a_linear.lora_down.weight": (4, 6),
        "a_linear.alpha": (),
    },
    "lora without alpha": {"a_linear.lora_up.weight": (8, 4), "a_linear.lora_down.weight": (4, 6)},
    "lora of peft": {"a_linear.lora_A.weight": (4, 6), "a_linear.lora_B.weight": (8, 4)},
    "lora on a slice": {
        "a_query.lora_up.weight": (4, 3),
        "a_query.lora_down.weight": (3, 6),
        "a_query.alpha": (),
    },
    "lora on a slice and on the whole": {
        "a_query.lora_up.weight": (4, 3),
        "a_query.lora_down.weight": (3, 6),
        "a_linear.lora_up.weight": (8, 4),
        "a_linear.lora_down.weight": (4, 6),
    },
    "lora on a convolution": {
        "a_conv.lora_up.weight": (8, 4, 1, 1),
        "a_conv.lora_down.weight": (4, 6, 3, 5),
        "a_conv.alpha": (),
    },
    "lora of matrices on a 1x1 convolution": {
        "a_pointwise.lora_up.weight": (8, 4),
        "a_pointwise.lora_down.weight": (4, 6),
        "a_pointwise.alpha": (),
    },
    "tucker": {
        "a_conv.lora_up.weight": (8, 4, 1, 1),
        "a_conv.lora_mid.weight": (4, 4, 3, 5),
        "a_conv.lora_down.weight": (4, 6, 1, 1),
        "a_conv.alpha": (),
    },
    "loha": {
        "a_linear.hada_w1_a": (8, 4),
        "a_linear.hada_w1_b": (4, 6),
        "a_linear.hada_w2_a": (8, 4),
        "a_linear.hada_w2_b": (4, 6),
        "a_linear.alpha": (),
    },
    "loha on a convolution": {
        "a_conv.hada_w1_a": (8, 4),
        "a_conv.hada_w1_b": (4, 90),
        "a_conv.hada_w2_a": (8, 4),
        "a_conv.hada_w2_b": (4, 90),
    },
    "loha tucker": {
        "a_conv.hada_w1_a": (4, 8),
        "a_conv.hada_w1_b": (4, 6),
        "a_conv.hada_t1": (4, 4, 3, 5),
        "a_conv.hada_w2_a": (4, 8),
        "a_conv.hada_w2_b": (4, 6),
        "a_conv.hada_t2": (4, 4, 3, 5),
        "a_conv.alpha": (),
    },
    "lokr": {"a_linear.lokr_w1": (2, 3), "a_linear.lokr_w2": (4, 2), "a_linear.alpha": ()},
    "lokr of factors": {
        "a_linear.lokr_w1_a": (2, 5),
        "a_linear.lokr_w1_b": (5, 3),
        "a_linear.lokr_w2_a": (4, 5),
        "a_linear.lokr_w2_b": (5, 2),
        "a_linear.alpha": (),
    },
    "lokr on a convolution": {"a_conv.lokr_w1": (2, 3), "a_conv.lokr_w2": (4, 2, 3, 5)},
    "lokr of factors on a convolution": {
        "a_conv.lokr_w1": (2, 3),
        "a_conv.lokr_w2_a": (4, 5),
        "a_conv.lokr_w2_b": (5, 30),
        "a_conv.alpha": (),
    },
    "dora on inputs": {
        "a_linear.lora_up.weight": (8, 4),
        "a_linear.lora_down.weight": (4, 6),
        "a_linear.alpha": (),
        "a_linear.dora_scale": (1, 6),
    },
    "dora of lokr on inputs": {
        "a_conv.lokr_w1": (2, 3),
        "a_conv.lokr_w2": (4, 2, 3, 5),
        "a_conv.dora_scale": (1, 6, 1, 1),
    },
    "full": {"a_linear.diff": (8, 6), "a_linear.diff_b": (8,), "a_conv.diff": (8, 6, 3, 5)},
    "bias only": {"a_conv.diff_b": (8,)},
    "norm": {"a_norm.w_norm": (8,), "a_norm.b_norm": (8,)},
}


def written(name: str) -> dict[str, Tensor]:
    return {key: torch.randn(shape) + 2 * (shape == ()) for key, shape in FILES[name].items()}


def theirs(base: ModelPatcher, tensors: dict[str, Tensor], strength: float) -> ModelPatcher:
    patcher = base.clone()
    patcher.add_patches(comfy.lora.load_lora(dict(tensors), NAMES), strength)
    return patcher


def ours(base: ModelPatcher, tensors: dict[str, Tensor], strength: float) -> ModelPatcher:
    patcher = base.clone()
    shapes = {key: tuple(tensor.shape) for key, tensor in base.model.state_dict().items()}
    targets = {
        name: Target(value) if isinstance(value, str) else Target(value[0], Rows(*value[1][1:]))
        for name, value in NAMES.items()
    }
    binding = bind(parse_tensors(tensors, {}, "a file"), KeyMap(targets.items(), shapes))
    assert not add_patches(patcher, binding.bound, strength)
    return patcher


def loaded(patcher: ModelPatcher) -> dict[str, Tensor]:
    comfy.model_management.load_models_gpu([patcher])
    return {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", FILES)
def test_our_weights_are_those_of_the_host(name: str, strength: float, dtype: torch.dtype) -> None:
    base = ModelPatcher(Model(dtype), CPU, CPU)
    before = loaded(base)
    tensors = written(name)
    expected = loaded(theirs(base, tensors, strength))
    assert any(not torch.equal(expected[key], before[key]) for key in before)
    # The products are scaled before or after the sum: the last bit may differ.
    torch.testing.assert_close(loaded(ours(base, tensors, strength)), expected)


def test_both_after_each_other_add_up_in_any_order() -> None:
    base = ModelPatcher(Model(torch.float32), CPU, CPU)
    lora, full = written("lora"), written("full")
    one = loaded(ours(theirs(base, full, 0.5), lora, 1.0))
    other = loaded(theirs(ours(base, lora, 1.0), full, 0.5))
    torch.testing.assert_close(one, other)
