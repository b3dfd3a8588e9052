"""The moving average of parameters over the steps, which often serves better than the last of them.

    average <- decay * average + (1 - decay) * parameter        at every `interval` steps from `start`

Source: Polyak and Juditsky 1992; OneTrainer offers it with decay 0.999 and interval 5.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError


class Average:
    """The average of some parameters, in float32 whatever they are: 4 bytes a parameter."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], decay: float, start: int = 0, interval: int = 1
    ) -> None:
        """Begins with the parameters as they are, or with those after `start` steps.

        Args:
            parameters: What is averaged.
            decay: Weight of the average at each update, from 0 to below 1.
            start: Steps before the first of them counts.
            interval: Steps from one update to the next.
        """
        self._parameters = tuple(parameters)
        self._decay = decay
        self._start = start
        self._interval = interval
        self._values: list[Tensor] | None = None
        self.update(0)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Takes in the parameters as they are after so many steps."""
        if steps < self._start:
            return
        if self._values is None:
            self._values = [one.detach().to(torch.float32, copy=True) for one in self._parameters]
        elif (steps - self._start) % self._interval == 0:
            for value, parameter in zip(self._values, self._parameters, strict=True):
                value.lerp_(parameter.float(), 1.0 - self._decay)

    @torch.no_grad()
    def put_in(self) -> None:
        """Writes the average into the parameters; before its start it leaves them as they are."""
        if self._values is not None:
            for value, parameter in zip(self._values, self._parameters, strict=True):
                parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """Returns what `load` takes: the very tensors, not copies."""
        return {"values": self._values}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over the state of another average of the same parameters.

        Raises:
            TrainingError: It is of other parameters.
        """
        values: list[Tensor] | None = state["values"]
        if values is not None:
            shapes = [value.shape for value in values]
            if shapes != [parameter.shape for parameter in self._parameters]:
                raise TrainingError(
                    "The saved average is of parameters of other shapes. Resume with the settings "
                    "that the training began with."
                )
            pairs = zip(values, self._parameters, strict=True)
            values = [value.to(parameter.device, copy=True) for value, parameter in pairs]
        self._values = values
