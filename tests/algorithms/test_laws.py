"""The laws that hold for every method on every layer: see `house.md` of the project, or here.

forward with hook == forward with merged weight, at every strength;  strength 0 == base, exactly;
the adapter does something;  several adapters add, whatever their order;  a start changes nothing
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, AdapterCase, random
from anyadapter.algorithms.adapters import ADAPTERS, Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.dispatch import Dispatcher
from anyadapter.algorithms.errors import ShapeError
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.plan import EXACT_IN_WEIGHT, LayerPlan
from anyadapter.algorithms.strength import Placed, Strengths
from checking import annotations_unchecked
from layer_cases import WAYS, LayerCase, hooked_output, norm_cases

STRENGTHS = (1.0, 0.5, -0.7)
TOLERANCES = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""A few units in the last place of each dtype: 2 ** -8 and 2 ** -11."""

PAIRS = [
    pytest.param(adapter_case, layer_case, id=f"{adapter_case.name} on {layer_case.name}")
    for adapter_case in ADAPTER_CASES
    for layer_case in adapter_case.layers()
]
each_pair = pytest.mark.parametrize(("adapter_case", "layer_case"), PAIRS)
checked_above = annotations_unchecked()
"""For laws that make the same calls as `test_hook_equals_merge`, which checks the annotations."""


@cache
def hooked_at(adapter_case: AdapterCase, layer: LayerCase) -> dict[float, Tensor]:
    """Strength -> the output with a hook, for an adapter that was prepared once."""
    ready = layer.prepared(Placed(adapter_case.on(layer), 1.0))
    return {
        strength: hooked_output(layer.x, layer.layer, [replace(ready, strength=strength)])
        for strength in STRENGTHS
    }


@cache
def base_of(layer: LayerCase) -> Tensor:
    return layer.module(layer.x)


@cache
def in_dtype(layer: LayerCase, dtype: torch.dtype) -> LayerCase:
    return layer.to(dtype)


