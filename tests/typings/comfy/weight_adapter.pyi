from collections.abc import Sequence
from typing import Any

from torch import Tensor

class WeightAdapterBase:
    name: str
    loaded_keys: Any
    weights: Sequence[Tensor]
