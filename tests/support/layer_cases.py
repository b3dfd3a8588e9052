"""Layers of every kind for the laws: unequal sides, odd kernels, stride, padding, groups, bias."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.plan import LayerPlan, Way
from anyadapter.algorithms.strength import Placed, Strengths, merged_bias, merged_weight

WAYS: tuple[Way, ...] = ("in the weight", "on the output")


@dataclass(frozen=True, eq=False)
class LayerCase:
    """A module of torch, the same layer as adapters see it, and an input."""

    name: str
    module: nn.Module
    layer: Layer
    x: Tensor

    @property
    def weight(self) -> Tensor:
        assert isinstance(self.module.weight, Tensor)
        return self.module.weight.detach()

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def with_base(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns what the module computes with another weight and bias, by torch's own forward."""
        parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
        if bias is not None and self.bias is None:
            y = torch.func.functional_call(self.module, {"weight": weight}, (self.x,))
            return y + self.layer.over_channels(bias.to(y.dtype), y)
        return torch.func.functional_call(self.module, parameters, (self.x,))

    def prepared(self, item: Placed) -> Placed:
        """Returns an adapter as a hook has it: constants made once, in float32 or better."""
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        weight = weight if item.rows is None else item.rows.take(weight)
        if not item.adapter.prepares_from_weight:
            weight = torch.empty(weight.shape, device="meta")
        return replace(item, adapter=item.adapter.prepared(weight))

    def hooked(self, placed: Sequence[Placed], way: Way = "on the output") -> Tensor:
        """Returns the output with adapters as hooks."""
        return hooked_output(self.x, self.layer, [self.prepared(item) for item in placed], way)

    def merged(self, placed: Sequence[Placed]) -> Tensor:
        """Returns the output with adapters in the weight and the bias."""
        weight = merged_weight(self.weight, placed)
        bias = merged_bias(self.bias, self.layer.weight_shape[0], placed)
        return self.with_base(weight, bias)

    def to(self, dtype: torch.dtype) -> "LayerCase":
        """Returns the case in another dtype."""
        module = copy.deepcopy(self.module).to(dtype)
        return LayerCase(self.name, module, layer_of(module), self.x.to(dtype))


def hooked_output(
    x: Tensor, layer: Layer, placed: Sequence[Placed], way: Way = "on the output"
) -> Tensor:
    """Returns the output of a layer with adapters that are prepared, by one way or the other."""
    strengths = Strengths([[item.strength] for item in placed])
    plan = LayerPlan(layer, placed, x.device, x.dtype)
    if strengths.are_zero:
        return plan.run(x, layer, strengths)
    if way == "on the output":
        return plan.on_output(x, layer, strengths)
    assert layer.lend_weight is not None
    with layer.lend_weight(x) as weight:
        assert weight is not None
        return plan.in_weight(x, layer, strengths, weight)


def layer_of(module: nn.Module) -> Layer:
    """Describes a module of torch, written apart from the host's own reading of modules."""

    def read_weight(device: torch.device, dtype: torch.dtype) -> Tensor:
        return module.weight.detach().to(device, dtype)

    def read_bias(device: torch.device, dtype: torch.dtype) -> Tensor | None:
        bias = getattr(module, "bias", None)
        return None if bias is None else bias.detach().to(device, dtype)

    @contextmanager
    def lend_weight(x: Tensor) -> Iterator[Tensor | None]:
        yield module.weight.detach() if module.weight.dtype == x.dtype else None

    own = {
        "run": module.forward,
        "read_weight": read_weight,
        "read_bias": read_bias,
        "lend_weight": lend_weight,
    }
    shape = tuple(module.weight.shape)
    if isinstance(module, nn.Linear):
        return Layer("linear", shape, **own)
    if isinstance(module, nn.LayerNorm):
        return Layer("layer_norm", shape, eps=module.eps, **own)
    if isinstance(module, nn.GroupNorm):
        return Layer("group_norm", shape, groups=module.num_groups, eps=module.eps, **own)
    if isinstance(module, nn.RMSNorm):
        return Layer("rms_norm", shape, eps=module.eps, **own)
    return Layer(
        "conv",
        shape,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
        **own,
    )


def _case(name: str, module: nn.Module, *shape: int) -> LayerCase:
    module = module.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(len(name))
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return LayerCase(name, module, layer_of(module), x)


@cache
def product_cases() -> tuple[LayerCase, ...]:
    """Linear layers and convolutions: 8 outputs, 6 inputs."""
    return (
        _case("linear", nn.Linear(6, 8), 2, 7, 6),
        _case("linear, no bias", nn.Linear(6, 8, bias=False), 2, 6),
        _case("conv1d", nn.Conv1d(6, 8, 3, padding=1), 2, 6, 9),
        _case("conv1d, stride 2, no bias", nn.Conv1d(6, 8, 5, stride=2, bias=False), 2, 6, 11),
        _case("conv2d 1x1", nn.Conv2d(6, 8, 1), 2, 6, 4, 5),
        _case("conv2d 3x5", nn.Conv2d(6, 8, (3, 5), padding=(1, 2)), 2, 6, 7, 9),
        _case("conv2d, stride", nn.Conv2d(6, 8, 3, stride=(2, 1), padding=1), 2, 6, 8, 9),
        _case("conv2d, dilation, no bias", nn.Conv2d(6, 8, 3, dilation=2, bias=False), 2, 6, 9, 9),
        _case("conv2d, 2 groups", nn.Conv2d(12, 8, (3, 5), padding=1, groups=2), 2, 12, 7, 9),
        _case(
            "conv2d, reflected",
            nn.Conv2d(6, 8, (3, 5), padding=(1, 2), padding_mode="reflect"),
            *(2, 6, 7, 9),
        ),
        _case("conv3d", nn.Conv3d(6, 8, (1, 3, 5), padding=(0, 1, 2)), 2, 6, 3, 5, 7),
    )


def few(cases: Sequence[LayerCase]) -> list[LayerCase]:
    """Returns a layer for each way of computing, for variants that differ in their numbers only."""
    names = ("linear", "conv2d 1x1", "conv2d 3x5", "conv2d, 2 groups")
    return [case for case in cases if case.name in names]


@cache
def wide_cases() -> tuple[LayerCase, ...]:
    """Layers with 12 inputs, for methods that need them in pairs of blocks."""
    return (
        _case("linear, 12 inputs", nn.Linear(12, 8), 2, 7, 12),
        _case("conv2d 1x1, 2 groups", nn.Conv2d(24, 8, 1, groups=2), 2, 24, 4, 5),
        _case("conv2d, 12 inputs", nn.Conv2d(12, 8, (3, 5), padding=1), 2, 12, 7, 9),
    )


@cache
def norm_cases() -> tuple[LayerCase, ...]:
    """Norm layers of 8 channels."""
    return (
        _case("layer norm", nn.LayerNorm(8), 2, 7, 8),
        _case("layer norm, no bias", nn.LayerNorm(8, bias=False), 2, 7, 8),
        _case("group norm", nn.GroupNorm(4, 8), 2, 8, 5, 3),
        _case("rms norm", nn.RMSNorm(8, eps=1e-6), 2, 7, 8),
    )
