"""The nearest Kronecker product is the nearest one, and its error is the one that it makes."""

import math

import pytest
import torch
from torch.testing import assert_close

from adapter_cases import random
from anyadapter.algorithms.adapters.linalg import kronecker
from anyadapter.algorithms.editing.kronecker import nearest_kronecker
from anyadapter.algorithms.errors import EditingError, ShapeError

SHAPES = [
    *(((12, 8), (3, 2)), ((12, 8), (1, 8)), ((12, 8), (12, 1)), ((6, 10, 3, 5), (2, 5))),
    *(((90, 84), (9, 7)), ((64, 60), (4, 4)), ((12, 6, 3), (4, 3)), ((4, 6, 2, 2, 3), (2, 2))),
]


def least_error(change: torch.Tensor, left: tuple[int, int]) -> float:
    """Norm of all that one direction over the blocks cannot hold, the blocks cut out one by one."""
    (a, c), (outputs, inputs, *_) = left, change.shape
    b, d = outputs // a, inputs // c
    blocks = [
        change[i * b : (i + 1) * b, p * d : (p + 1) * d].flatten()
        for i in range(a)
        for p in range(c)
    ]
    return float(torch.linalg.svdvals(torch.stack(blocks))[1:].norm())


@pytest.mark.parametrize(("shape", "left"), SHAPES)
def test_no_product_is_nearer(shape: tuple[int, ...], left: tuple[int, int]) -> None:
    change = random(*shape)
    found = nearest_kronecker(change, left, "layer")
    product = kronecker(found.w1, found.w2)
    assert product.shape == shape
    assert found.norm == pytest.approx(float(change.norm()), rel=1e-9)
    assert found.error == pytest.approx(float((change - product).norm()), rel=1e-9, abs=1e-9)
    least = least_error(change, left)
    assert least * (1 - 1e-9) <= found.error <= least * 1.0001


@pytest.mark.parametrize(("shape", "left"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kronecker_product_is_found_again(
    shape: tuple[int, ...], left: tuple[int, int], dtype: torch.dtype
) -> None:
    (a, c), (outputs, inputs, *kernel) = left, shape
    change = kronecker(random(a, c), random(outputs // a, inputs // c, *kernel)).to(dtype)
    found = nearest_kronecker(change, left, "layer")
    precision = 1e-6 if dtype == torch.float32 else 1e-13
    assert_close(kronecker(found.w1, found.w2), change, rtol=0, atol=precision * 10)
    assert found.w1.dtype == dtype
    assert found.error <= precision * found.norm
    assert float(found.w1.norm()) == pytest.approx(float(found.w2.norm()), rel=1e-5)


def test_the_same_seed_gives_the_same_bits() -> None:
    one, again = (nearest_kronecker(random(64, 60).float(), (8, 6), "layer") for _ in range(2))
    assert torch.equal(one.w1, again.w1)
    assert torch.equal(one.w2, again.w2)


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_tiny_and_huge_changes_have_a_nearest_product(scale: float) -> None:
    change = random(8, 12).float() * scale
    found, plain = (nearest_kronecker(one, (2, 3), "layer") for one in (change, change / scale))
    assert found.error == pytest.approx(plain.error * scale, rel=1e-4)
    made = torch.kron(found.w1.double(), found.w2.double()) / scale
    assert_close(made, torch.kron(plain.w1.double(), plain.w2.double()), rtol=1e-4, atol=1e-5)


def test_a_change_of_nothing_is_a_product_of_zeros() -> None:
    found = nearest_kronecker(torch.zeros(6, 4), (3, 2), "layer")
    assert found.error == found.norm == 0
    assert not found.w1.any()
    assert not found.w2.any()


def test_sides_that_do_not_divide_the_change_are_refused() -> None:
    with pytest.raises(ShapeError, match="4 by 2"):
        nearest_kronecker(random(6, 4), (4, 2), "layer")


def test_numbers_that_are_not_finite_are_refused_with_their_layer() -> None:
    with pytest.raises(EditingError, match="the layer"):
        nearest_kronecker(torch.full((6, 4), math.nan), (3, 2), "the layer")
