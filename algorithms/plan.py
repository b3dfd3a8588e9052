"""How the adapters of a layer run: the cheapest way that is exact, for all of them at once.

The rule of `strength.py` says what comes out. There are two ways to it:

    in the weight     W' = W + sum of s_i * dW_i, then the layer with W' in place of W
    on the output     the layer with W, and beside it what the adapters add to its output

Building W' costs the same for one token and for thousands, and what is added to an output grows
with their number: so layers at the full size of a picture go one way, deep and small ones the other.
Neither writes to a weight of the model. Low-rank changes of all adapters are one product of their
concatenated factors, factors of outputs and inputs are one vector each, and only what has no such
form runs adapter by adapter.

Strengths are given with each call and are no part of a plan.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .adapters.base import Adapter, Pieces, widened
from .errors import UnsupportedLayerError
from .layers import Layer, ReadWeight, Rows
from .shapes import Float
from .strength import Placed, Strengths

Way = Literal["in the weight", "on the output"]

EXACT_IN_WEIGHT = (torch.float64, torch.float32, torch.float16)
"""A change that is small beside its weight vanishes when the sum is rounded to bfloat16, whose steps
are 0.4 % of a number: there it is computed apart and added to the output."""


@dataclass(frozen=True)
class Machine:
    """What work costs on a kind of device, in bytes that could be moved in the same time."""

    bytes_per_multiplication: float
    bytes_per_call: float
    """Of one operation of torch, however small."""


CPU = Machine(bytes_per_multiplication=0.2, bytes_per_call=5e4)
"""Measured on two cores: 100 billion multiplications in a second; 37 GB read and written, but 7 where
the memory is new, between which this lies; 1 to 2 us for a call."""
GPU = Machine(bytes_per_multiplication=0.015, bytes_per_call=5e6)
"""From data sheets, for half precision: 200 trillion multiplications and 3 TB in a second; 2 us for
a call, as long as the device does not wait for it."""


@dataclass(frozen=True)
class Costs:
    """Estimates of both ways, in bytes that could be moved in the same time."""

    in_weight: float
    on_output: float


class Budget:
    """Memory for weights that are built: some to be kept, and room for one that is used at once."""

    def __init__(self, limit_bytes: int) -> None:
        """Takes how much may be kept, which the room for one weight does not count to."""
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._room: Tensor | None = None

    def take(self, size_bytes: int) -> bool:
        """Whether there was as much left; then it is taken."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Takes note that a weight was let go."""
        self.used_bytes -= size_bytes

    def room_for(self, weight: Tensor) -> Tensor | None:
        """Returns memory in the shape of `weight`, until the next call; None where new one is as good.

        On a CPU, large tensors come from the system page by page, which takes longer than to write
        them. Gradients need tensors that stay.
        """
        if weight.device.type != "cpu" or torch.is_grad_enabled():
            return None
        if self._room is None or self._room.nbytes < weight.nbytes:
            self._room = torch.empty(weight.nbytes, dtype=torch.uint8)
        return self._room[: weight.nbytes].view(weight.dtype).view(weight.shape)

    def clear(self) -> None:
        """Takes note that nothing is kept any more, and lets the room go."""
        self.used_bytes = 0
        self._room = None


@dataclass(frozen=True, eq=False)
class _Window:
    """The ranks that reach the same outputs."""

    rows: slice
    """Of the layer's outputs."""
    ranks: slice
    up: Float[Tensor, "O R"]


@dataclass(frozen=True, eq=False)
class _LowRank:
    """The low-rank changes of all adapters, with their factors side by side."""

    down: Float[Tensor, "R I"]
    windows: tuple[_Window, ...]
    owner: Tensor
    """Of each rank: the place of its adapter among the strengths."""
    scale: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class _Own:
    """An adapter without pieces."""

    adapter: Adapter
    rows: Rows | None
    index: int
    """Its place among the strengths."""


