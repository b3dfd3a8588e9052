"""RoAd: turns and stretches pairs of outputs, bias included.

    y'_i = first_i y_i - second_i y_j        y'_j = first_j y_j + second_j y_i

for each pair (i, j) at half a group's distance; `first` is alpha cos theta, `second` alpha sin theta.

Source: RoAd, Liao and Monz 2024, arXiv 2409.00119, section 3.2, equation 4.
On disk: PEFT's `road_theta` and `road_alpha`: of O / 2 numbers (variant 1: one pair of angle and
length for both outputs), O (variant 2: for each output) or 2 O (variant 4: apart for both columns),
which their number tells. The size of a group stands in the configuration only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import ShapeError
from ..layers import Layer
from ..shapes import Float
from .base import Adapter, Completion, InitialConfig, Origin, Role, widened
from .linalg import matrix_sizes

DEFAULT_GROUP = 64
"""PEFT's own."""


@dataclass(frozen=True, eq=False)
class Road(Adapter):
    """Angles and lengths."""

    name = "RoAd"
    roles = (
        Role("theta", (".road_theta", ".road_theta.*")),
        Role("length", (".road_alpha", ".road_alpha.*")),
    )
    settings = ("group",)
    needs_weight = True

    theta: Float[Tensor, " S"]
    length: Float[Tensor, " S"]
    """What PEFT calls alpha."""
    group: int = DEFAULT_GROUP
    """Outputs in a group, whose halves are paired."""
    turn: Float[Tensor, "two O"] | None = None
    """What stands before an output, less 1, and before its partner; made by `prepared`."""

    def prepared(self, weight: Float[Tensor, "O ..."]) -> "Road":
        """Returns the adapter with its turn, less 1: a low dtype rounds lengths near 1 to it."""
        first, second = self._columns(weight.shape[0])
        return replace(self, turn=torch.stack([first - 1, second]))

    def delta_weight(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """Returns the change of the rows of `weight`."""
        matrix_sizes(tuple(weight.shape), self.name)
        return self._change(widened(weight).movedim(0, -1)).movedim(-1, 0)

    def delta_bias(self, bias: Float[Tensor, " O"] | None) -> Float[Tensor, " N"] | None:
        """Returns the change of the bias, which is turned like the rows."""
        return None if bias is None else self._change(widened(bias))

    def delta_output(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change of the output, without looking at weight or input."""
        axis = layer.channel_axis(y)
        return self._change(y.movedim(axis, -1)).movedim(-1, axis).to(x.dtype)

    def completed(self, origin: Origin, *, corrections: bool) -> "Completion[Road]":
        """Returns the adapter with the size of its groups."""
        del corrections
        group = origin.number("group_size")
        if group:
            return Completion(replace(self, group=int(group)))
        return Completion(self, assumed="RoAd in groups of 64, as in PEFT")

    @classmethod
    def initial(cls, layer: Layer, config: InitialConfig, generator: Generator) -> "Road":
        """Returns no turn and length 1, in groups of two."""
        del config, generator
        outputs, _ = matrix_sizes(layer.weight_shape, cls.name)
        return cls(torch.zeros(outputs // 2), torch.ones(outputs // 2), group=2)

    def _change(self, y: Float[Tensor, "... O"]) -> Float[Tensor, "... O"]:
        if self.turn is None:
            first, second = self._columns(y.shape[-1])
            growth = first - 1
        else:
            growth, second = self.turn
        growth, second = growth.to(y.dtype), second.to(y.dtype)
        upper, lower = y.reshape(*y.shape[:-1], -1, 2, self.group // 2).unbind(-2)
        partner = torch.stack([-lower, upper], -2).reshape(y.shape)
        return y * growth + partner * second

    def _columns(self, outputs: int) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
        """Returns what stands before an output and before its partner.

        Raises:
            ShapeError: The numbers do not fit the outputs.
        """
        count = self.theta.shape[0]
        if (
            self.group < 2
            or outputs % self.group
            or self.group % 2
            or count not in (outputs // 2, outputs, 2 * outputs)
        ):
            raise ShapeError(
                f"it has {count} angles and groups of {self.group}, the weight {outputs} outputs"
            )
        theta, length = widened(self.theta), widened(self.length)
        if count == 2 * outputs:
            (first, second), (long, wide) = (
                part.reshape(-1, 2, self.group).unbind(1) for part in (theta, length)
            )
            return (long * first.cos()).flatten(), (wide * second.sin()).flatten()
        if count == outputs // 2:
            theta, length = (
                part.reshape(-1, self.group // 2).repeat_interleave(2, dim=0).flatten()
                for part in (theta, length)
            )
        return length * theta.cos(), length * theta.sin()
