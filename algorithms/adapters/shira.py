"""SHiRA: changes of a few numbers of the weight, with their places.

    dW[indices[0, k], indices[1, k]] = values[k]

Source: SHiRA, Bhardwaj et al. 2024, arXiv 2406.13175, section 3.
On disk: PEFT's `shira_weight` and `shira_indices` (row, column).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float, Integer
from .base import Adapter, InitialConfig, Role, widened
from .forms import Whole
from .linalg import matrix_sizes, require_places


@dataclass(frozen=True, eq=False)
class Shira(Adapter):
    """Numbers and their places."""

    name = "SHiRA"
    roles = (
        Role("values", (".shira_weight", ".shira_weight.*")),
        Role("indices", (".shira_indices", ".shira_indices.*"), whole=True),
    )
    additive = True

    values: Float[Tensor, " K"]
    indices: Integer[Tensor, "two K"]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the numbers at their places among zeros; only the shape of `weight` is read."""
        sizes = matrix_sizes(tuple(weight.shape), self.name)
        if self.indices.shape[0] != 2:
            raise ShapeError(
                f"its places are {list(self.indices.shape)} and not a row and a column"
            )
        values, places = widened(self.values), self.indices.long()
        change = values.new_zeros(sizes)
        change = change.index_put((places[0], places[1]), values, accumulate=True)
        return change.reshape(weight.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that every place lies in a weight of `shape`."""
        for places, size in zip(self.indices, matrix_sizes(shape, self.name), strict=True):
            require_places(places, size)

    def form(self) -> Whole:
        """Returns the change up to its last row and column."""
        shape = [int(places.max()) + 1 if places.numel() else 0 for places in self.indices]
        return Whole(self.delta_weight(torch.empty(shape, device="meta")))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Shira":
        """Returns zeros at random places, as many as a LoRA has numbers."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        count = min(config.rank * (outputs + inputs), outputs * inputs)
        places = torch.randperm(outputs * inputs, generator=generator)[:count]
        return cls(torch.zeros(count), torch.stack([places // inputs, places % inputs]).int())
