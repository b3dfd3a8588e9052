"""Full: the change of a weight and a bias, stored whole.

    dW = diff        db = diff_b

Source: LyCORIS `full` (algorithm "full", native fine-tuning); also what ComfyUI, ai-toolkit and
Wan tools save for weights of one axis and for biases. There is no alpha: strength 1 is the file.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, InitialConfig, Role, widened


@dataclass(frozen=True, eq=False)
class Diff(Adapter):
    """A whole change; at least one of both tensors is present."""

    name = "full"
    roles = (
        Role("diff", (".diff",), required=False),
        Role("diff_b", (".diff_b",), required=False),
    )

    additive = True

    diff: Float[Tensor, "O ..."] | None = None
    diff_b: Float[Tensor, " O"] | None = None

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."] | None:
        """Returns the stored change; a 1x1 kernel and a matrix stand for each other."""
        if self.diff is None:
            return None
        matrix = _without_kernel(weight.shape)
        if matrix is not None and matrix == _without_kernel(self.diff.shape):
            return widened(self.diff).reshape(weight.shape)
        if self.diff.shape != weight.shape:
            raise ShapeError(
                f"the stored change is {list(self.diff.shape)}, the weight {list(weight.shape)}"
            )
        return widened(self.diff)

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the stored change of the bias."""
        del bias
        return None if self.diff_b is None else widened(self.diff_b)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Diff":
        """Returns zeros for weight and bias."""
        del config, generator
        return cls(torch.zeros(layer.weight_shape), torch.zeros(layer.weight_shape[0]))


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns [O, I] of a matrix or a 1x1 kernel, None for other shapes."""
    return shape[:2] if len(shape) > 1 and set(shape[2:]) <= {1} else None
