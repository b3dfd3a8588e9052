"""The rule of strength: what adapters make of a weight, a bias or an output, at any strength.

    W' = W + sum of s_i * delta_weight_i(W)        y' = y + sum of s_i * delta_output_i(x, y, layer)

Every change is computed from the base and the changes are added, so the order of adapters does not
matter, both ways of applying them agree for every method, and strength 0 is exactly the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters.base import Adapter, widened
from .layers import Layer, Rows
from .shapes import Float


@dataclass(frozen=True, eq=False)
class Placed:
    """An adapter on a layer, or on some of its rows, at the user's strength."""

    adapter: Adapter
    strength: float
    rows: Rows | None = None


def merged_weight(
    weight: Float[Tensor, "O ..."], placed: Sequence[Placed]
) -> Float[Tensor, "O ..."]:
    """Returns a new weight with all changes, in the dtype of `weight`; computed in float32 up.

    It is larger than `weight` where an adapter makes it so: those that do not act on its corner.
    """
    base = widened(weight)
    total = base.clone()
    for item in placed:
        if item.strength == 0:
            continue
        part = base if item.rows is None else item.rows.take(base)
        shape = item.adapter.grown(tuple(part.shape))
        if shape != tuple(part.shape):
            part = _filled_up(part, shape)
            total = _filled_up(total, tuple(map(max, total.shape, shape)))
        change = item.adapter.delta_weight(part)
        if change is not None:
            _add(total, change * item.strength, item.rows)
    return total.to(weight.dtype)


def merged_bias(
    bias: Float[Tensor, " O"] | None, outputs: int, placed: Sequence[Placed]
) -> Float[Tensor, " O"] | None:
    """Returns a new bias with all changes, or None if there was none and none is made.

    Args:
        bias: The base bias.
        outputs: Length of a bias, for a layer that has none yet.
        placed: The adapters.
    """
    base = None if bias is None else widened(bias)
    total = None if base is None else base.clone()
    for item in placed:
        if item.strength == 0:
            continue
        part = base if base is None or item.rows is None else item.rows.take(base)
        change = item.adapter.delta_bias(part)
        if change is not None:
            total = change.new_zeros(outputs) if total is None else total
            _add(total, change * item.strength, item.rows)
    return total if total is None or bias is None else total.to(bias.dtype)


def hooked_output(
    x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer, placed: Sequence[Placed]
) -> Float[Tensor, "B ..."]:
    """Returns the output `y` of a layer with all changes, in the dtype of `y`.

    Adapters are expected on the device and in the dtype of `x`. Neither `x` nor `y` is written to.
    """
    total: Tensor | None = None
    axis = layer.channel_axis(y)
    for item in placed:
        if item.strength == 0:
            continue
        if item.rows is None:
            change = item.adapter.delta_output(x, y, layer) * item.strength
            total = change if total is None else total + change
        else:
            part = item.rows.take(y, axis)
            change = item.adapter.delta_output(x, part, layer.narrowed(item.rows))
            total = torch.zeros_like(y) if total is None else total.expand_as(y).clone()
            _add(total, change.expand_as(part) * item.strength, item.rows, axis)
    return y if total is None else y + total.to(y.dtype)


def _filled_up(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns `tensor` with zeros after its last row and column."""
    missing = [larger - size for larger, size in zip(shape, tensor.shape, strict=True)]
    return F.pad(tensor, [side for size in reversed(missing) for side in (0, size)])


def _add(total: Tensor, change: Tensor, rows: Rows | None, axis: int = 0) -> None:
    """Adds `change` in place, to all of `total` (or its corner) or to some of its rows."""
    if rows is None:
        total[tuple(slice(size) for size in change.shape)].add_(change)
    else:
        rows.add(total, change, axis)
