"""The dtype of the tensors of a file."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..adapters.dora import Dora
from ..errors import EditingError, counted, listed

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What adapters are saved in, by name."""
MAGNITUDES = tuple(suffix for role in Dora.roles for suffix in role.suffixes if "*" not in suffix)


def in_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors of a file in a dtype, and a sentence on what that lost; empty for nothing.

    Whole numbers keep theirs, as positions and sizes do, and so do single numbers, as alpha. DoRA's
    magnitudes are in float32: the change is the small difference of such a length and that of the
    base, and rounding the length may lose half of it.

    Args:
        tensors: Key -> tensor.
        dtype: Of floating point.

    Raises:
        EditingError: A number is too large for it.
    """
    made: dict[str, Tensor] = {}
    too_large: list[str] = []
    vanished, norms, errors = 0, [0.0], [0.0]
    for key, tensor in tensors.items():
        made[key] = tensor
        if not tensor.is_floating_point() or tensor.ndim == 0 or tensor.dtype == dtype:
            continue
        own = torch.float32 if key.endswith(MAGNITUDES) else dtype
        made[key] = rounded = tensor.to(own)
        exact = tensor.double()
        if not rounded.isfinite().all():
            too_large.append(f"{key} (up to {exact.abs().max().item():.3g})")
            continue
        vanished += int(((rounded == 0) & (exact != 0)).sum())
        norms.append(exact.norm().item())
        errors.append((rounded.double() - exact).norm().item())
    name = str(dtype).removeprefix("torch.")
    if too_large:
        raise EditingError(
            f"{counted(len(too_large), 'tensor')} cannot be saved as {name}, whose largest number is "
            f"{torch.finfo(dtype).max:.3g}: {listed(too_large, 3)}. Choose bfloat16 or float32."
        )
    return made, _loss(name, math.hypot(*errors), math.hypot(*norms), vanished)


def dtype_names(tensors: Mapping[str, Tensor]) -> str:
    """Returns the dtypes of the tensors of a file, leaving out single numbers such as alpha."""
    found = [str(one.dtype).removeprefix("torch.") for one in tensors.values() if one.ndim]
    return ", ".join(dict.fromkeys(found))


def _loss(name: str, error: float, norm: float, vanished: int) -> str:
    if not error:
        return ""
    gone = f" {counted(vanished, 'number')} became 0, being too small for it." if vanished else ""
    return f"Rounding to {name} moved the tensors by {100 * error / norm:.2g} %.{gone}"
