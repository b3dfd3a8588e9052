"""A form that learns and that no file has: it is the LoRA that makes the same change, in more tensors."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..adapters.base import Adapter
from ..adapters.forms import Form
from ..adapters.lora import Lora
from ..layers import Layer
from ..shapes import Float


@dataclass(frozen=True, eq=False)
class TrainingForm(Adapter):
    """Tensors that make up a LoRA."""

    roles = ()

    @abstractmethod
    def as_lora(self) -> Lora:
        """Returns the LoRA that makes the same change."""

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the change by the LoRA; only the shape of `weight` is read."""
        return self.as_lora().delta_weight(weight)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change by the LoRA."""
        return self.as_lora().delta_output(x, y, layer)

    def form(self) -> Form:
        """Returns the product of the LoRA."""
        return self.as_lora().form()
