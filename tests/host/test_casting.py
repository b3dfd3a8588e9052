"""Frozen layers whose weight is cast at each call: their gradients, and what they keep for them."""

from collections.abc import Callable

import comfy.ops
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from anyadapter.nodes.host.casting import casting_forwards

MODULES: dict[str, tuple[Callable[[type], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda ops: ops.Linear(6, 8), (2, 5, 6)),
    "conv1d": (lambda ops: ops.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 7)),
    "conv2d": (lambda ops: ops.Conv2d(6, 8, (3, 5), padding=(0, 2), groups=2), (2, 6, 7, 9)),
    "conv3d": (lambda ops: ops.Conv3d(6, 8, (1, 3, 5), dilation=(1, 2, 1)), (2, 6, 2, 9, 7)),
}


def frozen(kind: str, stored: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Returns a module with a weight in a dtype, and an input in float32."""
    make, shape = MODULES[kind]
    module = make(comfy.ops.manual_cast)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in [*module.named_parameters()]:
        numbers = torch.randn(parameter.shape, generator=generator)
        setattr(module, name, nn.Parameter(numbers.to(stored), requires_grad=False))
    return module, torch.randn(shape, generator=generator).requires_grad_()


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[torch.Size]]:
    """Returns the output, the gradient of the input, and the shapes of what was kept for it."""
    kept: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    (found,) = torch.autograd.grad(y.sin().sum(), x)
    return y, found, kept


def put_on(module: nn.Module) -> None:
    for layer, forward in [*casting_forwards(module)]:
        layer.forward = forward


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_it_computes_the_same_and_keeps_nothing(kind: str, stored: torch.dtype) -> None:
    # Of a model in fp8 that computes in bfloat16, twice its size was kept from forward to backward.
    module, x = frozen(kind, stored)
    expected, expected_gradient, kept = gradient(module, x)
    assert kept
    put_on(module)
    found, found_gradient, kept = gradient(module, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=0, atol=0)
    assert not kept


def test_a_quantised_weight_gives_the_gradient_of_its_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(8, 6, generator=generator)
    quantised = QuantizedTensor.from_float(numbers, "TensorCoreFP8Layout")
    module = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(6, 8, bias=False)
    module.weight = nn.Parameter(quantised, requires_grad=False)
    x = torch.randn(2, 5, 6, generator=generator).requires_grad_()
    put_on(module)
    found, found_gradient, kept = gradient(module, x)
    expected = x @ quantised.dequantize().T
    (expected_gradient,) = torch.autograd.grad(expected.sin().sum(), x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, expected_gradient)
    assert not kept


def test_a_weight_that_is_patched_at_each_call_is_patched_for_the_gradient_too() -> None:
    module, x = frozen("linear", torch.float32)
    module.weight_function = [lambda weight: weight * 2]
    module.comfy_cast_weights = True
    _, expected, _ = gradient(module, x)
    put_on(module)
    _, found, kept = gradient(module, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not kept


def test_a_weight_that_is_used_as_it_is_stays_with_autograd() -> None:
    module, x = frozen("linear", torch.float32)
    put_on(module)
    assert gradient(module, x)[2] == [module.weight.mT.shape]


def test_a_layer_that_somebody_else_wrote_is_left_alone() -> None:
    class Padded(comfy.ops.manual_cast.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (2, 0)))

    assert not [*casting_forwards(Padded(6, 8, 3))]
