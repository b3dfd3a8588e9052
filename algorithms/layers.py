"""A layer as adapters see it: its kind, sizes and geometry, and how it applies a weight."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UnsupportedLayerError
from .shapes import Float

Kind = Literal["linear", "conv", "layer_norm", "group_norm", "rms_norm"]
Base = tuple[Tensor, Tensor | None]
"""Weight and bias of a layer."""


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
    read_base: Callable[[], Base] | None = None
    """Gives weight and bias as ordinary tensors; called only for methods that need their values."""

    def base(self, *, with_values: bool) -> Base:
        """Returns weight and bias; without values, an empty weight that has a shape only.

        Raises:
            UnsupportedLayerError: Values are asked for and the layer cannot give them.
        """
        if not with_values:
            return torch.empty(self.weight_shape, device="meta"), None
        if self.read_base is None:
            raise UnsupportedLayerError(
                "This method needs the numbers of the base weight, which this layer does not give. "
                "Load the model in an unquantised form."
            )
        return self.read_base()

    def channel_axis(self, y: Tensor) -> int:
        """Returns the axis of the output channels in an input or output of this layer."""
        return 1 if self.kind in ("conv", "group_norm") else y.ndim - 1

    def narrowed(self, rows: Rows) -> "Layer":
        """Returns the layer that has only these rows of the weight."""
        read = self.read_base

        def read_rows() -> Base:
            assert read is not None
            weight, bias = read()
            return rows.take(weight), None if bias is None else rows.take(bias)

        return replace(
            self,
            weight_shape=(rows.length, *self.weight_shape[1:]),
            read_base=read_rows if read is not None else None,
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
