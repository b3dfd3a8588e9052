"""Rounding of float32 numbers to a narrower kind, up or down by chance, so that the mean is kept.

    P(up) = (x - lower) / (upper - lower)        so        E[rounded] = x

A change smaller than half the distance to the next number is lost when it is rounded to the nearest:
of many such changes together, by chance, the right share is kept.

Source: Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192.
"""

import torch
from torch import Tensor

EXPONENT = 0x7F800000
"""The bits of a float32 that hold its exponent: alone, they are the power of two below it."""


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Returns float32 values in a narrower dtype, each rounded to one of its two neighbours.

    Args:
        values: Of any shape; infinities and NaN stay what they are. What is beyond the largest number
            of `dtype` becomes that.
        dtype: Of fewer bits: bfloat16, float16, or float8.
        generator: On the device of the values.
    """
    numbers = torch.finfo(dtype)
    powers = (values.view(torch.int32) & EXPONENT).view(torch.float32)
    steps = powers.clamp_(min=numbers.smallest_normal).mul_(numbers.eps)
    scaled = values / steps
    lower = scaled.floor()
    chances = torch.rand(values.shape, generator=generator, device=values.device)
    # Compared and not added: a sum would be rounded itself, and could move what is exact.
    rounded = lower.add_(chances.lt_(scaled.sub_(lower))).mul_(steps)
    rounded = rounded.clamp_(numbers.min, numbers.max)
    return torch.where(values.isfinite(), rounded, values).to(dtype)
