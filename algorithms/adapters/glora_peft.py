"""GLoRA as PEFT has it: a factor for each number of the weight, and a change added.

    dW = W ⊙ A + B        db = b ⊙ D + E + W C

A and B are each a product of low rank, a column or a number; D and E a vector or a number.

Source: GLoRA, Chavan et al. 2023, arXiv 2306.07967, section 3.2. PEFT 0.21.2 multiplies W and A element
by element, where LyCORIS multiplies matrices: they are two methods.
On disk: PEFT names, `glora_A.Xd` and `.Xu` or `.X`; parts that are switched off are stored as `.zeros`.
A file whose C is at work is refused: it makes a bias out of the weight.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import FormatError, ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import low_rank, matrix_sizes


def _role(part: str, tensor: str) -> Role:
    letter = part.upper()
    suffixes = (f".glora_{letter}.{tensor}", f".glora_{letter}.*.{tensor}")
    return Role(f"{part}_{tensor.lower()}", suffixes, required=False)


@dataclass(frozen=True, eq=False)
class GloraPeft(Adapter):
    """The parts by their letters; at least one is at work."""

    name = "GLoRA (PEFT)"
    roles = tuple(
        _role(part, tensor)
        for part, tensors in (
            ("a", ("Xd", "Xu", "X", "zeros")),
            ("b", ("Xd", "Xu", "X", "zeros")),
            ("c", ("Xd", "Xu", "X", "zeros")),
            ("d", ("X", "zeros")),
            ("e", ("X", "zeros")),
        )
        for tensor in tensors
    )
    needs_weight = True

    a_xd: Float[Tensor, "O R"] | None = None
    a_xu: Float[Tensor, "R I"] | None = None
    a_x: Float[Tensor, "..."] | None = None
    a_zeros: Float[Tensor, "..."] | None = None
    b_xd: Float[Tensor, "O S"] | None = None
    b_xu: Float[Tensor, "S I"] | None = None
    b_x: Float[Tensor, "..."] | None = None
    b_zeros: Float[Tensor, "..."] | None = None
    c_xd: Float[Tensor, "I Q"] | None = None
    c_xu: Float[Tensor, "Q one"] | None = None
    c_x: Float[Tensor, "..."] | None = None
    c_zeros: Float[Tensor, "..."] | None = None
    d_x: Float[Tensor, " D"] | None = None
    d_zeros: Float[Tensor, "..."] | None = None
    e_x: Float[Tensor, " E"] | None = None
    e_zeros: Float[Tensor, "..."] | None = None

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns W ⊙ A + B."""
        base = widened(weight)
        factor = self._matrix(self.a_xd, self.a_xu, self.a_x, base)
        return base * factor + self._matrix(self.b_xd, self.b_xu, self.b_x, base)

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns b ⊙ D + E; PEFT adds none where the layer has none."""
        if bias is None or (self.d_x is None and self.e_x is None):
            return None
        base = widened(bias)
        change = torch.zeros_like(base)
        if self.d_x is not None:
            change = change + base * widened(self.d_x).to(base.dtype)
        if self.e_x is not None:
            change = change + widened(self.e_x).to(base.dtype)
        return change

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[GloraPeft]":
        """Returns the adapter without the C that changes nothing.

        Raises:
            FormatError: C changes something.
        """
        del corrections
        at_work = self.c_x is not None and bool(self.c_x.any())
        if self.c_xd is not None and self.c_xu is not None:
            at_work = bool(self.c_xd.any()) and bool(self.c_xu.any())
        if at_work:
            raise FormatError(
                f"{origin.module} is PEFT's GLoRA with a part C, which makes a bias out of the "
                "weight and is not known here. Merge it in PEFT."
            )
        return Completion(replace(self, c_xd=None, c_xu=None, c_x=None))

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "GloraPeft":
        """Returns products without effect for A and B."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        a, b = (torch.randn(config.rank, inputs, generator=generator) for _ in range(2))
        zeros = torch.zeros(outputs, config.rank)
        return cls(a_xd=zeros, a_xu=a, b_xd=zeros.clone(), b_xu=b)

    def _matrix(
        self,
        down: Float[Tensor, "P R"] | None,
        up: Float[Tensor, "R I"] | None,
        x: Float[Tensor, "..."] | None,
        base: Float[Tensor, "O ..."],
    ) -> Float[Tensor, "..."]:
        """Returns a part, in a shape that broadcasts against the weight.

        Raises:
            ShapeError: It does not fit.
        """
        shape = tuple(base.shape)
        outputs, _ = matrix_sizes(shape, self.name)
        if down is not None and up is not None:
            return low_rank(widened(down), widened(up), shape).to(base.dtype)
        if x is None:
            return base.new_zeros(())
        if x.numel() not in (1, outputs):
            raise ShapeError(f"it has {x.numel()} factors, the weight is {list(shape)}")
        return widened(x).to(base.dtype).reshape(-1, *[1] * (len(shape) - 1))
