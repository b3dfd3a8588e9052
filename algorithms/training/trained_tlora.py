"""T-LoRA while it trains: singular triples that learn, beside those that they started from.

    dW = (alpha / R) * (P diag(l * m) Q - P0 diag(l0 * m) Q0)

m leaves out ranks at noisy steps, for each sample, so that these cannot learn an image by heart. It
goes between the two factors of the LoRA of rank 2 R that makes the same change:

    dW = (alpha / R) * [P diag(l) - P0 diag(l0), P0 diag(l0)] @ [Q; Q - Q0]        for m = 1

Source: T-LoRA, Soboleva et al. 2025, arXiv 2507.05964, sections 3.1 to 3.3, and LyCORIS `tlora`. Both
terms of the LoRA are as small as what was learned, so no large numbers cancel in low precision: the
start is exactly nothing. LyCORIS saves P, l and Q and not the start, which loaders take to be the
largest triples of the weight at hand (`adapters/tlora.py`).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..adapters.base import InitialConfig
from ..adapters.lora import Lora
from ..adapters.tlora import Tlora, Triples, difference, singular_triples
from ..layers import Layer
from ..shapes import Float
from .training_form import TrainingForm


class RankMasks:
    """The ranks that each sample of a batch uses: layers that are alike share one mask."""

    def __init__(self, noise_levels: Float[Tensor, " B"]) -> None:
        """Takes, for each sample, 0 without noise to 1 for noise alone; on the CPU."""
        # Not on the device: Apple's have no float64.
        self._clean = (1 - noise_levels.double()).clamp(0, 1)
        self._made: dict[tuple[int, int, float, torch.device], Tensor] = {}

    def of(
        self, ranks: int, least: int, power: float, device: torch.device
    ) -> Float[Tensor, "B R"]:
        """Returns 1 for the ranks that each sample uses, 0 for the others.

        r(level) = floor((1 - level)^a (R - r_min)) + r_min

        Args:
            ranks: R.
            least: r_min; not more than R count.
            power: a.
            device: Of the mask.
        """
        key = ranks, least, power, device
        if key not in self._made:
            least = min(least, ranks)
            counts = (self._clean**power * (ranks - least)).floor() + least
            used = torch.arange(ranks) < counts[:, None]
            self._made[key] = used.float().to(device)
        return self._made[key]


@dataclass(frozen=True, eq=False)
class TrainedTlora(TrainingForm):
    """Triples and their start; as a LoRA it uses all ranks."""

    name = "T-LoRA in training"

    q: Float[Tensor, "R I ..."]
    p: Float[Tensor, "O R ..."]
    lengths: Float[Tensor, "1 R"]
    base_q: Float[Tensor, "R I ..."]
    base_p: Float[Tensor, "O R ..."]
    base_lengths: Float[Tensor, "1 R"]
    alpha: float

    @property
    def rank(self) -> int:
        """R, the number of triples."""
        return self.q.shape[0]

    def as_lora(self) -> Lora:
        """Returns the LoRA of rank 2 R that makes the same change, which loads everywhere."""
        p, base_p = self.p.flatten(1) * self.lengths, self.base_p.flatten(1) * self.base_lengths
        up, down = difference(p, self.q, base_p, self.base_q)
        return Lora(up.reshape(*up.shape, *[1] * (self.p.ndim - 2)), down, 2 * self.alpha)

    def as_tlora(self) -> Tlora:
        """Returns LyCORIS' form, which is right where the start is the largest triples."""
        return Tlora(self.q, self.p, self.lengths, self.alpha)

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "TrainedTlora":
        """Returns the largest singular triples of the base weight.

        Raises:
            UnsupportedLayerError: The layer cannot give its weight.
        """
        del generator
        return cls.of_matrix(layer.weight(torch.empty(0, dtype=torch.float64)), config)

    @classmethod
    def of_matrix(
        cls, matrix: Float[Tensor, "O I ..."], config: InitialConfig, triples: Triples = "principal"
    ) -> "TrainedTlora":
        """Returns triples of a matrix, or of a kernel of 1x1, in its dtype."""
        p, lengths, q = singular_triples(matrix.flatten(1), config.rank, triples)
        ones = [1] * (matrix.ndim - 2)
        q, p, lengths = q.reshape(*q.shape, *ones), p.reshape(*p.shape, *ones), lengths[None]
        alpha = config.alpha or float(config.rank)
        return cls(q, p, lengths, q.clone(), p.clone(), lengths.clone(), alpha)
