from typing import Any

import torch
from torch import Tensor

def cast_bias_weight(
    s: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    bias_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]: ...
