"""PVeRA: VeRA that draws its hidden numbers from a distribution; here their mean is taken.

    dW = diag(lambda_b) B[:O] diag(lambda_d[:R]) A[:R, :I]

The second half of `lambda_d` and of A makes the variance, which training alone draws from, unless
`sample_at_inference` is set: PEFT, too, takes the mean when it merges.

Source: PVeRA, 2025, arXiv 2512.07703, as in PEFT 0.21.2.
On disk: PEFT names, shared matrices as in VeRA.
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
from .vera import no_projections


@dataclass(frozen=True, eq=False)
class Pvera(Adapter):
    """The vectors of one layer, and the matrices of all."""

    name = "PVeRA"
    roles = (
        Role("lambda_b", (".pvera_lambda_b", ".pvera_lambda_b.*")),
        Role("lambda_d", (".pvera_lambda_d", ".pvera_lambda_d.*")),
        Role("a", (".pvera_A", ".pvera_A.*"), required=False, common=True),
        Role("b", (".pvera_B", ".pvera_B.*"), required=False, common=True),
    )
    additive = True

    lambda_b: Float[Tensor, " O"]
    lambda_d: Float[Tensor, " S"]
    """For the mean in its first half, for the variance in its second."""
    a: Float[Tensor, "S I"] | None = None
    b: Float[Tensor, "P R"] | None = None

    @property
    def rank(self) -> int:
        """R, half of the rows of `a`."""
        return self.lambda_d.shape[0] // 2

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        shape = tuple(weight.shape)
        return low_rank(*self._factors(shape), shape)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that its mean is on this layer."""
        return Lora(*self._factors(tuple(weight.shape)))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Pvera]":
        """Returns the adapter as it is.

        Raises:
            FormatError: The file lacks the shared matrices.
        """
        del corrections
        if self.a is None or self.b is None:
            raise FormatError(no_projections(self.name, origin.module))
        drawn = origin.flag("sample_at_inference")
        return Completion(self, assumed="the mean where PVeRA draws at random" if drawn else "")

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Pvera":
        """Returns random matrices of this layer's own size, and `lambda_b` at zero."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        a = torch.randn(2 * config.rank, inputs, generator=generator)
        b = torch.randn(outputs, config.rank, generator=generator)
        return cls(torch.zeros(outputs), torch.full((2 * config.rank,), 0.1), a, b)

    def _factors(self, shape: tuple[int, ...]) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        assert self.a is not None, "completed refuses it"
        assert self.b is not None, "completed refuses it"
        outputs, inputs = matrix_sizes(shape, self.name)
        if (
            self.b.shape[0] < outputs
            or self.a.shape[1] < inputs
            or len(self.lambda_b) != outputs
            or self.b.shape[1] != self.rank
        ):
            raise ShapeError(
                f"the matrices of all layers are {list(self.b.shape)} and {list(self.a.shape)}, "
                f"the vectors {len(self.lambda_b)} and {len(self.lambda_d)}, the weight {list(shape)}"
            )
        up = widened(self.b[:outputs]) * widened(self.lambda_b)[:, None]
        mean = widened(self.a[: self.rank, :inputs])
        return up, mean * widened(self.lambda_d[: self.rank])[:, None]
