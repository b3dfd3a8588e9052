"""The sum of several changes of one layer in the smallest form that is exact.

    sum of s_i L_i R_i = [s_1 L_1, s_2 L_2, ...] [R_1; R_2; ...]

Products of two matrices stay one: their ranks stand side by side. A Hadamard product is one over the
pairs of its ranks, a Kronecker product one over the pairs of the ranks of both sides:
(A1 B1) ⊗ (A2 B2) = (A1 ⊗ A2) (B1 ⊗ B2). Where all this is larger than the weight, the sum is built.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.base import widened
from ..adapters.forms import Form, Hadamard, Kronecker, Product, Whole
from ..adapters.linalg import through_core
from ..adapters.lokr import Lokr
from ..errors import EditingError, ShapeError, listed
from ..layers import Rows
from ..shapes import Float
from .sites import Sited


@dataclass(frozen=True, eq=False)
class Term:
    """One change in the sum of a layer."""

    site: Sited
    file: str
    strength: float
    """By which it is multiplied."""
    number: int = 0
    """Place of its file among all."""
    content: bytes = b""
    """Digest of its tensors, where there are several files."""
    rows: Rows | None = None
    """Which rows of the weight of the sum it changes; None for all."""
    outputs: int = 0
    """How many rows that weight has, where it changes some of them."""

    def form(self) -> Form | None:
        """Returns its change of the weight, strength included; None where only the bias changes.

        Raises:
            EditingError: It depends on a weight that is not there.
            ShapeError: It does not fit the weight.
        """
        try:
            found = self.site.form()
        except (EditingError, ShapeError) as error:
            raise type(error)(f"{self.file}: {self.site.module}: {error}") from error
        if 0 in found.sizes:
            return None
        return found if self.strength == 1 else found.times(self.strength)

    def shift(self) -> Float[Tensor, " O"] | None:
        """Returns its change of the whole bias, strength included, or None without one."""
        found = self.site.shift()
        return None if found is None else self.placed((found * self.strength)[:, None])[:, 0]

    def placed(self, part: Float[Tensor, "N C"]) -> Float[Tensor, "O C"]:
        """Returns its rows among all of the weight of the sum, the others zero."""
        if self.rows is None:
            return part
        whole = part.new_zeros(self.outputs, part.shape[1])
        self.rows.add(whole, part)
        return whole


def added(terms: Sequence[Term]) -> Form | None:
    """Returns the sum of changes of the weight, or None where only the bias changes.

    Args:
        terms: At least one.

    Raises:
        EditingError: They are of different sizes, or depend on a weight that is not there.
        ShapeError: One does not fit its weight.
    """
    forms = [(term, form) for term in terms for form in [term.form()] if form is not None]
    if not forms:
        return None
    if len(forms) == 1 and forms[0][0].rows is None:
        return forms[0][1]
    rows, columns = _common_size(forms)
    halves = [_halves(term, form) for term, form in forms]
    known = [two for two in halves if two is not None]
    ranks = sum(one.left.shape[1] * other.left.shape[1] for one, other in known)
    if len(known) == len(forms) and ranks * (rows + columns) <= rows * columns:
        products = [_joined(form, *two) for (_, form), two in zip(forms, known, strict=True)]
        left = [term.placed(one.left) for (term, _), one in zip(forms, products, strict=True)]
        return Product(torch.cat(left, 1), torch.cat([one.right for one in products]))
    return Whole(total(term.placed(form.matrix) for term, form in forms))


def shifted(terms: Sequence[Term]) -> Float[Tensor, " O"] | None:
    """Returns the sum of changes of the bias, or None where none changes it.

    Raises:
        EditingError: They are of different lengths.
    """
    found = [(term, shift) for term in terms for shift in [term.shift()] if shift is not None]
    if not found:
        return None
    _require_one({term: f"{len(shift)} numbers of a bias" for term, shift in found})
    return total(shift for _, shift in found)


def total(parts: Iterable[Tensor]) -> Tensor:
    """Returns the sum of tensors of one shape, in the order in which they come."""
    return functools.reduce(torch.add, parts)


def _common_size(forms: Sequence[tuple[Term, Form]]) -> tuple[int, int]:
    """Returns rows and columns of the weight that all change.

    Raises:
        EditingError: They are of different sizes.
    """
    sizes: dict[Term, tuple[int, int]] = {}
    for term, form in forms:
        rows, columns = form.sizes
        sizes[term] = (rows if term.rows is None else term.outputs, columns)
    _require_one({term: f"{rows} x {columns} numbers" for term, (rows, columns) in sizes.items()})
    return next(iter(sizes.values()))


def _require_one(sizes: dict[Term, str]) -> None:
    if len(set(sizes.values())) == 1:
        return
    said = [f"{term.file} changes {size}" for term, size in sizes.items()]
    module = next(iter(sizes)).site.module
    raise EditingError(
        f"The changes of {module} do not fit each other: {listed(said, 3)}. They were made for "
        "different models."
    )


def _halves(term: Term, form: Form) -> tuple[Product, Product] | None:
    """Returns two products of whose pairs of ranks a change is made, or None where it is whole."""
    if isinstance(form, Product):
        one = form.left.new_ones(1, 1)
        return form, Product(one, one)
    if isinstance(form, Hadamard):
        return form.first, form.second
    if isinstance(form, Kronecker):
        right = _right_factors(term.site.adapter)
        return _side(form.left), _side(form.right) if right is None else right
    return None


def _joined(form: Form, one: Product, other: Product) -> Product:
    """Returns a change as one product over the pairs of ranks of its halves."""
    if isinstance(form, Product):
        return form
    if isinstance(form, Hadamard):
        return form.over_pairs()
    return Product(torch.kron(one.left, other.left), torch.kron(one.right, other.right))


def _side(side: Float[Tensor, "O C"]) -> Product:
    """Returns one side of a Kronecker product as a product with a unit matrix, the shorter way."""
    rows, columns = side.shape
    unit = torch.eye(min(rows, columns), dtype=side.dtype, device=side.device)
    return Product(unit, side) if rows < columns else Product(side, unit)


def _right_factors(adapter: object) -> Product | None:
    """Returns the factors of LoKr's second side, where it is made of some and that is shorter."""
    if not isinstance(adapter, Lokr) or adapter.w2_a is None or adapter.w2_b is None:
        return None
    up, down = widened(adapter.w2_a), widened(adapter.w2_b).flatten(1)
    if adapter.t2 is not None:
        up, down = up.T.contiguous(), through_core(widened(adapter.t2), down).contiguous()
    return Product(up, down) if up.shape[1] < min(up.shape[0], down.shape[1]) else None
