"""Singular values told from the factors of a change equal those of the change that is built."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, AdapterCase, random
from anyadapter.algorithms.adapters.forms import Form, Kronecker, Product, Whole
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.analysis.norms import form_on
from anyadapter.algorithms.analysis.spectrum import Spectrum, spectra
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


def forms_of_sizes(*sizes: float) -> tuple[dict[str, Form], dict[str, float]]:
    forms: dict[str, Form] = {f"{size}": Whole(torch.eye(4) * size) for size in sizes}
    return forms, {name: form.norm() for name, form in forms.items()}


def test_the_largest_changes_come_first_while_there_is_time() -> None:
    forms, norms = forms_of_sizes(1.0, 4.0, 2.0, 3.0)
    each = next(iter(forms.values())).work
    assert list(spectra(forms, norms, budget=2 * each)) == ["4.0", "3.0"]
    assert list(spectra(forms, norms, budget=0)) == ["4.0"]
    assert list(spectra(forms, norms)) == ["4.0", "3.0", "2.0", "1.0"]


def test_a_product_of_low_rank_costs_less_than_the_whole() -> None:
    low = Product(torch.zeros(1280, 32), torch.zeros(32, 1280))
    whole = Whole(torch.zeros(1280, 1280))
    sides = Kronecker(torch.zeros(8, 8), torch.zeros(160, 160))
    assert low.work < whole.work / 100
    assert sides.work < whole.work / 100
