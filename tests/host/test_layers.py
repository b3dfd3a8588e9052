"""Which modules of the host can be hooked, and as what."""

from collections.abc import Callable
from types import SimpleNamespace

import comfy.ops
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyadapter.algorithms.errors import UnsupportedLayerError
from anyadapter.algorithms.layers import Layer
from anyadapter.nodes.host.layers import layer_of

OPS = (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
MODULES = {
    "linear": lambda ops: (ops.Linear(6, 8), (2, 6)),
    "conv1d": lambda ops: (ops.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 7)),
    "conv2d": lambda ops: (ops.Conv2d(6, 8, (3, 5), padding=(0, 2), groups=2), (2, 6, 7, 9)),
    "conv3d": lambda ops: (ops.Conv3d(6, 8, (1, 3, 5), dilation=(1, 2, 1)), (2, 6, 2, 9, 7)),
    "layer norm": lambda ops: (ops.LayerNorm(6), (2, 6)),
    "layer norm without bias": lambda ops: (ops.LayerNorm(6, bias=False), (2, 6)),
    "group norm": lambda ops: (ops.GroupNorm(2, 6), (2, 6, 5)),
    "rms norm": lambda ops: (ops.RMSNorm(6, eps=1e-6), (2, 6)),
    "rms norm of torch": lambda _: (nn.RMSNorm(6, eps=1e-6), (2, 6)),
}


class CausalConv3d(comfy.ops.disable_weight_init.Conv3d):
    """Pads in time before it convolves, as those of the host's video models do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, 2, 0)))


@pytest.mark.parametrize("ops", OPS, ids=lambda ops: ops.__name__)
@pytest.mark.parametrize("kind", MODULES)
def test_the_layer_computes_what_the_module_does(kind: str, ops: type) -> None:
    # The host's RMS norm has a bias that is None, and was taken for a layer norm: wrong pictures.
    module, shape = MODULES[kind](ops)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    layer = layer_of(module)
    assert layer is not None
    x = torch.randn(shape)
    bias = getattr(module, "bias", None)
    torch.testing.assert_close(layer.apply(x, module.weight, bias), module(x))


def test_a_layer_with_its_own_weight_computes_what_the_module_does() -> None:
    for ops in OPS:
        module = ops.Linear(6, 8)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        x = torch.randn(2, 6)
        layer = layer_of(module)
        assert layer is not None
        torch.testing.assert_close(layer.apply(x, layer.weight(x), layer.bias(x)), module(x))
        assert layer.weight(x.double()).dtype == torch.float64


SCALED = getattr(comfy.ops, "scaled_fp8_ops", None)
"""ComfyUI 0.3.75 has it; later versions have tensors that know their scale."""


@pytest.mark.parametrize("make", [SCALED] if SCALED else [])
def test_the_scale_of_an_fp8_weight_counts(make: Callable[..., type]) -> None:
    # Such weights were read without it: a DoRA on a scaled fp8 model switched its layers off.
    module = make().Linear(6, 8)
    whole = torch.randn(8, 6) * 0.01
    scale = whole.abs().max() / 448
    module.weight = nn.Parameter((whole / scale).to(torch.float8_e4m3fn), requires_grad=False)
    module.scale_weight = nn.Parameter(scale)
    module.bias = nn.Parameter(torch.randn(8))
    layer = layer_of(module)
    assert layer is not None
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer.apply(x, layer.weight(x), layer.bias(x)), module(x))


def test_a_weight_that_is_no_numbers_of_the_layer_is_refused() -> None:
    packed = SimpleNamespace(in_features=6, out_features=8, weight=torch.empty(24).byte())
    layer = layer_of(packed)
    assert layer is not None
    with pytest.raises(UnsupportedLayerError, match=r"as \[24\] of torch.uint8, and is \[8, 6\]"):
        layer.weight(torch.empty(2, 6))


def test_the_geometry_of_a_convolution_is_taken_over() -> None:
    module = comfy.ops.manual_cast.Conv2d(
        6, 8, (3, 5), stride=2, padding=(1, 2), dilation=(1, 3), groups=2, padding_mode="circular"
    )
    assert layer_of(module) == Layer("conv", (8, 3, 3, 5), (2, 2), (1, 2), (1, 3), 2, "circular")


def test_whatever_has_the_features_of_a_linear_layer_is_one() -> None:
    quantised = SimpleNamespace(in_features=6, out_features=8, weight=torch.empty(24).byte())
    assert layer_of(quantised) == Layer("linear", (8, 6))


@pytest.mark.parametrize(
    "module",
    [
        comfy.ops.disable_weight_init.ConvTranspose1d(4, 4, 3),
        comfy.ops.disable_weight_init.ConvTranspose2d(4, 4, 3),
        comfy.ops.manual_cast.ConvTranspose2d(4, 4, 3),
        comfy.ops.disable_weight_init.Embedding(5, 4),
        comfy.ops.disable_weight_init.Conv2d(4, 4, 3, padding="same"),
        comfy.ops.disable_weight_init.LayerNorm(4, elementwise_affine=False),
        CausalConv3d(4, 4, 3),
        nn.SiLU(),
        nn.Sequential(nn.Linear(4, 4)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_module_that_no_hook_can_serve_is_no_layer(module: nn.Module) -> None:
    assert layer_of(module) is None


def test_a_convolution_whose_class_got_a_foreign_forward_is_no_layer() -> None:
    # Load Adapter ended with an IndexError where another pack had replaced a class's forward.
    class Patched(comfy.ops.disable_weight_init.Conv2d):
        pass

    Patched.forward = foreign_forward
    assert layer_of(Patched(4, 4, 3)) is None


def foreign_forward(module: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), module.weight)
