"""Adapters on other rows of a weight than they are for: cut to some, spread over more, and joined.

It is exact for methods whose outputs do not depend on each other: LoRA, LoHa, whole changes, and DoRA
with magnitudes of the outputs, whose lengths are those of single rows.
"""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.base import roomy, times, widened
from ..adapters.diff import Diff
from ..adapters.dora import Dora
from ..adapters.loha import Loha
from ..adapters.lora import Lora
from ..keymap import Target
from ..shapes import Float, Integer


def places(start: Target, end: Target, count: int) -> Integer[Tensor, " P"]:
    """Returns for each row of `end` which row of `start` it is, or -1 where it is none.

    Args:
        start: Some rows of a weight.
        end: Other rows of the same weight.
        count: The rows of the whole weight.
    """
    rows = torch.arange(count)
    of_start = rows if start.rows is None else start.rows.take(rows)
    of_end = rows if end.rows is None else end.rows.take(rows)
    found = torch.full((count,), -1)
    found[of_start] = torch.arange(of_start.shape[0])
    return found[of_end]


def on_rows(
    adapter: Adapter, rows: Integer[Tensor, " P"], shape: tuple[int, ...]
) -> Adapter | None:
    """Returns what an adapter does to other rows, or None where its method cannot tell it.

    Args:
        adapter: The adapter.
        rows: For each of the rows which row of the adapter's own it is; -1 is left unchanged.
        shape: Of the weight that the adapter is for.
    """
    adapter = _roomy(adapter)
    if isinstance(adapter, Lora) and adapter.reshape is None:
        up, used = _used(adapter.up, rows)
        bias = None if adapter.bias is None else _picked(adapter.bias, rows)
        return Lora(up, adapter.down[used], adapter.scale * up.shape[1], bias)
    if isinstance(adapter, Loha):
        up, used = _used(adapter.w1_a, rows)
        second = _picked(adapter.w2_a[:, used], rows)
        alpha = adapter.scale * up.shape[1]
        return Loha(up, adapter.w1_b[used], second, adapter.w2_b[used], alpha)
    if isinstance(adapter, Diff):
        return Diff(**{name: _picked(one, rows) for name, one in adapter.tensors().items()})
    if isinstance(adapter, Dora) and adapter.axis(shape) == "outputs":
        inner = on_rows(adapter.inner, rows, shape)
        if inner is None or not bool((rows >= 0).all()):
            return None  # the other rows would need the lengths of the base weight
        return Dora(inner, adapter.magnitude.flatten()[rows].reshape(-1, *[1] * (len(shape) - 1)))
    return None


def joined(adapters: Sequence[Adapter]) -> Adapter | None:
    """Returns the sum of adapters of one method on the same rows; None where it has no such sum.

    Factors stay as they are where all scales are the same. LoRAs that share their second factor, as
    parts of one that was cut, need its ranks once only.
    """
    first, *others = adapters
    if not others:
        return first
    adapters = [_roomy(one) for one in adapters]
    loras = [one for one in adapters if isinstance(one, Lora)]
    if len(loras) == len(adapters):
        return _joined_loras(loras)
    lohas = [one for one in adapters if isinstance(one, Loha)]
    if len(lohas) == len(adapters) and _are_apart([one.w1_a for one in lohas]):
        return _joined_lohas(lohas)
    diffs = [one for one in adapters if isinstance(one, Diff)]
    if len(diffs) == len(adapters):
        names = dict.fromkeys(name for one in diffs for name in one.tensors())
        every = [one.tensors() for one in diffs]
        return Diff(**{name: _sum([one[name] for one in every if name in one]) for name in names})
    return None


