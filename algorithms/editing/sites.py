"""An adapter of a file together with the layer that it is on, as far as a model tells it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.base import widened
from ..adapters.forms import Form, Whole
from ..analysis.inspection import Read
from ..analysis.norms import form_on
from ..errors import EditingError
from ..keymap import Target
from ..shapes import Float
from .weight_shapes import told_shape


@dataclass(frozen=True, eq=False)
class Sited:
    """One adapter of a file and its layer; of a file without a model the name of the layer alone."""

    module: str
    """Module name as in the file."""
    adapter: Adapter
    strength: float = 1.0
    """By which its change is multiplied: the user's number and that of its block."""
    target: Target | None = None
    """What its name means in the model that is connected; None without one."""
    shape: tuple[int, ...] | None = None
    """Of the weight of the target."""
    read: Read | None = None

    def form(self) -> Form:
        """Returns its change of the weight at strength 1 in the smallest form that is exact.

        Raises:
            EditingError: It depends on the weight, and there is no model that tells it.
            ShapeError: It does not fit the weight.
        """
        found = self.adapter.form()
        if self.shape is not None:
            blank = torch.empty(self.adapter.grown(self.shape), device="meta")
            if found is None:
                found = form_on(self.adapter, blank)
            elif 0 not in found.sizes and found.sizes != Whole(blank).sizes:
                # Its tensors alone tell a smaller change than the weight is large.
                change = self.adapter.delta_weight(blank)
                assert change is not None, "it has a form"
                found = Whole(change)
        if found is None:
            found = form_on(self.adapter, self.weight())
        assert found is not None, "with the weight every change can be told"
        return found

    def shift(self) -> Float[Tensor, " O"] | None:
        """Returns its change of the bias at strength 1, in float32 or better, or None without one."""
        bias = self.read()[1] if self.read is not None else None
        return self.adapter.delta_bias(None if bias is None else widened(bias))

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Shape of the weight with the change, as the model or else the adapter tells it."""
        return told_shape(self.adapter) if self.shape is None else self.adapter.grown(self.shape)

    def weight(self) -> Float[Tensor, "O ..."]:
        """Returns the base weight in float32.

        Raises:
            EditingError: There is no model, or it does not tell the numbers of this weight, or a patch
                makes it larger.
        """
        weight = self.read()[0] if self.read is not None else None
        if weight is None:
            why = (
                "the numbers of that weight cannot be had, as the model is quantised: load it in an "
                "unquantised form"
                if self.read is not None
                else "connect the model (and the CLIP) that it was made for"
            )
            raise EditingError(
                f"What {self.adapter.name} changes in {self.module} depends on the weight there: {why}."
            )
        if self.shape is not None and tuple(weight.shape) != self.shape:
            raise EditingError(
                f"What {self.adapter.name} changes in {self.module} depends on the weight there, and a "
                f"patch makes that larger: {list(weight.shape)} instead of {list(self.shape)}. Connect "
                "the model as it is before the node with that patch."
            )
        return weight
