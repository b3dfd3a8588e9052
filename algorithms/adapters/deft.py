"""DEFT: takes a subspace out of the outputs of a weight and puts another content into it.

    dW = Q (scale R - S^T W)

with Q = P and S = relu(P), or both the orthonormal basis of P (`decomposition_method` "qr"). Without R
it is PaRa, which only takes out.

Source: DEFT, as in PEFT 0.21.2; PaRa, Chen et al. 2025 (ICLR).
On disk: PEFT's `deft_P` and `deft_R`; the rest stands in the configuration only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import low_rank, matrix_sizes
from .lora import Lora


@dataclass(frozen=True, eq=False)
class Deft(Adapter):
    """Directions of the outputs, and the new content along them."""

    name = "DEFT"
    roles = (
        Role("p", (".deft_P", ".deft_P.*")),
        Role("r", (".deft_R", ".deft_R.*"), required=False),
        ALPHA,
    )
    settings = ("orthonormal",)
    needs_weight = True
    prepares_from_weight = True

    p: Float[Tensor, "O R"]
    r: Float[Tensor, "R I"] | None = None
    alpha: float | None = None
    orthonormal: bool = False

    @property
    def rank(self) -> int:
        """R, the number of directions."""
        return self.p.shape[1]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the new content less the old."""
        return low_rank(*self._factors(weight), tuple(weight.shape))

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA that it is on this base."""
        return Lora(*self._factors(weight))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Deft]":
        """Returns the adapter with alpha and decomposition of the configuration."""
        del corrections
        method = origin.options.get("decomposition_method")
        if method is None:
            return Completion(self, assumed="DEFT with relu and scale 1, PEFT's own defaults")
        return Completion(
            replace(self, alpha=self.alpha or origin.alpha, orthonormal=method == "qr")
        )

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Deft":
        """Returns positive directions with what the weight has along them.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        weight = layer.weight(torch.empty(0, dtype=torch.float64)).reshape(outputs, inputs)
        axes = torch.randperm(outputs, generator=generator)[: config.rank]
        p = torch.eye(outputs, dtype=weight.dtype)[:, axes]
        return cls(p, p.T @ weight)

    def _factors(
        self, weight: Float[Tensor, "O ..."]
    ) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        outputs, _ = matrix_sizes(tuple(weight.shape), self.name)
        if self.p.shape[0] != outputs:
            raise ShapeError(f"deft_P is {list(self.p.shape)}, the weight {list(weight.shape)}")
        rows = widened(weight).flatten(1)
        p = widened(self.p).to(rows.dtype)
        out, along = (p, p.relu())
        if self.orthonormal:
            out = along = torch.linalg.qr(p)[0]
        inside = -(along.T @ rows)
        if self.r is not None:
            scale = self.alpha / self.rank if self.alpha else 1.0
            inside = inside + widened(self.r).to(rows.dtype) * scale
        return out, inside
