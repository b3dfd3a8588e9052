"""RandLoRA: a sum of random products of low rank, each scaled along two sides; of full rank.

    dW = (alpha / R) * B flat(lambda ⊙ A ⊙ gamma), or its transpose on a layer with more inputs

A and B are random and shared by all layers; the scales stand on the smaller side of the weight.

Source: RandLoRA, Albert et al. 2025, arXiv 2502.00987, section 4. PEFT 0.21.2 flattens the two factors
in different orders (ranks first in A, bases first in B), so it trains other pairs than the paper
writes; files mean PEFT's pairs.
On disk: PEFT names. `randlora_A` and `randlora_B` stand in the file once, and again below each layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import FormatError
from ..layers import Layer
from ..shapes import Float
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, scale_of, widened
from .linalg import low_rank, matrix_sizes
from .lora import Lora
from .vera import no_projections

DEFAULT_ALPHA = 640.0
"""PEFT's own."""


@dataclass(frozen=True, eq=False)
class RandLora(Adapter):
    """The scales of one layer, and the bases of all."""

    name = "RandLoRA"
    roles = (
        Role("lambda_", (".randlora_lambda", ".randlora_lambda.*")),
        Role("gamma", (".randlora_gamma", ".randlora_gamma.*")),
        Role("a", (".randlora_A", ".randlora_A.*"), required=False, common=True),
        Role("b", (".randlora_B", ".randlora_B.*"), required=False, common=True),
        ALPHA,
    )
    additive = True

    lambda_: Float[Tensor, "R N"]
    gamma: Float[Tensor, "N S"]
    """For each basis, over the smaller side of the weight."""
    a: Float[Tensor, "R one P"] | None = None
    b: Float[Tensor, "Q M R"] | None = None
    """Over the longer side, for the largest number of bases in the file."""
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """R, the rank of each basis."""
        return self.lambda_.shape[0]

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled sum in the shape of `weight`; only its shape is read."""
        shape = tuple(weight.shape)
        return low_rank(*self._factors(shape), shape)

    def prepared(self, weight: Float[Tensor, "O ..."]) -> Lora:
        """Returns the LoRA, of full rank, that it is on this layer."""
        return Lora(*self._factors(tuple(weight.shape)))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[RandLora]":
        """Returns the adapter with alpha from the configuration.

        Raises:
            FormatError: The file lacks the shared bases.
        """
        del corrections
        if self.a is None or self.b is None:
            raise FormatError(no_projections(self.name, origin.module))
        alpha = self.alpha or origin.number("randlora_alpha")
        if alpha:
            return Completion(replace(self, alpha=alpha))
        return Completion(
            replace(self, alpha=DEFAULT_ALPHA), assumed="RandLoRA's alpha 640, as in PEFT"
        )

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "RandLora":
        """Returns random bases of this layer's own size, lambda at zero and gamma equal."""
        short, long = sorted(matrix_sizes(layer.weight_shape, cls.name))
        count = -(-short // config.rank)
        a = torch.randn(config.rank, 1, short, generator=generator)
        b = torch.randn(long, count, config.rank, generator=generator)
        gamma = torch.full((count, short), 1 / max(count, short))
        return cls(torch.zeros(config.rank, count), gamma, a, b, config.alpha)

    def _factors(self, shape: tuple[int, ...]) -> tuple[Float[Tensor, "O K"], Float[Tensor, "K I"]]:
        assert self.a is not None, "completed refuses it"
        assert self.b is not None, "completed refuses it"
        outputs, inputs = matrix_sizes(shape, self.name)
        short, long = sorted((outputs, inputs))
        scales = widened(self.lambda_)[:, :, None] * widened(self.gamma)
        scaled = widened(self.a[:, :, :short]) * scales[:, :, :short]
        over_short = scaled.flatten(0, 1) * scale_of(self.alpha, self.rank)
        over_long = widened(self.b[:long, : self.gamma.shape[0]]).flatten(1)
        if short == inputs:
            return over_long, over_short
        return over_short.T, over_long.T