@contextmanager
def said(what: object) -> Iterator[None]:
    """Puts what is tested in front of the message of a failure, where one test has several."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


@each_pair
def test_hook_equals_merge(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    adapter = adapter_case.on(layer_case)
    for strength, output in hooked_at(adapter_case, layer_case).items():
        with said(f"strength {strength}"):
            assert_close(output, layer_case.merged([Placed(adapter, strength)]))


@each_pair
def test_a_hook_in_the_weight_equals_one_on_the_output(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    ready = layer_case.prepared(Placed(adapter_case.on(layer_case), 1.0))
    layer = layer_case.layer
    for strength, output in hooked_at(adapter_case, layer_case).items():
        placed = [replace(ready, strength=strength)]
        with said(f"strength {strength}"):
            assert_close(hooked_output(layer_case.x, layer, placed, "in the weight"), output)


@each_pair
@checked_above
def test_elements_of_a_batch_may_have_strengths_of_their_own(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    ready = layer_case.prepared(Placed(adapter_case.on(layer_case), 1.0))
    layer, x = layer_case.layer, torch.cat([layer_case.x, layer_case.x])
    base, full = base_of(layer_case), hooked_at(adapter_case, layer_case)[1.0]
    plan = LayerPlan(layer, [ready], x.device, x.dtype)
    numbers = (0.5, -0.7, 0.0, 1.0)
    each = torch.tensor(numbers, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    expected = torch.cat([base, base]) + each * torch.cat([full - base, full - base])
    strengths = Strengths([numbers])
    assert_close(plan.on_output(x, layer, strengths), expected)
    assert_close(plan.in_weight(x, layer, strengths, layer_case.weight), expected)


@each_pair
@checked_above
def test_strength_zero_is_the_base_exactly(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    placed = [Placed(adapter_case.on(layer_case), 0.0)]
    for way in WAYS:
        assert torch.equal(layer_case.hooked(placed, way), base_of(layer_case))
    assert torch.equal(layer_case.merged(placed), base_of(layer_case))


@each_pair
def test_the_adapter_changes_the_output(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    base = base_of(layer_case)
    changed = hooked_at(adapter_case, layer_case)[1.0]
    assert (changed - base).norm() > 0.05 * base.norm()


@each_pair
def test_the_change_is_linear_in_strength(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    base = base_of(layer_case)
    outputs = hooked_at(adapter_case, layer_case)
    full = outputs[1.0] - base
    for strength in (0.5, -0.7):
        with said(f"strength {strength}"):
            assert_close(outputs[strength] - base, full * strength)


@each_pair
@checked_above
def test_low_precision_stays_near_float64(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    adapter, exact = adapter_case.on(layer_case), hooked_at(adapter_case, layer_case)[0.5]
    for dtype, tolerance in TOLERANCES.items():
        low = in_dtype(layer_case, dtype)
        placed = [Placed(adapter, 0.5)]
        results = [low.hooked(placed), low.merged(placed)]
        if dtype in EXACT_IN_WEIGHT:
            results.append(low.hooked(placed, "in the weight"))
        for result in results:
            assert result.dtype == dtype
            assert (result.double() - exact).norm() < tolerance * exact.norm(), dtype


def methods_on(layer_name: str) -> tuple[LayerCase, list[Adapter]]:
    """A layer and an adapter of every method that it can have."""
    found: dict[type[Adapter], Adapter] = {}
    layer: LayerCase | None = None
    for case in ADAPTER_CASES:
        for layer_case in case.layers():
            if layer_case.name == layer_name:
                layer = layer_case
                found.setdefault(type(case.on(layer)), case.on(layer))
    assert layer is not None
    return layer, list(found.values())


MANY = ("linear", "conv2d, stride", "conv2d, 2 groups", "group norm")


@pytest.mark.parametrize("layer_name", MANY)
def test_every_ordered_pair_of_methods_adds(layer_name: str) -> None:
    layer, adapters = methods_on(layer_name)
    base = base_of(layer)
    first = [Placed(adapter, 0.5) for adapter in adapters]
    second = [replace(item, strength=-0.7) for item in first]
    ready = [layer.prepared(item) for item in first]
    effects = [hooked_output(layer.x, layer.layer, [item]) - base for item in ready]
    with annotations_unchecked():  # the other laws check them on the same adapters and layers
        for one, other in itertools.permutations(range(len(adapters)), 2):
            expected = base + effects[one] - 1.4 * effects[other]
            placed = [ready[one], replace(ready[other], strength=-0.7)]
            with said(f"{adapters[one].name} and {adapters[other].name}"):
                for way in WAYS:
                    assert_close(hooked_output(layer.x, layer.layer, placed, way), expected)
                assert_close(layer.merged([first[one], second[other]]), expected)


@pytest.mark.parametrize("layer_name", MANY)
def test_all_methods_together_add_whatever_their_order(layer_name: str) -> None:
    layer, adapters = methods_on(layer_name)
    placed = [Placed(adapter, 0.5) for adapter in adapters]
    base = base_of(layer)
    expected = base + sum(layer.hooked([item]) - base for item in placed)
    for order in (placed, placed[::-1]):
        for way in WAYS:
            assert_close(layer.hooked(order, way), expected)
        assert_close(layer.merged(order), expected)


SWAPPED = Rows(2, 4, reorder=lambda rows: torch.cat(rows.chunk(2)[::-1]))
ON_ROWS = [
    pair
    for pair in PAIRS
    # A norm has no rows: its weight is never fused. Rows of a grouped convolution do not see all
    # inputs: no such target exists.
    if not pair.values[1].layer.kind.endswith("norm") and pair.values[1].layer.groups == 1
]


each_pair_on_rows = pytest.mark.parametrize(("adapter_case", "layer_case"), ON_ROWS)


def require_law_of_rows(adapter_case: AdapterCase, layer: LayerCase, rows: Rows) -> None:
    """Checks an adapter of some rows, beside one of all rows and alone."""
    narrow = replace(layer, name="narrow", layer=layer.layer.narrowed(rows))
    some = Placed(adapter_case.make(narrow), 0.5, rows)
    placed = [some, Placed(adapter_case.on(layer), 1.0)]
    for way in WAYS:
        assert_close(layer.hooked(placed, way), layer.merged(placed))
    change = layer.hooked([some]) - base_of(layer)
    axis = layer.layer.channel_axis(change)
    others = [other for other in range(change.ndim) if other != axis]
    touched = change.abs().sum(others).nonzero().flatten().tolist()
    assert touched == list(range(rows.start, rows.start + rows.length))


@each_pair_on_rows
def test_hook_equals_merge_on_some_rows(adapter_case: AdapterCase, layer_case: LayerCase) -> None:
    require_law_of_rows(adapter_case, layer_case, adapter_case.rows)


@each_pair_on_rows
@annotations_unchecked()  # checked on the other rows
def test_hook_equals_merge_on_swapped_rows(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    require_law_of_rows(adapter_case, layer_case, SWAPPED)


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)
def test_a_start_changes_nothing_and_can_be_trained(method: type[Adapter]) -> None:
    layers = {
        layer for case in ADAPTER_CASES for layer in case.layers() if type(case.on(layer)) is method
    }
    assert layers
    for layer in layers:
        generator = torch.Generator().manual_seed(0)
        start = method.initial(layer.layer, InitialConfig(rank=4, alpha=2.0), generator)
        start = start.to("cpu", torch.float64)
        with said(layer.name):
            for way in WAYS:
                assert torch.equal(layer.hooked([Placed(start, 1.0)], way), base_of(layer))
            tensors = start.tensors().values()
            tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
            for tensor in tensors:
                tensor.add_(0.1).requires_grad_()
            # Cubes, since no rotation changes a sum of squares.
            layer.hooked([Placed(start, 1.0)]).pow(3).sum().backward()
            assert all(tensor.grad is not None and tensor.grad.any() for tensor in tensors)
            assert layer.weight.grad is None


def _column(rows: int) -> Tensor:
    return random(rows, 1)


ON_NORMS: dict[str, Adapter] = {
    "LoRA": Lora(random(8, 4), _column(4), 2.0),
    "LoHa": Loha(random(8, 4), _column(4), random(8, 4) + 1, _column(4), 2.0),
    "LoKr": Lokr(_column(2), w2=_column(4)),
    "DoRA": Dora(Lora(random(8, 4), _column(4)), dora_scale=random(8, 1).abs() + 1),
}


@pytest.mark.parametrize("method", ON_NORMS)
@pytest.mark.parametrize("layer", norm_cases(), ids=lambda case: case.name)
def test_factors_of_one_column_change_a_norm_or_do_not_fit(method: str, layer: LayerCase) -> None:
    # They passed the check of shapes, and torch's own error ended the first step.
    placed = [Placed(ON_NORMS[method], 0.5)]
    try:
        merged = layer.merged(placed)
    except ShapeError:
        return
    for way in WAYS:
        assert_close(layer.hooked(placed, way), merged)


def test_a_dispatcher_passes_calls_on_once_it_is_retired() -> None:
    layer, adapters = methods_on("linear")
    base = base_of(layer)
    plan = LayerPlan(layer.layer, [Placed(adapters[0], 1.0)], layer.x.device, layer.x.dtype)
    running = (plan, Strengths([[1.0]]))
    dispatcher = Dispatcher(layer.module.forward, layer.layer, lambda *_: running, alone=True)
    assert not torch.equal(dispatcher.forward(layer.x), base)
    assert torch.equal(dispatcher.forward(input=layer.x), dispatcher.forward(layer.x))
    dispatcher.retire()
    assert torch.equal(dispatcher.forward(layer.x), base)
