"""Singular values told from the factors of a change equal those of the change that is built."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, AdapterCase, random
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.forms import Kronecker, Product, Whole
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.analysis.inspection import Change, Site, measured, spectra_of
from anyadapter.algorithms.analysis.norms import form_on
from anyadapter.algorithms.analysis.spectrum import Spectrum, Spread, spread_of
from anyadapter.algorithms.families.blocks import Place
from layer_cases import LayerCase

PAIRS = [
    pytest.param(adapter_case, layer_case, id=f"{adapter_case.name} on {layer_case.name}")
    for adapter_case in ADAPTER_CASES
    for layer_case in adapter_case.layers()
]


def padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[0]))


@pytest.mark.parametrize(("adapter_case", "layer_case"), PAIRS)
def test_singular_values_are_those_of_the_change(
    adapter_case: AdapterCase, layer_case: LayerCase
) -> None:
    adapter = adapter_case.on(layer_case)
    weight = random(*layer_case.layer.weight_shape) * 2 + 1
    form = form_on(adapter, weight)
    assert form is not None
    change = adapter.delta_weight(weight)
    found = form.singular_values()
    if change is None:
        assert found.sum() == 0
        return
    matrix = change.flatten(1) if change.ndim > 1 else change[None]
    expected = torch.linalg.svdvals(matrix.double())
    length = max(len(expected), len(found))
    assert_close(
        padded(found.double(), length),
        padded(expected, length),
        rtol=1e-5,
        atol=1e-6 * float(expected[0]),
    )


@pytest.mark.parametrize("rank", [2, 5, 30])
def test_both_ways_of_a_loha_give_its_singular_values(rank: int) -> None:
    adapter = Loha(random(96, rank), random(rank, 60), random(96, rank) + 1, random(rank, 60) + 1)
    change = adapter.delta_weight(torch.empty(96, 60, device="meta"))
    expected = torch.linalg.svdvals(change)
    found = adapter.form().singular_values()
    assert_close(padded(found, 60), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_equal_directions_are_counted(count: int) -> None:
    values = torch.cat([torch.full((count,), 2.5), torch.zeros(4)])
    assert Spectrum(values).effective_rank == pytest.approx(count)


def test_no_change_has_no_directions() -> None:
    assert Spectrum(torch.zeros(3)).effective_rank == 0
    assert Spectrum(torch.zeros(0)).effective_rank == 0


def test_the_effective_rank_is_that_of_the_paper() -> None:
    # Roy and Vetterli: exp of the entropy of (0.5, 0.25, 0.25).
    assert Spectrum(torch.tensor([2.0, 1.0, 1.0])).effective_rank == pytest.approx(2**1.5)


def test_an_adapter_of_rank_one_is_of_one_direction() -> None:
    form = Lora(random(20, 1), random(1, 30)).form()
    assert Spectrum(form.singular_values()).effective_rank == pytest.approx(1)


def change_of(size: float) -> Change:
    site = Site(f"{size}", Diff(torch.eye(4) * size), Place("IN00", "mlp"))
    (change,) = measured([site])
    return change


def test_the_largest_changes_come_first_while_there_is_time() -> None:
    changes = [change_of(size) for size in (1.0, 4.0, 2.0, 3.0)]
    each = Whole(torch.eye(4)).work

    def looked_at(budget: int) -> list[str]:
        return [change.site.module for change, _ in spectra_of(changes, budget)]

    assert looked_at(2 * each) == ["4.0", "3.0"]
    assert looked_at(0) == ["4.0"]
    assert looked_at(4 * each) == ["4.0", "3.0", "2.0", "1.0"]


def test_the_spread_is_that_of_all_layers_and_never_rises() -> None:
    found = [Spectrum(torch.tensor(values)) for values in ([4.0, 2.0, 1.0], [2.0, 2.0], [8.0])]
    spread = spread_of([*found, Spectrum(torch.zeros(9))])
    assert spread.median == (1.0, 0.5, 0.0)
    assert spread.lower == (1.0, 0.25, 0.0)
    assert spread.upper == (1.0, 0.75, 0.125)


def test_a_spread_of_nothing_is_empty() -> None:
    assert spread_of([Spectrum(torch.zeros(3))]) == spread_of([]) == Spread((), (), ())


def test_a_product_of_low_rank_costs_less_than_the_whole() -> None:
    low = Product(torch.zeros(1280, 32), torch.zeros(32, 1280))
    whole = Whole(torch.zeros(1280, 1280))
    sides = Kronecker(torch.zeros(8, 8), torch.zeros(160, 160))
    assert low.work < whole.work / 100
    assert sides.work < whole.work / 100