class LayerPlan:
    """The adapters of one layer, on one device and in one dtype.

    A plan knows no strength and does not hold the module, so that all clones of a model that have
    the same adapters on it can share it.
    """

    def __init__(
        self,
        layer: Layer,
        placed: Sequence[Placed],
        device: torch.device,
        dtype: torch.dtype,
        budget: Budget | None = None,
    ) -> None:
        """Sorts the pieces of the adapters into groups.

        Args:
            layer: The layer; it is asked for its bias.
            placed: Its adapters, prepared; their own strengths are not read.
            device: Where the layer computes.
            dtype: Of its input.
            budget: Where built weights may be kept.
        """
        self._outputs_count = layer.weight_shape[0]
        self._device, self._dtype = device, dtype
        self._budget = budget or Budget(0)
        self._kept: tuple[object, Tensor] | None = None
        self._read_once: Tensor | None = None
        self._built_last: object = None
        self._ranks: tuple[Strengths, Tensor] | None = None
        self._ways: dict[tuple[int, int], Way] = {}
        split = [_pieces_of(layer, item) for item in placed]
        self._low_rank = self._joined(placed, split)
        self._own = tuple(
            _Own(item.adapter.to(device, dtype), item.rows, index)
            for index, item in enumerate(placed)
            if split[index] is None
        )
        wide = torch.promote_types(dtype, torch.float32)
        bias = layer.bias(torch.empty(0, device=device, dtype=wide))
        gains = [
            self._gain_of_outputs(item, pieces) for item, pieces in zip(placed, split, strict=True)
        ]
        shifts = [self._shift(item, bias) for item in placed]
        self._outputs = self._stacked(gains)
        self._inputs = self._stacked(
            [None if pieces is None else pieces.inputs for pieces in split]
        )
        self._bias_changes = self._stacked(shifts)
        self._constants = self._stacked(
            [
                None if pieces is None else _constant(shift, gain, bias)
                for pieces, shift, gain in zip(split, shifts, gains, strict=True)
            ]
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors that the plan holds, without those within its budget."""
        vectors = (self._outputs, self._inputs, self._bias_changes, self._constants)
        held = [tensor for tensor in vectors if tensor is not None]
        if self._low_rank is not None:
            held += [self._low_rank.down, *(window.up for window in self._low_rank.windows)]
        held += [tensor for own in self._own for tensor in own.adapter.tensors().values()]
        return sum(tensor.nbytes for tensor in held)

    def run(
        self, x: Float[Tensor, "B ..."], layer: Layer, strengths: Strengths, *, fresh: bool = False
    ) -> Float[Tensor, "B ..."]:
        """Returns the output of the layer with its adapters.

        Args:
            x: The input, which is not written to.
            layer: The layer, with `run`.
            strengths: One for each adapter, in the order in which they were given.
            fresh: Whether nobody else sees what `layer.run` returns, so that it can be written to.

        Raises:
            UnsupportedLayerError: Elements of the batch have different strengths, and the input is
                not made of such elements.
        """
        assert layer.run is not None, "whoever hooks a layer gives it its own forward"
        if strengths.are_zero:
            return layer.run(x)
        if x.shape[0] % strengths.elements:
            raise UnsupportedLayerError(
                f"A layer of the weight {list(layer.weight_shape)} gets {x.shape[0]} inputs for a "
                f"batch of {strengths.elements} that have different strengths, and which belongs to "
                "which is not known. Give all prompts the same strength of this adapter."
            )
        runs = 1 if strengths.are_equal else len(strengths.runs())
        if layer.lend_weight and self.way(layer, layer.positions(x), runs) == "in the weight":
            with layer.lend_weight(x) as weight:
                if weight is not None:
                    return self.in_weight(x, layer, strengths, weight)
        return self.on_output(x, layer, strengths, fresh=fresh)

    def way(self, layer: Layer, positions: int, runs: int = 1) -> Way:
        """Returns the cheaper way.

        Args:
            layer: The layer.
            positions: Tokens or pixels of its output, over the batch.
            runs: How many times the strength changes along the batch, and 1.
        """
        if self._dtype not in EXACT_IN_WEIGHT:
            return "on the output"
        if self._kept is not None:
            return "in the weight"
        asked = (positions, runs)
        if asked not in self._ways:
            costs = self.costs(layer, positions, runs)
            cheaper = costs.in_weight < costs.on_output
            self._ways[asked] = "in the weight" if cheaper else "on the output"
        return self._ways[asked]

    def costs(self, layer: Layer, positions: int, runs: int = 1) -> Costs:
        """Estimates what the adapters cost, beyond the layer itself.

        A small matrix product is bound by its multiplications and what it reads and writes, a sum or
        a scaling by the latter alone; each also takes a call. The multiplications of a product
        of few ranks count twice: it reached two thirds of the speed of a large one.
        """
        machine = CPU if self._device.type == "cpu" else GPU
        each = torch.empty(0, dtype=self._dtype).element_size()
        outputs = layer.weight_shape[0]
        numbers = math.prod(layer.weight_shape)
        columns = numbers // outputs
        call = machine.bytes_per_call
        in_weight = 2 * numbers * each + call
        on_output = 0.0
        if self._low_rank is not None:
            rank = self._low_rank.down.shape[0]
            thin = 2 * machine.bytes_per_multiplication
            windows = len(self._low_rank.windows)
            in_weight += rank * numbers * thin + (2 * windows) * call
            on_output += positions * rank * (columns + outputs) * thin
            on_output += positions * (layer.weight_shape[1] + 3 * rank + 2 * outputs) * each
            on_output += (2 + windows) * call
        for gain in (self._outputs, self._inputs, self._constants):
            if gain is not None:
                in_weight += 2 * numbers * each + call
                on_output += 2 * positions * gain.shape[1] * each + 2 * call
        if self._inputs is not None and self._reads_base:
            on_output += positions * numbers * machine.bytes_per_multiplication
        for own in self._own:
            part = layer if own.rows is None else layer.narrowed(own.rows)
            work = own.adapter.work(part, positions)
            in_weight += work.in_weight * machine.bytes_per_multiplication
            in_weight += 4 * math.prod(part.weight_shape) * 4 + 4 * call  # it is built in float32
            on_output += work.on_output * machine.bytes_per_multiplication
            on_output += 4 * positions * part.weight_shape[0] * each + 6 * call
        return Costs(runs * in_weight, on_output)

    def in_weight(
        self, x: Float[Tensor, "B ..."], layer: Layer, strengths: Strengths, weight: Tensor
    ) -> Float[Tensor, "B ..."]:
        """Returns the output by a weight that holds the changes.

        Args:
            x: The input.
            layer: The layer.
            strengths: As for `run`.
            weight: Its base weight, an ordinary tensor like `x`, which is not written to.
        """
        if strengths.are_equal:
            return layer.apply(x, self._weight(weight, strengths), self._bias(x, layer, strengths))
        each = x.shape[0] // strengths.elements
        parts = x.split([count * each for count, _ in strengths.runs()])
        return torch.cat(
            [
                self.in_weight(part, layer, some, weight)
                for part, (_, some) in zip(parts, strengths.runs(), strict=True)
            ]
        )

    def on_output(
        self, x: Float[Tensor, "B ..."], layer: Layer, strengths: Strengths, *, fresh: bool = False
    ) -> Float[Tensor, "B ..."]:
        """Returns the output of the layer, plus what the adapters add to it."""
        assert layer.run is not None, "whoever hooks a layer gives it its own forward"
        more: Tensor | None = None
        if self._inputs is None:
            y = layer.run(x)
        else:
            gain = _over(strengths.tensor(x) @ self._inputs, x, layer)
            if self._reads_base:
                y, more = layer.run(x), layer.product(x * gain)
            else:
                y = layer.run(torch.addcmul(x, x, gain))
        read = layer.read_weight
        if self._own and layer.is_compressed and read is not None:
            layer = replace(layer, read_weight=partial(self._remembered, read))
        changes = [(own, self._change(own, x, y, layer, strengths)) for own in self._own]
        if self._outputs is not None:
            total = torch.addcmul(y, y, _over(strengths.tensor(y) @ self._outputs, y, layer))
        else:
            total = y if fresh and not _is_tracked(y) else y.clone()
        if self._constants is not None:
            total += _over(strengths.tensor(y) @ self._constants, y, layer)
        if more is not None:
            total += more
        for own, change in changes:
            if change is not None and own.rows is None:
                total += change
            elif change is not None and own.rows is not None:
                own.rows.add(total, change, layer.channel_axis(y))
        if self._low_rank is not None:
            total = self._with_low_rank(total, x, layer, strengths, self._low_rank)
        return total

    @property
    def _reads_base(self) -> bool:
        """Whether something needs the output of the layer on its own input."""
        return bool(self._own) or self._outputs is not None

    def _remembered(self, read: ReadWeight, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns the weight of a layer that decompresses it, once if the budget has room for it."""
        kept = self._read_once
        if kept is not None and (kept.device, kept.dtype) == (device, dtype):
            return kept
        weight = read(device, dtype)
        if kept is None and self._budget.take(weight.nbytes):
            self._read_once = weight
        return weight

    def _weight(self, weight: Tensor, strengths: Strengths) -> Tensor:
        """Returns the weight with its changes, built or kept.

        It is kept from the second time on that it is built for the same strengths: not while they
        change from step to step.
        """
        if strengths.are_zero:
            return weight
        if self._kept is not None:
            if self._kept[0] == strengths.numbers:
                return self._kept[1]
            self._budget.give_back(self._kept[1].nbytes)
            self._kept = None
        weight = weight.contiguous()
        stays = self._built_last == strengths.numbers and self._budget.take(weight.nbytes)
        self._built_last = strengths.numbers
        room = None if stays else self._budget.room_for(weight)
        built = self._built(weight, strengths, room)
        if stays:
            self._kept = (strengths.numbers, built)
        return built

    def _built(self, weight: Tensor, strengths: Strengths, room: Tensor | None) -> Tensor:
        """Returns the weight with the changes of all adapters, each computed from `weight`.

        Args:
            weight: The base.
            strengths: The same for all elements of the batch.
            room: Memory for the result, or None for new one.
        """
        total: Tensor | None = None
        if self._outputs is not None:
            gain = (strengths.tensor(weight) @ self._outputs).reshape(-1, *[1] * (weight.ndim - 1))
            total = torch.addcmul(weight, weight, gain, out=room)
        if self._inputs is not None:
            gain = (strengths.tensor(weight) @ self._inputs).reshape(-1, *[1] * (weight.ndim - 2))
            base = weight if total is None else total
            total = torch.addcmul(base, weight, gain, out=room)
        if self._low_rank is not None:
            base = weight if total is None else total
            total = self._with_factors(base, strengths, self._low_rank, room)
        for own in self._own:
            strength = strengths.numbers[own.index][0]
            if strength == 0:
                continue
            part = weight if own.rows is None else own.rows.take(weight)
            change = own.adapter.delta_weight(part)
            if change is None:
                continue
            change = change.to(weight.dtype)
            if own.rows is None:
                base = weight if total is None else total
                total = torch.add(base, change, alpha=strength, out=room)
            else:
                total = _copied(weight, room) if total is None else total
                own.rows.add(total, change * strength)
        return weight if total is None else total

    def _with_factors(
        self, base: Tensor, strengths: Strengths, joined: _LowRank, room: Tensor | None
    ) -> Tensor:
        """Returns `base` plus the products of all factors, in other memory or in `room`."""
        ranks = self._ranks_at(strengths, joined)[0]
        matrix = base.flatten(1)
        out = None if room is None else room.flatten(1)
        (first, *others) = joined.windows
        if not others and first.up.shape[0] == matrix.shape[0]:
            return torch.addmm(matrix, first.up * ranks, joined.down, out=out).reshape(base.shape)
        total = _copied(matrix, out)
        for window in joined.windows:
            up = window.up * ranks[window.ranks]
            total[window.rows].addmm_(up, joined.down[window.ranks])
        return total.reshape(base.shape)

    def _bias(self, x: Tensor, layer: Layer, strengths: Strengths) -> Tensor | None:
        """Returns the bias with its changes, or None without one."""
        bias = layer.bias(x)
        if self._bias_changes is None or strengths.are_zero:
            return bias
        change = (strengths.tensor(x) @ self._bias_changes)[0]
        return change if bias is None else bias + change

    def _change(
        self, own: _Own, x: Tensor, y: Tensor, layer: Layer, strengths: Strengths
    ) -> Tensor | None:
        """Returns what an adapter without pieces adds to the output, or to its rows of it."""
        if not any(strengths.numbers[own.index]):
            return None
        if own.rows is not None:
            y, layer = own.rows.take(y, layer.channel_axis(y)), layer.narrowed(own.rows)
        change = own.adapter.delta_output(x, y, layer).to(y.dtype)
        strength = strengths.tensor(y)[:, own.index, None]
        return change.expand_as(y) * _over(strength, y, layer)

    def _with_low_rank(
        self, total: Tensor, x: Tensor, layer: Layer, strengths: Strengths, joined: _LowRank
    ) -> Tensor:
        """Returns `total`, written to, plus the products of all factors."""
        rank = joined.down.shape[0]
        hidden = layer.apply(x, joined.down.reshape(rank, *layer.weight_shape[1:]))
        hidden = hidden * _over(self._ranks_at(strengths, joined), hidden, layer)
        for window in joined.windows:
            _add_product(total, hidden, window, layer)
        return total

    def _ranks_at(self, strengths: Strengths, joined: _LowRank) -> Float[Tensor, "B R"]:
        """Returns the factor of each rank: strength of its adapter times alpha / rank."""
        if self._ranks is None or self._ranks[0] is not strengths:
            ranks = strengths.tensor(joined.scale)[:, joined.owner] * joined.scale
            self._ranks = (strengths, ranks)
        return self._ranks[1]

    def _joined(self, placed: Sequence[Placed], split: Sequence[Pieces | None]) -> _LowRank | None:
        """Returns the low-rank pieces with their factors side by side, those of a window together."""
        windows: dict[tuple[int, int], list[int]] = defaultdict(list)
        ups: dict[int, Tensor] = {}
        for index, (item, pieces) in enumerate(zip(placed, split, strict=True)):
            if pieces is None or pieces.up is None:
                continue
            rows = item.rows or Rows(0, self._outputs_count)
            up = pieces.up.to(self._device, self._dtype)
            ups[index] = up if rows.reorder is None else rows.reorder(up)
            windows[rows.start, rows.length].append(index)
        if not ups:
            return None
        owner: list[int] = []
        found: list[_Window] = []
        downs: list[Tensor] = []
        scales: list[float] = []
        for (start, length), indices in windows.items():
            first = len(owner)
            for index in indices:
                pieces = split[index]
                assert pieces is not None
                assert pieces.down is not None
                downs.append(pieces.down.to(self._device, self._dtype))
                owner += [index] * pieces.down.shape[0]
                scales += [pieces.scale] * pieces.down.shape[0]
            up = _beside([ups[index] for index in indices], 1)
            found.append(_Window(slice(start, start + length), slice(first, len(owner)), up))
        return _LowRank(
            _beside(downs, 0),
            tuple(found),
            torch.tensor(owner, device=self._device),
            torch.tensor(scales, device=self._device, dtype=self._dtype),
        )

    def _gain_of_outputs(self, item: Placed, pieces: Pieces | None) -> Tensor | None:
        """Returns the factors less 1 of all outputs of the layer, or None where there are none."""
        if pieces is None or pieces.outputs is None:
            return None
        return _over_all(widened(pieces.outputs), item.rows, self._outputs_count)

    def _shift(self, item: Placed, bias: Tensor | None) -> Tensor | None:
        """Returns the change of the bias of all outputs of the layer."""
        part = bias if bias is None or item.rows is None else item.rows.take(bias)
        shift = item.adapter.delta_bias(part)
        return None if shift is None else _over_all(widened(shift), item.rows, self._outputs_count)

    def _stacked(self, vectors: Sequence[Tensor | None]) -> Tensor | None:
        """Returns one row for each adapter, zeros where it has no vector; None where none has one."""
        like = next((vector for vector in vectors if vector is not None), None)
        if like is None:
            return None
        rows = [torch.zeros_like(like) if vector is None else vector for vector in vectors]
        return torch.stack([row.flatten() for row in rows]).to(self._device, self._dtype)


def _pieces_of(layer: Layer, item: Placed) -> Pieces | None:
    """Returns the pieces of an adapter; factors of the inputs of some rows only are none."""
    if item.rows is None:
        return item.adapter.pieces(layer)
    pieces = item.adapter.pieces(layer.narrowed(item.rows))
    return None if pieces is None or pieces.inputs is not None else pieces


def _constant(shift: Tensor | None, gain: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Returns what is added to every position: a gain is for the output without its bias."""
    if gain is None or bias is None:
        return shift
    of_bias = gain * bias.to(gain)
    rest = -of_bias if shift is None else shift - of_bias
    return rest if bool(rest.any()) else None


def _over_all(vector: Tensor, rows: Rows | None, outputs: int) -> Tensor:
    """Returns a vector of some rows as one of all outputs, with zeros elsewhere."""
    if rows is None:
        return vector
    total = vector.new_zeros(outputs)
    rows.add(total, vector)
    return total


def _beside(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Returns tensors as one; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors], axis)


def _over(vector: Float[Tensor, "B C"], y: Tensor, layer: Layer) -> Tensor:
    """Returns vectors of channels, of all elements of the batch or of each, to broadcast over `y`."""
    if vector.shape[0] == 1:
        return layer.over_channels(vector[0], y)
    each = vector.repeat_interleave(y.shape[0] // vector.shape[0], 0)
    shape = [1] * y.ndim
    shape[0], shape[layer.channel_axis(y)] = each.shape
    return each.reshape(shape)


def _add_product(total: Tensor, hidden: Tensor, window: _Window, layer: Layer) -> None:
    """Adds `up` times the channels of `hidden` to some channels of `total`, in place.

    The sum is made by the matrix product itself where the memory of `total` allows.
    """
    axis = layer.channel_axis(total)
    hidden = hidden.narrow(axis, window.ranks.start, window.up.shape[1])
    part = total.narrow(axis, window.rows.start, window.up.shape[0])
    in_order = total.is_contiguous()
    if axis == total.ndim - 1 and in_order:
        rows = total.view(-1, total.shape[-1])[:, window.rows]
        rows.addmm_(hidden.reshape(-1, hidden.shape[-1]), window.up.mT)
    elif in_order:
        maps = part.flatten(2)
        maps.baddbmm_(window.up.expand(maps.shape[0], -1, -1), hidden.flatten(2))
    elif total.ndim == 4 and total.is_contiguous(memory_format=torch.channels_last):
        rows = total.permute(0, 2, 3, 1).reshape(-1, total.shape[1])[:, window.rows]
        rows.addmm_(hidden.permute(0, 2, 3, 1).reshape(-1, hidden.shape[1]), window.up.mT)
    else:
        part += layer.pointwise(hidden, window.up)


def _is_tracked(y: Tensor) -> bool:
    """Whether gradients may flow through `y`."""
    return torch.is_grad_enabled() and y.requires_grad


def _copied(tensor: Tensor, room: Tensor | None) -> Tensor:
    """Returns a copy, in `room` where there is one; or `tensor` itself where it is that room."""
    if room is None:
        return tensor.clone()
    return tensor if room.data_ptr() == tensor.data_ptr() else room.copy_(tensor)
