"""Low-rank copies are the best ones, of every form, and their errors are those that they make."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapter_cases import random
from anyadapter.algorithms.adapters.forms import (
    NOTHING,
    Form,
    Hadamard,
    Kronecker,
    Product,
    Whole,
)
from anyadapter.algorithms.editing.decomposition import Factors, decomposed
from anyadapter.algorithms.editing.size import Size
from anyadapter.algorithms.errors import EditingError


def falling(rows: int, columns: int, power: float = 1.0) -> Tensor:
    """A matrix whose singular values fall off as 1 / i^power."""
    count = min(rows, columns)
    left = torch.linalg.qr(random(rows, count))[0]
    right = torch.linalg.qr(random(columns, count))[0]
    return left * torch.arange(1, count + 1) ** -power @ right.T


FORMS: dict[str, Form] = {
    "product": Product(random(40, 12), random(12, 70)),
    "product of high rank": Product(random(40, 39), random(39, 70)),
    "product of rank beyond the sides": Product(random(20, 50), random(50, 30)),
    "hadamard over pairs": Hadamard(
        Product(random(60, 3), random(3, 90)), Product(random(60, 4) + 1, random(4, 90))
    ),
    "hadamard built": Hadamard(
        Product(random(30, 5), random(5, 24)), Product(random(30, 6) + 1, random(6, 24))
    ),
    "kronecker": Kronecker(random(4, 6), random(12, 10)),
    "kronecker with a kernel": Kronecker(random(6, 4), random(5, 3 * 9)),
    "whole": Whole(falling(60, 40)),
    "whole kernel": Whole(random(16, 6, 3, 5)),
    "whole, sampled": Whole(falling(150, 220)),
    "whole, sampled, tall": Whole(falling(220, 150)),
    "whole of one axis": Whole(random(9)),
}
SIZES = [
    *(Size(rank=1), Size(rank=5), Size(rank=1000), Size(rank=9, most=4)),
    *(Size(energy=0.5), Size(energy=0.97), Size(energy=1.0), Size(energy=0.97, most=6)),
    *(Size(error=0.4), Size(error=0.02), Size(error=0.0)),
]


def dense(form: Form) -> Tensor:
    match form:
        case Product():
            return form.left @ form.right
        case Hadamard():
            return dense(form.first) * dense(form.second)
        case Kronecker():
            return torch.kron(form.left, form.right)
        case Whole():
            return form.tensor.flatten(1) if form.tensor.ndim > 1 else form.tensor[:, None]
        case _:
            raise AssertionError


def cast(form: Form, dtype: torch.dtype) -> Form:
    def product(one: Product) -> Product:
        return Product(one.left.to(dtype), one.right.to(dtype))

    match form:
        case Product():
            return product(form)
        case Hadamard():
            return Hadamard(product(form.first), product(form.second))
        case Kronecker():
            return Kronecker(form.left.to(dtype), form.right.to(dtype))
        case Whole():
            return Whole(form.tensor.to(dtype))
        case _:
            raise AssertionError


def true_error(exact: Tensor, found: Factors) -> float:
    return float((exact.double() - found.up.double() @ found.down.double()).norm())


def wanted_rank(values: Tensor, size: Size) -> int:
    """Counts by hand how many singular values a size keeps."""
    most = size.most or len(values)
    if size.rank is not None:
        return min(size.rank, most, len(values))
    lost = 1 - size.energy if size.energy is not None else (size.error or 0.0) ** 2
    total = float(values.square().sum())
    for count in range(1, len(values) + 1):
        if float(values[count:].square().sum()) <= max(lost, 1e-13) * total:
            return min(count, most)
    raise AssertionError


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_copy_is_the_best_one_and_tells_its_error(
    name: str, size: Size, precision: str
) -> None:
    form = cast(FORMS[name], getattr(torch, precision))
    exact = dense(FORMS[name])
    values = torch.linalg.svdvals(exact)
    values = values[values > 1e-12 * values[0]]
    found = decomposed(form, size, name)
    assert found.up.dtype == found.down.dtype == getattr(torch, precision)
    assert found.norm == pytest.approx(float(exact.norm()), rel=1e-6)
    rank = found.up.shape[1]
    rounding = (1e-6 if precision == "float32" else 1e-13) * found.norm
    if size.error == 0 or size.energy == 1:
        # In float32 the rounding of the input has directions of its own.
        assert rank <= (len(values) if precision == "float64" else min(exact.shape))
        assert found.error <= rounding
    else:
        assert rank == wanted_rank(values, size)
    best = float(values[rank:].norm())
    assert found.error <= best * (1.01 if "sampled" in name else 1 + 1e-6) + rounding
    assert found.error == pytest.approx(
        true_error(dense(cast(form, torch.float64)), found), rel=1e-3, abs=rounding / 10
    )
    if size.error is not None and size.most is None:
        assert found.error <= size.error * found.norm + rounding


@pytest.mark.parametrize("name", FORMS)
def test_both_factors_have_the_same_share(name: str) -> None:
    found = decomposed(FORMS[name], Size(rank=3), "")
    assert_close(found.up.norm(dim=0), found.down.norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_random_directions_lose_at_most_one_percent(power: float, rank: int) -> None:
    matrix = falling(240, 320, power).float()
    found = decomposed(Whole(matrix), Size(rank=rank), "layer")
    best = float(torch.linalg.svdvals(matrix.double())[rank:].norm())
    assert best * (1 - 1e-6) <= found.error <= best * 1.01


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01, 1e-4, 1e-5])
@pytest.mark.parametrize("power", [0.3, 0.7, 1.0, 3.0])
def test_an_error_is_reached_with_hardly_a_rank_too_many(power: float, error: float) -> None:
    matrix = falling(240, 320, power).float()
    found = decomposed(Whole(matrix), Size(error=error), "layer")
    least = Size(error=error).needed(torch.linalg.svdvals(matrix.double()))
    rounding = 5e-7  # of the factors themselves
    assert found.error <= (error * (1 + 1e-6) + rounding) * found.norm
    assert least <= found.up.shape[1] <= least * 1.02 + 1


@pytest.mark.parametrize("size", [Size(error=0.05), Size(energy=0.9)], ids=str)
@pytest.mark.parametrize("kind", ["few rows", "one block many times"])
def test_what_has_few_directions_gives_no_more_of_them(kind: str, size: Size) -> None:
    """Directions beyond those of the change were those before once more, so that it counted twice."""
    few = random(30, 400).float()
    matrix = few.repeat(14, 1)
    if kind == "few rows":
        matrix = torch.zeros(400, 400)
        matrix[::14][:29] = few[:29]
    found = decomposed(Whole(matrix), size, "layer")
    lost = 1 - size.energy if size.energy is not None else (size.error or 0.0) ** 2
    assert true_error(matrix, found) <= lost**0.5 * float(matrix.norm()) * 1.001
    assert found.error == pytest.approx(true_error(matrix, found), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e18])
@pytest.mark.parametrize("name", ["whole", "whole, sampled", "kronecker"])
def test_tiny_and_huge_changes_have_copies_too(name: str, scale: float) -> None:
    form = cast(FORMS[name], torch.float32).times(scale)
    exact, size = dense(cast(form, torch.float64)), Size(rank=5)
    found = decomposed(form, size, "layer")
    values = torch.linalg.svdvals(exact / scale)
    assert found.norm == pytest.approx(float(values.norm()) * scale, rel=1e-5)
    lost = float(values[5:].norm()) * scale
    assert found.error == pytest.approx(lost, rel=1e-2)
    made = found.up.double() @ found.down.double()
    assert float(((exact - made) / scale).norm()) * scale == pytest.approx(lost, rel=1e-2)


def test_values_far_apart_are_all_found() -> None:
    """Of a change with singular values from 1 to 1e-5, all that are kept are right."""
    left, right = torch.linalg.qr(random(64, 6))[0], torch.linalg.qr(random(48, 6))[0]
    values = torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5], dtype=torch.float64)
    exact = left * values @ right.T
    for form in (Whole(exact.float()), Product((left * values).float(), right.T.float())):
        found = decomposed(form, Size(rank=6), "")
        assert_close(found.up.double().norm(dim=0) ** 2, values, rtol=1e-2, atol=0)
        assert found.error == pytest.approx(
            true_error(dense(cast(form, torch.float64)), found), rel=1e-2
        )
        assert found.error < 1e-6


def test_more_rank_than_there_is_adds_nothing_that_is_not_finite() -> None:
    """A matrix of rank 2 asked for 30 ranks gets zeros or rounding, never NaN."""
    exact = random(100, 2) @ random(2, 80)
    for form in (Whole(exact), Whole(exact.float()), Product(random(100, 30) * 0, random(30, 80))):
        found = decomposed(form, Size(rank=30), "")
        assert torch.isfinite(found.up).all()
        assert torch.isfinite(found.down).all()
        assert found.error <= 1e-6 * float(exact.norm())


@pytest.mark.parametrize(
    "form",
    [
        *(Whole(torch.zeros(8, 6)), Product(torch.zeros(8, 2), torch.ones(2, 6)), NOTHING),
        *(Kronecker(torch.zeros(2, 2), torch.ones(4, 3)), Product(random(8, 0), random(0, 6))),
    ],
)
@pytest.mark.parametrize("size", [Size(rank=4), Size(energy=0.9), Size(error=0.1)], ids=str)
def test_a_change_of_nothing_is_one_rank_of_zeros(form: Form, size: Size) -> None:
    found = decomposed(form, size, "")
    assert found.error == found.norm == 0
    assert found.up.shape == (dense(form).shape[0], 1)
    assert found.down.shape == (1, dense(form).shape[1])
    assert not found.up.any()
    assert not found.down.any()


def test_the_same_seed_gives_the_same_bits_and_another_other_ones() -> None:
    form = Whole(falling(200, 150, 0.3).float())
    one, again, other = (decomposed(form, Size(rank=4), seed) for seed in ("a", "a", "b"))
    assert torch.equal(one.up, again.up)
    assert torch.equal(one.down, again.down)
    assert not torch.equal(one.up, other.up)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_layer(wrong: float) -> None:
    matrix = torch.full((6, 4), wrong)
    forms = (Whole(matrix), Product(matrix[:, :2], matrix[:2]), Kronecker(matrix, torch.ones(2, 2)))
    for form in forms:
        with pytest.raises(EditingError, match="the layer"):
            decomposed(form, Size(rank=2), "the layer")
