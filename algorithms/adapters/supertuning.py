"""SuperTuning: changes of the largest or smallest numbers of a weight, and perhaps a LoRA besides.

    dW = values at their places + (alpha / R) * B A

Source: SuperTuning (Super and Supra) in PEFT 0.21.2, `peft.tuners.supertuning`.
On disk: PEFT's `supertuning_values`, `supertuning_indices` (counted row by row),
`supertuning_lora_A.weight` and `supertuning_lora_B.weight`; alpha stands in the configuration only.
A file without its places is refused: they follow from the base weight of the training.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import FormatError
from ..layers import Layer
from ..shapes import Float, Integer
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, scale_of, widened
from .forms import Whole
from .linalg import low_rank, matrix_sizes, require_places


@dataclass(frozen=True, eq=False)
class SuperTuning(Adapter):
    """Numbers with their places, and two factors."""

    name = "SuperTuning"
    roles = (
        Role("values", (".supertuning_values", ".supertuning_values.*")),
        Role(
            "indices",
            (".supertuning_indices", ".supertuning_indices.*"),
            required=False,
            whole=True,
        ),
        Role(
            "up",
            (".supertuning_lora_B.weight", ".supertuning_lora_B.*.weight"),
            required=False,
        ),
        Role(
            "down",
            (".supertuning_lora_A.weight", ".supertuning_lora_A.*.weight"),
            required=False,
        ),
        ALPHA,
    )
    additive = True

    values: Float[Tensor, " K"]
    indices: Integer[Tensor, " K"] | None = None
    up: Float[Tensor, "O R"] | None = None
    down: Float[Tensor, "R I"] | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int | None:
        """R of the LoRA, if there is one."""
        return None if self.down is None else self.down.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the numbers at their places, and the product; only a shape is read."""
        assert self.indices is not None, "completed refuses it"
        shape = tuple(weight.shape)
        outputs, inputs = matrix_sizes(shape, self.name)
        values = widened(self.values)
        change = values.new_zeros(outputs * inputs)
        change = change.index_put((self.indices.long(),), values, accumulate=True).reshape(shape)
        if self.up is None or self.down is None:
            return change
        scale = scale_of(self.alpha, self.down.shape[0])
        return change + low_rank(widened(self.up), widened(self.down), shape) * scale

    def form(self) -> Whole | None:
        """Returns the change where the factors tell the shape of the weight."""
        if self.up is None or self.down is None:
            return None
        shape = (self.up.shape[0], self.down.shape[1])
        return Whole(self.delta_weight(torch.empty(shape, device="meta")))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[SuperTuning]":
        """Returns the adapter with alpha from the configuration.

        Raises:
            FormatError: The file lacks the places.
        """
        del corrections
        if self.indices is None:
            raise FormatError(
                f"{origin.module} is SuperTuning without the places of its numbers, which follow "
                "from the base weight of its training. Save it with `save_precomputed_indices=True`."
            )
        alpha = self.alpha or origin.alpha
        if self.down is not None and not alpha:
            return Completion(self, assumed="scale 1")
        return Completion(replace(self, alpha=alpha))

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that every place lies in a weight of `shape`."""
        assert self.indices is not None, "completed refuses it"
        require_places(self.indices, math.prod(shape))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "SuperTuning":
        """Returns zeros at random places, and a LoRA without effect."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        places = torch.randperm(outputs * inputs, generator=generator)[: outputs + inputs]
        down = torch.randn(config.rank, inputs, generator=generator)
        up = torch.zeros(outputs, config.rank)
        return cls(torch.zeros(places.shape[0]), places.int(), up, down, config.alpha)
