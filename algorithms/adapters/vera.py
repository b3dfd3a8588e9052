"""VeRA: two random matrices that all layers share, scaled by two vectors of each layer.

    dW = diag(lambda_b) B[:O] diag(lambda_d) A[:, :I]

Source: VeRA, Kopiczko et al. 2024, arXiv 2310.11454, section 3.1.
On disk: PEFT names. `vera_A` and `vera_B` stand once in a file, as large as its largest layers need.
A file saved without them (`save_projection=False`) is refused: they follow from a seed and from the
sizes of all layers that its trainer adapted, which the file does not hold.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import FormatError, ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import low_rank, matrix_sizes
from .lora import Lora


@dataclass(frozen=True, eq=False)
class Vera(Adapter):
    """The vectors of one layer, and the matrices of all."""

    name = "VeRA"
    roles = (
        Role("lambda_b", (".vera_lambda_b", ".vera_lambda_b.*")),
        Role("lambda_d", (".vera_lambda_d", ".vera_lambda_d.*")),
        Role("a", (".vera_A", ".vera_A.*"), required=False, common=True),
        Role("b", (".vera_B", ".vera_B.*"), required=False, common=True),
    )
    additive = True

    lambda_b: Float[Tensor, " O"]
    lambda_d: Float[Tensor, " R"]
    a: Float[Tensor, "R I"] | None = None
    """Rows for the widest input of the file; a layer takes the first columns."""
    b: Float[Tensor, "P R"] | None = None
    """For the widest output of the file; a layer takes the first rows."""

    @property
    def rank(self) -> int:
        """R, the rows of `a`."""
        return self.lambda_d.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        shape = tuple(weight.shape)
        return low_rank(*self._factors(shape), shape)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is on this layer."""
        return Lora(*self._factors(tuple(weight.shape)))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Vera]":
        """Returns the adapter as it is.

        Raises:
            FormatError: The file lacks the shared matrices.
        """
        del corrections
        if self.a is None or self.b is None:
            raise FormatError(no_projections(self.name, origin.module))
        return Completion(self)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Vera":
        """Returns random matrices of this layer's own size, and `lambda_b` at zero."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        a = torch.randn(config.rank, inputs, generator=generator)
        b = torch.randn(outputs, config.rank, generator=generator)
        return cls(torch.zeros(outputs), torch.full((config.rank,), 0.1), a, b)

    def _factors(self, shape: tuple[int, ...]) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        assert self.a is not None, "completed refuses it"
        assert self.b is not None, "completed refuses it"
        outputs, inputs = matrix_sizes(shape, self.name)
        if self.b.shape[0] < outputs or self.a.shape[1] < inputs or len(self.lambda_b) != outputs:
            raise ShapeError(
                f"the matrices of all layers are {list(self.b.shape)} and {list(self.a.shape)}, "
                f"the vectors {len(self.lambda_b)} and {len(self.lambda_d)}, the weight {list(shape)}"
            )
        up = widened(self.b[:outputs]) * widened(self.lambda_b)[:, None]
        return up, widened(self.a[:, :inputs]) * widened(self.lambda_d)[:, None]


def no_projections(name: str, module: str) -> str:
    """Returns the message for a file without the random matrices that its layers share."""
    return (
        f"{module} is {name} without the random matrices that all its layers share: they depend on "
        "the sizes of everything its trainer adapted, so they cannot be made again from the file. "
        "Save it with `save_projection=True`."
    )
