from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

class KSampler:
    SAMPLERS: Sequence[str]
    SCHEDULERS: Sequence[str]

def cond_cat(c_list: list[dict[str, Any]]) -> dict[str, Any]: ...
def encode_model_conds(
    model_function: Callable[..., Any],
    conds: list[dict[str, Any]],
    noise: Tensor,
    device: torch.device,
    prompt_type: str,
    **kwargs: Any,
) -> list[dict[str, Any]]: ...
