"""How large the change of a layer is."""

import math
from collections.abc import Iterable

from torch import Tensor

from ..adapters import Adapter
from ..adapters.base import widened
from ..adapters.forms import NOTHING, Form, Whole
from ..shapes import Float


def change_norm(
    adapter: Adapter,
    weight: Float[Tensor, "O ..."] | None = None,
    bias: Float[Tensor, " O"] | None = None,
) -> float | None:
    """Returns the Frobenius norm of the change of weight and bias together, at full strength.

    Exact with a weight. Without one it is exact for methods whose change does not depend on the
    weight, and for others an estimate as if the rows of the weight were of length 1: comparable
    between layers, but not with the norms of other methods. None where nothing can be said.

    Args:
        adapter: The adapter, completed.
        weight: The base weight. On the meta device its shape alone counts, which is all that some
            methods lack (VeRA, MiSS, FourierFT).
        bias: The base bias; None counts as a layer without one.

    Raises:
        FormatError: What the adapter means cannot be decided.
        ShapeError: It does not fit the weight, or itself.
    """
    found = form_on(adapter, weight)
    norm = adapter.relative_norm() if found is None else found.norm()
    shift = adapter.delta_bias(None if bias is None else widened(bias))
    if norm is None or shift is None:
        return norm
    return math.hypot(norm, Whole(shift).norm())


def form_on(adapter: Adapter, weight: Float[Tensor, "O ..."] | None) -> Form | None:
    """Returns the change of a weight in its smallest form, or None where it takes numbers to tell.

    Args:
        adapter: The adapter.
        weight: The weight, also without numbers, or None.

    Raises:
        ShapeError: The adapter does not fit the weight.
    """
    found = adapter.form()
    if found is not None or weight is None:
        return found
    if weight.device.type == "meta":
        if adapter.needs_weight:
            return None
    else:
        adapter, weight = adapter.to(weight.device), widened(weight)
    ready = adapter.prepared(weight)
    found = ready.form()
    if found is not None:
        return found
    change = ready.delta_weight(weight)
    return NOTHING if change is None else Whole(change)


def joined(norms: Iterable[float | None]) -> float | None:
    """Returns the norm of several changes of other layers together; None where one is not known."""
    total = 0.0
    for norm in norms:
        if norm is None:
            return None
        total = math.hypot(total, norm)
    return total
