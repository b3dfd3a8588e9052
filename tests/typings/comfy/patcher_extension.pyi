from collections.abc import Callable
from typing import Any

from .model_patcher import ModelPatcher

class CallbacksMP:
    ON_CLONE: str
    ON_DETACH: str

class WrappersMP:
    CALC_COND_BATCH: str
    APPLY_MODEL: str

class PatcherInjection:
    def __init__(
        self,
        inject: Callable[[ModelPatcher], None],
        eject: Callable[[ModelPatcher], None],
    ) -> None: ...

def copy_nested_dicts(input_dict: dict[str, Any]) -> dict[str, Any]: ...
