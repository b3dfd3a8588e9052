from typing import Any, Literal, overload

import torch
from torch import Tensor

def run_every_op() -> None: ...
@overload
def cast_bias_weight(
    s: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    bias_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]: ...
@overload
def cast_bias_weight(
    s: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    bias_dtype: torch.dtype,
    offloadable: Literal[True],
) -> tuple[Tensor, Tensor | None, Any]: ...
@overload
def cast_bias_weight(
    s: Any, input: Tensor, *, offloadable: Literal[True]
) -> tuple[Tensor, Tensor | None, Any]: ...
def uncast_bias_weight(
    s: Any, weight: Tensor, bias: Tensor | None, offload_stream: Any
) -> None: ...
