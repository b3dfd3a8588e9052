"""Steps in float32 on bfloat16 parameters, rounded up or down by chance, so that none is lost.

bfloat16 has 8 significant bits: a step below 1/512 of a parameter rounds back to where it was, and
training stalls. Rounding up with a probability of the distance travelled keeps the mean exact:

    P(up) = (x - lower) / (upper - lower)        so        E[rounded] = x

Source: Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import TrainingError

DROPPED_BITS = 16
"""By which a float32 is longer than a bfloat16; what is left of it is the bfloat16 itself."""


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Returns float32 values as bfloat16, each rounded to one of its two neighbours by chance.

    A number below the lowest kept bit is added to the magnitude, and what is dropped is cut off.

    Args:
        values: Of any shape; infinities and NaN stay what they are.
        generator: On the device of the values.
    """
    noise = torch.randint(
        1 << DROPPED_BITS,
        values.shape,
        generator=generator,
        device=values.device,
        dtype=torch.int32,
    )
    bits = (values.view(torch.int32) + noise) & -(1 << DROPPED_BITS)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)


class WideParameters:
    """What an optimiser steps: the parameters, or float32 stand-ins where they are bfloat16.

    Any optimiser works with it, since it sees float32 only; its state is of that too. A parameter of
    bfloat16 takes 2 bytes, its gradient 2, and their stand-ins 8 more while a step lasts; between
    steps those are empty. Nothing else keeps what was rounded off.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], seed: int) -> None:
        self.seed = seed
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._stand_ins: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in parameters:
            if parameter.dtype == torch.bfloat16:
                wide = nn.Parameter(torch.empty(0, device=parameter.device))
                self._pairs.append((parameter, wide))
                self._stand_ins[parameter] = wide
            elif parameter.dtype not in (torch.float32, torch.float64):
                raise TrainingError(
                    f"Parameters of {parameter.dtype} cannot be trained: their smallest steps are "
                    "lost. Train in float32, or in bfloat16, which is rounded by chance."
                )

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Returns what an optimiser steps in place of a parameter."""
        return self._stand_ins.get(parameter, parameter)

    @contextmanager
    def filled(self, step: int | None = None) -> Generator[None, None, None]:
        """Gives the stand-ins values and gradients, and takes the values back at the end.

        Args:
            step: Number of the step, by which values are rounded stochastically; None rounds them to
                the nearest, which leaves those that nobody changed exactly as they were.
        """
        for narrow, wide in self._pairs:
            wide.data = narrow.detach().float()
            wide.grad = None if narrow.grad is None else narrow.grad.float()
        try:
            yield
            self._take_back(step)
        finally:
            for _, wide in self._pairs:
                wide.data = wide.data.new_empty(0)
                wide.grad = None

    @torch.no_grad()
    def _take_back(self, step: int | None) -> None:
        generators: dict[torch.device, torch.Generator] = {}
        for narrow, wide in self._pairs:
            if step is None:
                narrow.copy_(wide)
                continue
            device = wide.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(self.seed + step)
            narrow.copy_(round_stochastically(wide.detach(), generators[device]))
