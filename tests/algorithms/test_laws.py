"""The laws that hold for every method on every layer: see `house.md` of the project, or here.

forward with hook == forward with merged weight, at every strength;  strength 0 == base, exactly;
the adapter does something;  several adapters add, whatever their order;  a start changes nothing
"""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.adapters import ADAPTERS, Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.dispatch import Dispatcher
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Placed, hooked_output, merged_bias, merged_weight
from layer_cases import LayerCase

STRENGTHS = (1.0, 0.5, -0.7)

PAIRS = [
    pytest.param(adapter_case, layer_case, id=f"{adapter_case.name} on {layer_case.name}")
    for adapter_case in ADAPTER_CASES
    for layer_case in adapter_case.layers()
]
each_pair = pytest.mark.parametrize(("adapter_case", "layer_case"), PAIRS)


def prepared(case: LayerCase, item: Placed) -> Placed:
    """The adapter as a hook has it: its constants computed once, in float32 or better."""
    weight = case.weight if case.weight.dtype == torch.float64 else case.weight.float()
    weight = weight if item.rows is None else item.rows.take(weight)
    if not item.adapter.prepares_from_weight:
        weight = torch.empty(weight.shape, device="meta")
    adapter = item.adapter.prepared(weight).to("cpu", case.x.dtype)
    return replace(item, adapter=adapter)


def hooked(case: LayerCase, placed: list[Placed]) -> Tensor:
    ready = [prepared(case, item) for item in placed]
    return hooked_output(case.x, case.module(case.x), case.layer, ready)


def merged(case: LayerCase, placed: list[Placed]) -> Tensor:
    weight = merged_weight(case.weight, placed)
    bias = merged_bias(case.bias, case.layer.weight_shape[0], placed)
    return case.with_base(weight, bias)


@each_pair
@pytest.mark.parametrize("strength", STRENGTHS)
def test_hook_equals_merge(
    adapter_case: AdapterCase, layer_case: LayerCase, strength: float
) -> None:
    placed = [Placed(adapter_case.make(layer_case), strength)]
    torch.testing.assert_close(hooked(layer_case, placed), merged(layer_case, placed))


@each_pair
def test_strength_zero_is_the_base_exactly(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    placed = [Placed(adapter_case.make(layer_case), 0.0)]
    base = layer_case.module(layer_case.x)
    assert torch.equal(hooked(layer_case, placed), base)
    assert torch.equal(merged(layer_case, placed), base)


@each_pair
def test_the_adapter_changes_the_output(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    base = layer_case.module(layer_case.x)
    changed = hooked(layer_case, [Placed(adapter_case.make(layer_case), 1.0)])
    assert (changed - base).norm() > 0.05 * base.norm()


@each_pair
def test_the_change_is_linear_in_strength(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    adapter = adapter_case.make(layer_case)
    base = layer_case.module(layer_case.x)
    full = hooked(layer_case, [Placed(adapter, 1.0)]) - base
    half = hooked(layer_case, [Placed(adapter, 0.5)]) - base
    torch.testing.assert_close(half, full * 0.5)


@each_pair
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.0025)])
def test_low_precision_stays_near_float64(
    adapter_case: AdapterCase, layer_case: LayerCase, dtype: torch.dtype, tolerance: float
) -> None:
    # The tolerance is a few units in the last place of each dtype: 2 ** -8 and 2 ** -11.
    low = layer_case.to(dtype)
    adapter = adapter_case.make(layer_case)
    exact = hooked(layer_case, [Placed(adapter, 0.5)])
    for result in (
        hooked(low, [Placed(adapter, 0.5)]),
        merged(low, [Placed(adapter, 0.5)]),
    ):
        assert result.dtype == dtype
        assert (result.double() - exact).norm() < tolerance * exact.norm()


def adapters_on(layer_name: str) -> list[tuple[str, Adapter, LayerCase]]:
    return [
        (case.name, case.make(layer), layer)
        for case in ADAPTER_CASES
        for layer in case.layers()
        if layer.name == layer_name
    ]


