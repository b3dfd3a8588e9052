"""Steps in float32 on bfloat16 parameters, rounded up or down by chance, so that none is lost.

bfloat16 has 8 significant bits: a step below 1/512 of a parameter rounds back to where it was, and
training stalls.

Source: Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import TrainingError
from ..rounding import round_stochastically


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
            rounded = round_stochastically(wide.detach(), narrow.dtype, generators[device])
            narrow.copy_(rounded)
