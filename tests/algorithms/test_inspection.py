"""What the changes of a file amount to: norms of blocks, shares, and what is an estimate."""

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.ia3 import Ia3
from anyadapter.algorithms.adapters.oft import DiagOft
from anyadapter.algorithms.adapters.replacement import Replacement
from anyadapter.algorithms.analysis.inspection import (
    Read,
    Site,
    measured,
    norms_by,
    ranks_by_block,
    shares,
    spectra_of,
)
from anyadapter.algorithms.families.blocks import Place

WEIGHT = torch.arange(24.0).reshape(4, 6) - 7


def site(
    adapter: Adapter, block: str = "IN01", part: str = "mlp", read: Read | None = None
) -> Site:
    return Site(f"{block}.{part}", adapter, Place(block, part), read)


def of_norm(norm: float) -> Diff:
    return Diff(torch.full((4, 1), norm / 2))


def with_weight() -> tuple[Tensor, None]:
    return WEIGHT, None


def never() -> tuple[Tensor | None, Tensor | None]:
    raise AssertionError("its weight is not needed")


def test_layers_of_a_block_add_in_squares() -> None:
    changes = measured(
        [site(of_norm(3.0)), site(of_norm(4.0), part="conv"), site(of_norm(5.0), "OUT01")]
    )
    assert norms_by(changes, lambda place: place.block) == pytest.approx({"IN01": 5, "OUT01": 5})
    parts = norms_by(changes, lambda place: (place.block, place.part))
    assert parts["IN01", "conv"] == pytest.approx(4)


def test_shares_are_of_the_squares_the_largest_first() -> None:
    found = shares({"IN01": 1.0, "OUT01": 2.0, "M00": None})
    assert list(found.items()) == [("OUT01", 0.8), ("IN01", 0.2)]
    assert shares({"IN01": 0.0}) == {"IN01": 0.0}


def test_one_unknown_layer_makes_its_block_unknown() -> None:
    changes = measured([site(of_norm(3.0)), site(Replacement(WEIGHT), part="norm")])
    assert norms_by(changes, lambda place: place.block) == {"IN01": None}


def test_without_a_weight_what_takes_one_is_an_estimate_and_has_no_spectrum() -> None:
    changes = measured([site(Ia3(torch.ones(4), 0.0)), site(of_norm(1.0), "OUT01")])
    assert [change.exact for change in changes] == [False, True]
    assert [change.site.place.block for change, _ in spectra_of(changes)] == ["OUT01"]


@pytest.mark.parametrize("adapter", [Ia3(torch.ones(4), 0.0), DiagOft(torch.ones(2, 2, 2).triu(1))])
def test_with_a_weight_it_is_exact(adapter: Adapter) -> None:
    (change,) = measured([site(adapter, read=with_weight)])
    built = adapter.delta_weight(WEIGHT)
    assert built is not None
    assert change.exact
    assert change.norm == pytest.approx(float(built.norm()), rel=1e-5)
    ((_, spectrum),) = spectra_of([change])
    assert float(spectrum.values.norm()) == pytest.approx(change.norm, rel=1e-5)


def test_the_weight_is_read_only_where_the_change_depends_on_it() -> None:
    (change,) = measured([site(of_norm(2.0), read=never)])
    assert change.exact
    spectra_of([change])


def test_a_weight_without_numbers_leaves_an_estimate() -> None:
    (change,) = measured([site(Ia3(torch.ones(4), 0.0), read=lambda: (None, None))])
    assert not change.exact
    assert change.norm == pytest.approx(2)


def test_a_block_has_the_mean_rank_of_its_layers() -> None:
    one, two = Diff(torch.eye(4)[:1].repeat(4, 1)), Diff(torch.eye(4))
    found = spectra_of(measured([site(one), site(two), site(Diff(diff_b=torch.ones(4)))]))
    assert ranks_by_block(found) == pytest.approx({"IN01": 2.5})
