"""GraLoRA: a grid of N x N blocks of the weight, each with a small LoRA of its own.

    dW[block j, block n] = alpha / (R + H) * (A_n[:, part j of the ranks] B_j[part n])^T  (+ hybrid)

The hybrid part is an ordinary LoRA of rank H on the whole weight.

Source: GraLoRA, Jung et al. 2025, arXiv 2505.20355, section 3.
On disk: PEFT names, `gralora_A` `[N, I / N, R]`, `gralora_B` `[N, R, O / N]`; alpha stands in the
configuration only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import ALPHA, Adapter, Completion, InitialConfig, Origin, Role, scale_of, widened
from .forms import Whole
from .linalg import matrix_sizes

DEFAULT_ALPHA = 64.0
"""PEFT's own."""


@dataclass(frozen=True, eq=False)
class GraLora(Adapter):
    """The factors of all blocks, and those of the whole."""

    name = "GraLoRA"
    roles = (
        Role("a", (".gralora_A", ".gralora_A.*")),
        Role("b", (".gralora_B", ".gralora_B.*")),
        Role(
            "down",
            (".gralora_A_general.weight", ".gralora_A_general.*.weight"),
            required=False,
        ),
        Role(
            "up",
            (".gralora_B_general.weight", ".gralora_B_general.*.weight"),
            required=False,
        ),
        ALPHA,
    )
    additive = True

    a: Float[Tensor, "N C R"]
    b: Float[Tensor, "N R S"]
    down: Float[Tensor, "H I"] | None = None
    up: Float[Tensor, "O H"] | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """R, the ranks of a row of blocks together."""
        return self.a.shape[2]

    @property
    def scale(self) -> float:
        """The factor on everything: alpha / (R + H)."""
        return scale_of(self.alpha, self.rank + (0 if self.down is None else self.down.shape[0]))

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the scaled blocks in the shape of `weight`; only its shape is read."""
        outputs, inputs = self._require(tuple(weight.shape))
        a, b = self._by_block(widened(self.a), widened(self.b))
        change = torch.einsum("nijs, jnso -> joni", a, b).reshape(outputs, inputs)
        if self.down is not None and self.up is not None:
            change = change + widened(self.up) @ widened(self.down)
        return (change * self.scale).reshape(weight.shape)

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the blocks on the pieces of the input."""
        if layer.kind != "linear":
            return super().delta_output(x, y, layer)
        self._require(layer.weight_shape)
        a, b = self._by_block(self.a, self.b)
        pieces = x.reshape(*x.shape[:-1], self.a.shape[0], -1)
        hidden = torch.einsum("...ni, nijs -> ...jns", pieces, a)
        change = torch.einsum("...jns, jnso -> ...jo", hidden, b).flatten(-2)
        if self.down is not None and self.up is not None:
            change = change + x @ self.down.T @ self.up.T
        return change * self.scale

    def form(self) -> Whole:
        """Returns the scaled blocks."""
        count, inputs, _ = self.a.shape
        shape = (count * self.b.shape[2], count * inputs)
        return Whole(self.delta_weight(torch.empty(shape, device="meta")))

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[GraLora]":
        """Returns the adapter with alpha from the configuration."""
        del corrections
        alpha = self.alpha or origin.alpha
        if alpha:
            return Completion(replace(self, alpha=alpha))
        return Completion(
            replace(self, alpha=DEFAULT_ALPHA), assumed="GraLoRA's alpha 64, as in PEFT"
        )

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "GraLora":
        """Returns random `a`, and `b` at zero, in two rows of blocks."""
        outputs, inputs = matrix_sizes(layer.weight_shape, cls.name)
        a = torch.randn(2, inputs // 2, config.rank, generator=generator)
        return cls(a, torch.zeros(2, config.rank, outputs // 2), alpha=config.alpha)

    def _by_block(
        self, a: Float[Tensor, "N C R"], b: Float[Tensor, "N R S"]
    ) -> tuple[Float[Tensor, "N C N K"], Float[Tensor, "N N K S"]]:
        """Returns the ranks cut into those that go to each block of outputs."""
        count = a.shape[0]
        return a.unflatten(2, (count, -1)), b.unflatten(1, (count, -1))

    def _require(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns outputs and inputs.

        Raises:
            ShapeError: The blocks do not fill the weight, or the ranks the blocks.
        """
        sizes = matrix_sizes(shape, self.name)
        count, inputs, rank = self.a.shape
        if sizes != (count * self.b.shape[2], count * inputs) or rank % count:
            raise ShapeError(
                f"it is {count} x {count} blocks of {self.b.shape[2]} x {inputs}, rank {rank}; "
                f"the weight is {list(shape)}"
            )
        return sizes
