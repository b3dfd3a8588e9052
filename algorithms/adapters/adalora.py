"""AdaLoRA: a product of three factors like a singular value decomposition.

    dW = alpha / (R_0 + 1e-5) * B diag(E) A

R_0 is the rank that the training began with: it takes ranks away and leaves the scale as it was.

Source: AdaLoRA, Zhang et al. 2023, arXiv 2303.10512, section 3.1; the scale as PEFT's `SVDLinear` and
`resize_modules_by_rank_pattern` have it.
On disk: PEFT names without `.weight`; a convolution's A is `[R, I * kernel]`. Alpha stands in the
configuration only, and so does R_0 (`init_r`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..layers import Layer
from ..shapes import Float
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, widened
from .forms import Product
from .linalg import low_rank
from .lora import Lora

EPSILON = 1e-5
"""What PEFT adds to the rank."""


@dataclass(frozen=True, eq=False)
class AdaLora(Adapter):
    """Left factor, singular values and right factor."""

    name = "AdaLoRA"
    roles = (
        Role("b", (".lora_B", ".lora_B.*"), empty=True),
        Role("e", (".lora_E", ".lora_E.*"), empty=True),
        Role("a", (".lora_A", ".lora_A.*"), empty=True),
        ALPHA,
        Role("ranknum", (".ranknum", ".ranknum.*"), required=False, scalar=True),
    )
    additive = True

    b: Float[Tensor, "O R"]
    e: Float[Tensor, "R one"]
    a: Float[Tensor, "R I"]
    alpha: float | None = None
    ranknum: float | None = None
    """R_0; files of today leave it out."""

    @property
    def rank(self) -> int:
        """R, the number of singular values."""
        return self.a.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled product in the shape of `weight`; only its shape is read."""
        return low_rank(*self._factors, tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is."""
        del weight
        return Lora(*self._factors)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[AdaLora]":
        """Returns the adapter with alpha and the first rank from the configuration."""
        del corrections
        alpha = self.alpha or origin.alpha
        ranknum = self.ranknum or origin.number("init_r")
        if not alpha:
            return Completion(self, assumed="scale 1")
        if not ranknum:
            return Completion(
                replace(self, alpha=alpha), assumed="AdaLoRA that has kept all its first ranks"
            )
        return Completion(replace(self, alpha=alpha, ranknum=ranknum))

    def form(self) -> Product:
        """Returns the product."""
        return Product(*self._factors)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "AdaLora":
        """Returns small random factors, and singular values at zero."""
        outputs, *inputs = layer.weight_shape
        a = torch.randn(config.rank, torch.Size(inputs).numel(), generator=generator) * 0.02
        b = torch.randn(outputs, config.rank, generator=generator) * 0.02
        return cls(b, torch.zeros(config.rank, 1), a, config.alpha)

    @property
    def _factors(self) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        scale = self.alpha / ((self.ranknum or self.rank) + EPSILON) if self.alpha else 1.0
        return widened(self.b) * scale, widened(self.a) * widened(self.e)
