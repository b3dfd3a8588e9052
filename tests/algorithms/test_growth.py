"""Weights that an adapter makes larger before it changes them."""

import pytest
import torch

from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.binding import dry_run
from anyadapter.algorithms.errors import ShapeError
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.keymap import Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Placed, merged_weight

UP, DOWN = torch.randn(8, 4), torch.randn(4, 10)
TENSORS = {
    "x.lora_A.weight": DOWN,
    "x.lora_B.weight": UP,
    "x.reshape_weight": torch.tensor([8, 10]),
}


def grown() -> Lora:
    ((adapter,),) = parse_tensors(TENSORS, {}, "a").adapters.values()
    assert isinstance(adapter, Lora)
    return adapter


def test_the_sizes_are_read_and_written() -> None:
    assert grown().reshape == (8, 10)
    tensors, _ = to_tensors(parse_tensors(TENSORS, {}, "a"))
    assert torch.equal(tensors["x.reshape_weight"], TENSORS["x.reshape_weight"])


def test_a_weight_is_filled_up_with_zeros_before_it_is_changed() -> None:
    weight = torch.randn(8, 6)
    expected = torch.cat([weight, torch.zeros(8, 4)], 1) + 0.5 * UP @ DOWN
    torch.testing.assert_close(merged_weight(weight, [Placed(grown(), 0.5)]), expected)


@pytest.mark.parametrize("order", [1, -1])
def test_other_adapters_change_the_corner_that_they_know(order: int) -> None:
    weight, change = torch.randn(8, 6), torch.randn(8, 6)
    placed = [Placed(grown(), 0.5), Placed(Diff(change), 2.0)]
    expected = torch.cat([weight + 2 * change, torch.zeros(8, 4)], 1) + 0.5 * UP @ DOWN
    torch.testing.assert_close(merged_weight(weight, placed[::order]), expected)


def test_strength_zero_leaves_the_weight_as_it_is() -> None:
    weight = torch.randn(8, 6)
    assert torch.equal(merged_weight(weight, [Placed(grown(), 0.0)]), weight)


@pytest.mark.parametrize("shape", [(9, 6), (8, 11), (8, 6, 1)])
def test_a_weight_never_shrinks(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"gives a weight the shape \[8, 10\]"):
        dry_run(grown(), Target("x.weight"), {"x.weight": shape})


def test_a_part_of_a_fused_weight_does_not_grow() -> None:
    with pytest.raises(ShapeError, match="a part of a fused weight cannot"):
        dry_run(grown(), Target("x.weight", Rows(0, 8)), {"x.weight": (24, 6)})
    assert dry_run(grown(), Target("x.weight"), {"x.weight": (8, 6)}) == (True, False)
