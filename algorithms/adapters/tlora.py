"""T-LoRA: the largest singular triples of a weight, trained away from where they were.

    dW = (alpha / R) * (P diag(l) Q - W_R),   W_R the best approximation of W with rank R

Source: T-LoRA, Soboleva et al. 2025, arXiv 2507.05964, sections 3.2 and 3.3, and LyCORIS `tlora`.
On disk: LyCORIS, `p_layer.weight`, `q_layer.weight`, `lambda_layer`, `alpha`. What training started
from, the R largest singular triples of the weight, is not saved: it is taken from the weight at
hand, so a file is right only on the model that it was trained on (and if training started from the
largest triples, LyCORIS' default). Layers with kernels have no T-LoRA: LyCORIS cannot train one.
The mask that uses fewer ranks at noisier steps is left open, as in LyCORIS without a mask.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import (
    ALPHA,
    Adapter,
    Completion,
    InitialConfig,
    Origin,
    Pieces,
    Role,
    scale_of,
    widened,
)
from .forms import Product
from .lora import Lora

Triples = Literal["principal", "middle", "last"]
"""Which singular triples a training starts from: LyCORIS' `sig_type`."""


@dataclass(frozen=True, eq=False)
class Tlora(Adapter):
    """A low-rank product in place of the weight's own."""

    name = "T-LoRA"
    roles = (
        Role("q", (".q_layer.weight",)),
        Role("p", (".p_layer.weight",)),
        Role("lengths", (".lambda_layer",)),
        ALPHA,
    )
    assumes = "that the model is the very one that the file was trained on"
    needs_weight = True
    prepares_from_weight = True

    q: Float[Tensor, "R I ..."]
    p: Float[Tensor, "O R ..."]
    lengths: Float[Tensor, "1 R"]
    """The lambda of the paper: singular values at the start."""
    alpha: float | None = None
    up: Float[Tensor, "O S"] | None = None
    """With `down`, the whole change for one base, of rank S = 2 R; made by `prepared`."""
    down: Float[Tensor, "S I"] | None = None

    @property
    def rank(self) -> int:
        """R, the number of triples."""
        return self.q.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled difference of both products in the shape of `weight`."""
        up, down = self._chain(weight)
        return (up @ down).reshape(weight.shape)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Tlora":
        """Returns the adapter with its change of this base as a low-rank product."""
        up, down = self._chain(weight)
        return replace(self, up=up, down=down)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns `up(down(x))`, once prepared."""
        if self.up is None or self.down is None:
            return super().delta_output(x, y, layer)
        return Lora(self.up, self.down).delta_output(x, y, layer)

    def pieces(self, layer: Layer) -> Pieces | None:
        """Returns the change of this base as a low-rank product, once prepared."""
        if self.up is None or self.down is None or not layer.chains:
            return None
        return Pieces(self.up, self.down)

    def form(self) -> Product | None:
        """Returns the change of this base as a low-rank product, once prepared."""
        return None if self.up is None or self.down is None else Product(self.up, self.down)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Tlora]":
        """Returns the adapter with alpha from the header where the tensors have none."""
        del corrections
        alpha = self.alpha or origin.numerator(self.rank)
        assumed = self.assumes if alpha else f"scale 1, and {self.assumes}"
        return Completion(replace(self, alpha=alpha), assumed=assumed)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Tlora":
        """Returns the largest singular triples of the base weight.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        del generator
        weight = layer.weight(torch.empty(0, dtype=torch.float64))
        p, lengths, q = singular_triples(weight.flatten(1), config.rank)
        ones = [1] * (weight.ndim - 2)
        return cls(
            q.reshape(*q.shape, *ones),
            p.reshape(*p.shape, *ones),
            lengths.unsqueeze(0),
            config.alpha,
        )

    def _chain(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the change as a product of two thin matrices."""
        q, p = widened(self.q).flatten(1), widened(self.p).flatten(1)
        shape = tuple(weight.shape)
        matrix = len(shape) > 1 and set(shape[2:]) <= {1}
        if not matrix or (p.shape[0], q.shape[1]) != shape[:2]:
            raise ShapeError(
                f"T-LoRA of {p.shape[0]} x {q.shape[1]} numbers on a weight {list(shape)}; it is "
                "for matrices and kernels of 1x1"
            )
        base_p, base_lengths, base_q = singular_triples(weight.flatten(1), self.rank)
        # A triple is the same with both vectors turned round: as the file has them.
        signs = torch.where((base_q * q).sum(1) < 0, -1.0, 1.0)
        base_q = base_q * signs.unsqueeze(1)
        base_p = base_p * base_lengths * signs
        up, down = difference(p * widened(self.lengths), q, base_p, base_q)
        return up * scale_of(self.alpha, self.rank), down


def difference(
    p: Float[Tensor, "O R"],
    q: Float[Tensor, "R I ..."],
    base_p: Float[Tensor, "O R"],
    base_q: Float[Tensor, "R I ..."],
) -> tuple[Float[Tensor, "O S"], Float[Tensor, "S I ..."]]:
    """Returns P Q - P0 Q0 as the factors of one product, of rank S = 2 R; P and P0 with the lengths.

    It is (P - P0) Q + P0 (Q - Q0): so both terms are as small as what was trained, and no large
    numbers cancel in low precision.
    """
    return torch.cat([p - base_p, base_p], 1), torch.cat([q, q - base_q])


def singular_triples(
    weight: Float[Tensor, "O I"], rank: int, which: Triples = "principal"
) -> tuple[Float[Tensor, "O R"], Float[Tensor, " R"], Float[Tensor, "R I"]]:
    """Returns singular triples, the largest first; zeros where there are fewer than `rank`.

    The eigenvectors of the smaller Gram matrix give them in a fraction of the time of a full
    decomposition. Its condition is squared, so it is computed in float64.
    """
    # Apple's devices have neither float64 nor this decomposition.
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device
    wide = weight.to(device, torch.float64)
    tall = wide.shape[0] >= wide.shape[1]
    wide = wide if tall else wide.T
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    spare = max(vectors.shape[1] - rank, 0)
    first = {"principal": 0, "middle": spare // 2, "last": spare}[which]
    right = vectors.flip(1)[:, first : first + rank]
    right = F.pad(right, (0, rank - right.shape[1]))
    left = wide @ right
    lengths = torch.linalg.vector_norm(left, dim=0)
    left = left / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    left, right = (left, right) if tall else (right, left)
    like = widened(weight)
    return left.to(like), lengths.to(like), right.T.to(like)
