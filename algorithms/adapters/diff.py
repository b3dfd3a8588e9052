"""Full: the change of a weight and a bias, stored whole.

    dW = diff        db = diff_b

Source: LyCORIS `full` (algorithm "full", native fine-tuning); also what ComfyUI, ai-toolkit and
Wan tools save for weights of one axis and for biases. There is no alpha: strength 1 is the file.
ai-toolkit's `fullrank` saves the same under LoRA's name `lora_down`, without a `lora_up`.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, widened
from .forms import NOTHING, Whole


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
        return None if self.diff is None else _shaped(self.diff, weight)

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the stored change of the bias."""
        del bias
        return None if self.diff_b is None else widened(self.diff_b)

    def form(self) -> Whole:
        """Returns the stored change."""
        return NOTHING if self.diff is None else Whole(widened(self.diff))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Diff":
        """Returns zeros for the weight, and for the bias where the layer has one."""
        del config, generator
        bias = layer.bias(torch.empty(0))
        return cls(
            torch.zeros(layer.weight_shape), None if bias is None else torch.zeros(bias.shape)
        )


@dataclass(frozen=True, eq=False)
class FullRank(Adapter):
    """A whole change under the name of a LoRA's first factor: ai-toolkit's `fullrank`."""

    name = "full (ai-toolkit)"
    roles = (Role("diff", (".lora_down.weight", ".lora_A.weight")), ALPHA)
    additive = True

    diff: Float[Tensor, "O I ..."]
    alpha: float | None = None
    """Without meaning: the rank that would divide it is not in the file, and nearly always alpha
    itself."""

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the stored change."""
        try:
            return _shaped(self.diff, weight)
        except ShapeError as error:
            raise ShapeError(
                f"{error}. It has the name of a LoRA's lora_down without a lora_up, and can only "
                "be a change of full rank (ai-toolkit), or a file that lacks its lora_up"
            ) from error

    def form(self) -> Whole:
        """Returns the stored change."""
        return Whole(widened(self.diff))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[FullRank]":
        """Returns the adapter; where it has an alpha, the scale is assumed."""
        del origin, corrections
        return Completion(self, assumed="scale 1 of changes of full rank" if self.alpha else "")

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "FullRank":
        """Returns zeros."""
        del config, generator
        return cls(torch.zeros(layer.weight_shape))


def _shaped(diff: Tensor, weight: Tensor) -> Tensor:
    """Returns a stored change of any shape in the shape of a weight.

    Raises:
        ShapeError: It has another shape.
    """
    matrix = _without_kernel(weight.shape)
    if matrix is not None and matrix == _without_kernel(diff.shape):
        return widened(diff).reshape(weight.shape)
    if diff.shape != weight.shape:
        raise ShapeError(
            f"the stored change is {list(diff.shape)}, the weight {list(weight.shape)}"
        )
    return widened(diff)


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns [O, I] of a matrix or a 1x1 kernel, None for other shapes."""
    return shape[:2] if len(shape) > 1 and set(shape[2:]) <= {1} else None
