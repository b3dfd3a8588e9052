"""Sums of changes that get out of each other's way: TIES, DARE, and the largest numbers alone.

TIES keeps the largest numbers of each change, takes for every number of the weight the sign that
most of them have, and averages those of this sign. DARE drops numbers at random and makes the others
larger by as much.
Source: TIES, Yadav et al. 2023, arXiv 2306.01708, section 3; DARE, Yu et al. 2023, arXiv 2311.03099,
section 3; in the order of steps of PEFT (`peft.utils.merge_utils`): signs are counted before strengths
are applied.
Departs from PEFT at negative strengths: the sign that counts there is that of what is added.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..shapes import Float
from .seeds import generator_of
from .sums import total

Sign = Literal["total", "frequency"]
"""Whether the sign of the sum counts, or that of the greater number of changes."""


def largest(change: Float[Tensor, "O C"], density: float) -> Float[Tensor, "O C"]:
    """Returns the largest numbers of a change, the others zero.

    Args:
        change: The change.
        density: Share of the numbers that is kept, one at least; more where some are equal.
    """
    kept = max(int(density * change.numel()), 1)
    if density >= 1 or kept >= change.numel():
        return change
    sizes = change.abs()
    limit = sizes.flatten().kthvalue(change.numel() - kept + 1).values
    return torch.where(sizes >= limit, change, 0.0)


def at_random(change: Float[Tensor, "O C"], density: float, seed: str) -> Float[Tensor, "O C"]:
    """Returns some numbers of a change, times 1 / density, the others zero.

    Args:
        change: The change.
        density: Chance of every number to be kept.
        seed: Any text; the same one keeps the same numbers.
    """
    if density >= 1:
        return change
    kept = torch.rand(change.shape, generator=generator_of(seed)).to(change.device) < density
    return torch.where(kept, change / density, 0.0)


def agreed(
    changes: Sequence[Float[Tensor, "O C"]], strengths: Sequence[float], sign: Sign
) -> Float[Tensor, "O C"]:
    """Returns, for every number, the average of those changes that have the sign of most.

    Args:
        changes: What is left of each after pruning, one at least.
        strengths: Of each, positive; applied after the signs are counted.
        sign: What most means.
    """
    votes = total(one if sign == "total" else one.sign() for one in changes)
    elected = torch.where(votes >= 0, 1.0, -1.0).to(votes.dtype)
    found, count, part = (torch.zeros_like(votes) for _ in range(3))
    for one, strength in zip(changes, strengths, strict=True):
        torch.mul(one, elected, out=part).clamp_min_(0)  # above 0 where it has the elected sign
        found.add_(part, alpha=strength)
        count += part > 0
    return found.mul_(elected).div_(count.clamp_min_(1))


def weighted(
    changes: Sequence[Float[Tensor, "O C"]], strengths: Sequence[float]
) -> Float[Tensor, "O C"]:
    """Returns the sum of changes times their strengths."""
    return total(one * strength for one, strength in zip(changes, strengths, strict=True))
