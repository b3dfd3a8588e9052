"""The factor on the loss that keeps gradients of a float16 model from vanishing.

It is halved when a gradient overflows and doubled after 2000 steps without: the rule and the numbers of
`torch.amp.GradScaler` (Micikevicius et al. 2018, arXiv 1710.03740).
"""

from dataclasses import dataclass
from typing import Any

GROWTH_INTERVAL = 2000


@dataclass
class LossScale:
    """The factor now, and for how many steps it has held."""

    factor: float = 65536.0
    good_steps: int = 0

    def update(self, *, overflowed: bool) -> None:
        """Takes in whether the gradients of a step overflowed."""
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.factor *= 0.5
        elif self.good_steps == GROWTH_INTERVAL:
            self.factor *= 2.0
            self.good_steps = 0

    def state(self) -> dict[str, Any]:
        """Returns what `load` takes."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over the state of another scale."""
        self.factor, self.good_steps = state["factor"], state["good_steps"]