@pytest.mark.parametrize(
    "layer_name", ["linear", "conv2d, stride", "conv2d, 2 groups", "group norm"]
)
def test_every_ordered_pair_of_methods_adds(layer_name: str) -> None:
    adapters = adapters_on(layer_name)
    layer = adapters[0][2]
    base = layer.module(layer.x)
    first = [prepared(layer, Placed(adapter, 0.5)) for _, adapter, _ in adapters]
    second = [replace(item, strength=-0.7) for item in first]
    effects = [hooked_output(layer.x, base, layer.layer, [item]) - base for item in first]
    for one, other in itertools.permutations(range(len(adapters)), 2):
        expected = base + effects[one] - 1.4 * effects[other]
        found = hooked_output(layer.x, base, layer.layer, [first[one], second[other]])
        torch.testing.assert_close(found, expected)
        placed = [Placed(adapters[one][1], 0.5), Placed(adapters[other][1], -0.7)]
        torch.testing.assert_close(merged(layer, placed), expected)


SWAPPED = Rows(2, 4, reorder=lambda rows: torch.cat(rows.chunk(2)[::-1]))


@each_pair
@pytest.mark.parametrize("reordered", [None, SWAPPED], ids=["slice", "swapped slice"])
def test_hook_equals_merge_on_some_rows(
    adapter_case: AdapterCase, layer_case: LayerCase, reordered: Rows | None
) -> None:
    rows = reordered or adapter_case.rows
    if layer_case.layer.kind.endswith("norm"):
        return  # a norm has no rows: its weight is never fused
    if layer_case.layer.groups != 1:
        return  # rows of a grouped convolution do not see all inputs: no such target exists
    narrow = LayerCase("narrow", layer_case.module, layer_case.layer.narrowed(rows), layer_case.x)
    placed = [
        Placed(adapter_case.make(narrow), 0.5, rows),
        Placed(adapter_case.make(layer_case), 1.0),
    ]
    result = hooked(layer_case, placed)
    torch.testing.assert_close(result, merged(layer_case, placed))
    only_rows = hooked(layer_case, placed[:1]) - layer_case.module(layer_case.x)
    axis = layer_case.layer.channel_axis(result)
    changed = only_rows.abs().flatten(0, axis - 1).movedim(1 if axis == 1 else -1, 0).flatten(1)
    touched = [index for index in range(8) if changed[index].sum() > 0]
    assert touched == list(range(rows.start, rows.start + rows.length))


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)
def test_a_start_changes_nothing_and_can_be_trained(method: type[Adapter]) -> None:
    layers = [
        layer
        for case in ADAPTER_CASES
        for layer in case.layers()
        if type(case.make(layer)) is method
    ]
    for layer in layers:
        generator = torch.Generator().manual_seed(0)
        start = method.initial(layer.layer, InitialConfig(rank=4, alpha=2.0), generator)
        start = start.to("cpu", torch.float64)
        assert torch.equal(hooked(layer, [Placed(start, 1.0)]), layer.module(layer.x))
        tensors = start.tensors()
        tensors = {name: one for name, one in tensors.items() if one.is_floating_point()}
        for tensor in tensors.values():
            tensor.add_(0.1).requires_grad_()
        # Cubes, since no rotation changes a sum of squares.
        hooked(layer, [Placed(start, 1.0)]).pow(3).sum().backward()
        assert all(tensor.grad is not None and tensor.grad.any() for tensor in tensors.values())
        assert layer.weight.grad is None


def test_a_dispatcher_passes_calls_on_once_it_is_retired() -> None:
    _, adapter, layer = adapters_on("linear")[0]
    base = layer.module(layer.x)
    dispatcher = Dispatcher(layer.module.forward, layer.layer, lambda *_: [Placed(adapter, 1.0)])
    assert not torch.equal(dispatcher.forward(layer.x), base)
    assert torch.equal(dispatcher.forward(input=layer.x), dispatcher.forward(layer.x))
    dispatcher.retire()
    assert torch.equal(dispatcher.forward(layer.x), base)
