"""A layer as adapters see it: its kind, sizes and geometry, and how it applies a weight."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from .errors import UnsupportedLayerError
from .shapes import Float

Kind = Literal["linear", "conv", "layer_norm", "group_norm", "rms_norm"]
Run = Callable[[Tensor], Tensor]
"""Computes a layer without adapters on an input."""
ReadWeight = Callable[[torch.device, torch.dtype], Tensor]
"""Gives the base weight as an ordinary tensor on a device, in a dtype."""
LendWeight = Callable[[Tensor], AbstractContextManager[Tensor | None]]
"""Lends the very weight that `forward` would use on an input, an ordinary tensor on its device and in
its dtype that must not be written to; or None where `forward` uses none such."""
ReadBias = Callable[[torch.device, torch.dtype], Tensor | None]
"""Gives the base bias, or None where the layer has none."""


def swap_halves(tensor: Tensor) -> Tensor:
    """Returns the rows with their two halves in the other order: (shift, scale), (scale, shift)."""
    return tensor.roll(tensor.shape[0] // 2, 0)


@dataclass(frozen=True)
class Rows:
    """The part of a layer's outputs that one adapter acts on: a slice of a fused weight."""

    start: int
    length: int
    reorder: Callable[[Tensor], Tensor] | None = None
    """A permutation of the rows that is its own inverse: between the file's order and the layer's.

    The host has one: diffusers keeps (shift, scale) where some models keep (scale, shift).
    """

    def take(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Returns these rows of `tensor`, in the order of the file."""
        part = tensor.narrow(axis, self.start, self.length)
        if self.reorder is None:
            return part
        return self.reorder(part.movedim(axis, 0)).movedim(0, axis)

    def add(self, total: Tensor, change: Tensor, axis: int = 0) -> None:
        """Adds `change`, in the order of the file, to these rows of `total`, in place."""
        if self.reorder is not None:
            change = self.reorder(change.movedim(axis, 0)).movedim(0, axis)
        total.narrow(axis, self.start, self.length).add_(change)


@dataclass(frozen=True)
class Layer:
    """One linear, convolution or norm layer."""

    kind: Kind
    weight_shape: tuple[int, ...]
    """`[O, I]`, `[O, I / groups, *K]`, or `[C]` for a norm."""
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    """Groups of a convolution, or of a group norm."""
    padding_mode: str = "zeros"
    eps: float | None = None
    """Of a norm; None is torch's own choice (RMS norm only)."""
    run: Run | None = field(default=None, compare=False)
    """The layer itself, which keeps casting, offloading and quantised products in force."""
    read_weight: ReadWeight | None = field(default=None, compare=False)
    """Called only for methods that need the numbers of the weight."""
    is_compressed: bool = field(default=False, compare=False)
    """Whether each reading of the weight makes it anew out of fewer bytes."""
    read_bias: ReadBias | None = field(default=None, compare=False)
    lend_weight: LendWeight | None = field(default=None, compare=False)
    """None where `forward` may do more than apply the weight, or nobody said that it does not."""

    @cached_property
    def blank(self) -> Tensor:
        """A tensor in the shape of the weight that has no numbers."""
        return torch.empty(self.weight_shape, device="meta")

    @property
    def has_kernel(self) -> bool:
        """Whether it is a convolution of more than one point."""
        return bool(set(self.weight_shape[2:]) - {1})

    @property
    def chains(self) -> bool:
        """Whether two layers in a row can stand for a product of two weights.

        Norms have no product, and in a grouped convolution the factors would mix the groups.
        """
        return self.kind in ("linear", "conv") and self.groups == 1

    def weight(self, x: Tensor) -> Tensor:
        """Returns the base weight on the device and in the dtype of `x`.

        Raises:
            UnsupportedLayerError: The layer cannot give its numbers.
        """
        if self.read_weight is None:
            raise UnsupportedLayerError(
                "This method needs the numbers of the base weight, which this layer does not give. "
                "Load the model in an unquantised form."
            )
        return self.read_weight(x.device, x.dtype)

    def bias(self, x: Tensor) -> Tensor | None:
        """Returns the base bias on the device and in the dtype of `x`, or None without one."""
        return None if self.read_bias is None else self.read_bias(x.device, x.dtype)

    def unbiased(self, y: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Returns an output of the layer without its bias."""
        bias = self.bias(y)
        return y if bias is None else y - self.over_channels(bias, y)

    def product(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Returns what the layer makes of another input, without its bias: the base product."""
        assert self.run is not None, "whoever hooks a layer gives it its own forward"
        return self.unbiased(self.run(x))

    def positions(self, x: Float[Tensor, "B ..."]) -> int:
        """Returns about how many tokens or pixels the output for an input has, over the batch."""
        if self.kind != "conv":
            return x.numel() // max(x.shape[self.channel_axis(x)], 1)
        return x.numel() // max(x.shape[1] * math.prod(self.stride), 1)

    def channel_axis(self, y: Tensor) -> int:
        """Returns the axis of the output channels in an input or output of this layer."""
        return 1 if self.kind in ("conv", "group_norm") else y.ndim - 1

    def narrowed(self, rows: Rows) -> "Layer":
        """Returns the layer that has only these rows of the weight."""
        run, read_weight, read_bias = self.run, self.read_weight, self.read_bias

        def run_rows(x: Tensor) -> Tensor:
            assert run is not None
            y = run(x)
            return rows.take(y, self.channel_axis(y))

        def read_rows(device: torch.device, dtype: torch.dtype) -> Tensor:
            assert read_weight is not None
            return rows.take(read_weight(device, dtype))

        def read_bias_rows(device: torch.device, dtype: torch.dtype) -> Tensor | None:
            bias = None if read_bias is None else read_bias(device, dtype)
            return None if bias is None else rows.take(bias)

        return replace(
            self,
            weight_shape=(rows.length, *self.weight_shape[1:]),
            run=run_rows if run is not None else None,
            read_weight=read_rows if read_weight is not None else None,
            read_bias=read_bias_rows,
            lend_weight=None,
        )

    def apply(
        self,
        x: Float[Tensor, "B ..."],
        weight: Float[Tensor, "..."],
        bias: Float[Tensor, " O"] | None = None,
    ) -> Float[Tensor, "B ..."]:
        """Applies the layer to `x` with another weight, which may have another number of rows.

        It is linear in (weight, bias) for every kind, so changes of weights can be applied alone.
        """
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        if self.kind == "layer_norm":
            return F.layer_norm(x, self.weight_shape, weight, bias, self.eps or 0.0)
        if self.kind == "group_norm":
            return F.group_norm(x, self.groups, weight, bias, self.eps or 0.0)
        if self.kind == "rms_norm":
            y = F.rms_norm(x, self.weight_shape, weight, self.eps)
            return y if bias is None else y + bias
        padding = self.padding
        if self.padding_mode != "zeros":
            sides = [n for size in reversed(padding) for n in (size, size)]
            x = F.pad(x, sides, mode=self.padding_mode)
            padding = (0,) * len(padding)
        conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
        return conv(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def gradient_of_input(
        self, gradient: Float[Tensor, "B ..."], shape: torch.Size
    ) -> Float[Tensor, "B ..."]:
        """Returns the gradient by the input, which needs the base weight and no input.

        Args:
            gradient: That by the output.
            shape: Of the input; of a convolution without padding modes, or of a linear layer.
        """
        weight = self.weight(gradient)
        if self.kind == "linear":
            return gradient @ weight
        # torch declares the geometry as single numbers, and takes one for each axis.
        functions: dict[int, Any] = {3: conv1d_input, 4: conv2d_input, 5: conv3d_input}
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return functions[weight.ndim](shape, weight, gradient, *geometry)

    def gradients(
        self,
        gradient: Float[Tensor, "B ..."],
        x: Float[Tensor, "B ..."],
        weight: Float[Tensor, "O ..."],
        *,
        of_input: bool,
    ) -> tuple[Float[Tensor, "B ..."] | None, Float[Tensor, "O ..."]]:
        """Returns the gradients by the input and by a weight that was applied to it.

        Args:
            gradient: That by the output.
            x: The input.
            weight: What `apply` was given.
            of_input: Whether that by the input is wanted: else None stands for it.
        """
        if self.kind == "linear":
            of_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2)
            return gradient @ weight if of_input else None, of_weight
        if self.kind == "conv" and self.padding_mode == "zeros":
            # Autograd's own: `torch.nn.grad` computes each gradient apart.
            geometry = (self.stride, self.padding, self.dilation, False, (0,), self.groups)
            wanted = (of_input, True, False)
            backward = torch.ops.aten.convolution_backward
            return backward(gradient, x, weight, None, *geometry, wanted)[:2]
        found = torch.func.vjp(self.apply, x, weight)[1](gradient)
        return found if of_input else (None, found[1])

    def pointwise(
        self, x: Float[Tensor, "B ..."], matrix: Float[Tensor, "O I"]
    ) -> Float[Tensor, "B ..."]:
        """Applies a matrix to the channels of every token or pixel: a 1x1 convolution."""
        if self.kind == "linear":
            return F.linear(x, matrix)
        kernel = matrix.reshape(*matrix.shape, *[1] * (len(self.weight_shape) - 2))
        return {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[kernel.ndim](x, kernel)

    def over_channels(self, vector: Float[Tensor, " O"], y: Tensor) -> Tensor:
        """Returns a vector of channels in a shape that broadcasts against the output `y`."""
        trailing = y.ndim - 1 - self.channel_axis(y)
        return vector.reshape(-1, *[1] * trailing)
