"""OSF: other values for the smallest singular directions of a weight.

    dW = U_low diag(S_low) V_low - (W without its largest singular directions)

Source: OSF (orthogonal subspace fine-tuning), Nayak et al. 2025, arXiv 2504.07097, as in PEFT 0.21.2.
On disk: PEFT's `osf_svd_params.U_low`, `.S_low`, `.V_low`. What is taken out follows from the base
weight, which must be that of the training.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import low_rank, low_rank_output, matrix_sizes


@dataclass(frozen=True, eq=False)
class Osf(Adapter):
    """The directions and values that are put in."""

    name = "OSF"
    roles = (
        Role("u", (".osf_svd_params.U_low", ".osf_svd_params.*.U_low")),
        Role("s", (".osf_svd_params.S_low", ".osf_svd_params.*.S_low")),
        Role("v", (".osf_svd_params.V_low", ".osf_svd_params.*.V_low")),
    )
    needs_weight = True
    prepares_from_weight = True

    u: Float[Tensor, "O R"]
    s: Float[Tensor, " R"]
    v: Float[Tensor, "R I"]
    old_up: Float[Tensor, "O R"] | None = None
    """With `old_down`, what is taken out of one base; made by `prepared`."""
    old_down: Float[Tensor, "R I"] | None = None

    @property
    def rank(self) -> int:
        """R, the number of directions."""
        return self.s.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the new directions less those of the weight."""
        shape = tuple(weight.shape)
        base = widened(weight)
        new = low_rank(self._up.to(base.dtype), widened(self.v).to(base.dtype), shape)
        return new - low_rank(*self._old(base), shape)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Osf]":
        """Returns the adapter, with a word on the base that it needs."""
        del origin, corrections
        assumed = "that the model is the very one that the file was trained on"
        return Completion(self, assumed=assumed)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Osf":
        """Returns the adapter with what it takes out of this base."""
        old_up, old_down = self._old(widened(weight))
        return replace(self, old_up=old_up, old_down=old_down)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the output of the new directions less that of the old ones."""
        if self.old_up is None or self.old_down is None:
            return super().delta_output(x, y, layer)
        new = low_rank_output(x, layer, self._up.to(x.dtype), self.v)
        return new - low_rank_output(x, layer, self.old_up, self.old_down)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Osf":
        """Returns the smallest directions that the weight has.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        del generator
        weight = layer.weight(torch.empty(0, dtype=torch.float64)).flatten(1)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        rank = min(config.rank, s.shape[0])
        return cls(u[:, -rank:].clone(), s[-rank:].clone(), v[-rank:].clone())

    @property
    def _up(self) -> Float[Tensor, "O R"]:
        return widened(self.u) * widened(self.s)

    def _old(
        self, weight: Float[Tensor, "O ..."]
    ) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        """Returns the weight's own smallest directions.

        Raises:
            ShapeError: The weight has fewer.
        """
        matrix_sizes(tuple(weight.shape), self.name)
        if min(weight.flatten(1).shape) < self.rank:
            raise ShapeError(f"it has {self.rank} directions, the weight is {list(weight.shape)}")
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        return u[:, -self.rank :] * s[-self.rank :], v[-self.rank :]