def stacked(adapters: Sequence[tuple[Adapter, Integer[Tensor, " P"]]]) -> Adapter | None:
    """Returns DoRAs on parts of a weight as one on the whole; None where they do not fill it.

    Args:
        adapters: Each with the rows of the whole, as for `on_rows`.
    """
    several = [(_roomy(one), rows) for one, rows in adapters]
    doras = [(one, rows) for one, rows in several if isinstance(one, Dora)]
    filled = torch.stack([rows >= 0 for _, rows in adapters]).sum(0)
    if len(doras) != len(adapters) or not bool((filled == 1).all()):
        return None
    inner: list[Adapter] = []
    scale = torch.zeros(filled.shape[0])
    for dora, rows in doras:
        moved = on_rows(dora.inner, rows, ())
        if moved is None:
            return None
        inner.append(moved)
        scale = scale.to(dora.magnitude.dtype)
        scale[rows >= 0] = dora.magnitude.flatten()[rows[rows >= 0]]
    total = joined(inner)
    ones = [1] * (max(found.ndim for found in inner[0].tensors().values()) - 1)
    return None if total is None else Dora(total, scale.reshape(-1, *ones))


def _roomy(adapter: Adapter) -> Adapter:
    """Returns an adapter of float8 in float16: in the other, tensors cannot be cut or added."""
    tensors = {name: roomy(one) for name, one in adapter.tensors().items()}
    return adapter.with_tensors(tensors)


def _joined_loras(loras: Sequence[Lora]) -> Lora:
    scale = loras[0].scale
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for lora in loras:
        up = times(lora.up, lora.scale / scale)
        known = next((i for i, down in enumerate(downs) if _same(down, lora.down)), None)
        if known is not None and _are_apart([ups[known], up]):
            ups[known] = ups[known] + up
        else:
            ups.append(up)
            downs.append(lora.down)
    biases = [times(one.bias, one.scale / scale) for one in loras if one.bias is not None]
    down = torch.cat(_in_one_dtype(downs))
    up = torch.cat(_in_one_dtype(ups), 1)
    return Lora(up, down, scale * down.shape[0], _sum(biases) if biases else None)


def _joined_lohas(lohas: Sequence[Loha]) -> Loha:
    """Returns LoHas on different rows as one: in each row only its own ranks are other than zero."""
    scale = lohas[0].scale
    w1_a = [times(one.w1_a, one.scale / scale) for one in lohas]
    columns = [
        *(torch.cat(_in_one_dtype(w1_a), 1), torch.cat(_in_one_dtype([o.w1_b for o in lohas]))),
        torch.cat(_in_one_dtype([one.w2_a for one in lohas]), 1),
        torch.cat(_in_one_dtype([one.w2_b for one in lohas])),
    ]
    return Loha(*columns, alpha=scale * columns[1].shape[0])


def _picked(tensor: Float[Tensor, "O ..."], rows: Integer[Tensor, " P"]) -> Float[Tensor, "P ..."]:
    """Returns rows of a tensor, zeros for -1."""
    found = tensor[rows.clamp_min(0)]
    found[rows < 0] = 0
    return found


def _used(
    up: Float[Tensor, "O R ..."], rows: Integer[Tensor, " P"]
) -> tuple[Float[Tensor, "P S ..."], Integer[Tensor, " S"]]:
    """Returns rows of a factor without the ranks that are zero in them, and which ranks are left.

    One is left where all are zero.
    """
    picked = _picked(up, rows)
    ranks = widened(picked).movedim(1, 0).flatten(1)
    found = ranks.ne(0).any(1).nonzero().flatten()
    found = found if len(found) else torch.arange(min(1, up.shape[1]))
    return picked[:, found], found


def _are_apart(ups: Sequence[Float[Tensor, "O R ..."]]) -> bool:
    """Whether each row is other than zero in one of some factors at most."""
    touched = torch.stack([widened(up).flatten(1).ne(0).any(1) for up in ups])
    return bool((touched.sum(0) <= 1).all())


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the sum, computed in float32 or better, in the widest of the dtypes."""
    kept = _in_one_dtype(tensors)
    return functools.reduce(operator.add, [widened(one) for one in kept]).to(kept[0].dtype)


def _in_one_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns tensors in a dtype that holds the numbers of all."""
    dtype = functools.reduce(torch.promote_types, [one.dtype for one in tensors])
    return [one.to(dtype) for one in tensors]
