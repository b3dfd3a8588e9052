from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .patcher_extension import PatcherInjection

class ModelPatcher:
    model: nn.Module
    patches: dict[str, list[tuple[float, Any, float, Any, Any]]]
    is_injected: bool
    patches_uuid: object
    current_hooks: object
    load_device: torch.device
    offload_device: torch.device
    def __init__(
        self,
        model: nn.Module,
        load_device: torch.device,
        offload_device: torch.device,
        size: int = 0,
    ) -> None: ...
    def model_dtype(self) -> torch.dtype | None: ...
    def set_additional_models(self, key: str, models: list[ModelPatcher]) -> None: ...
    def add_wrapper_with_key(
        self, wrapper_type: str, key: str, wrapper: Callable[..., Any]
    ) -> None: ...
    def clone(self) -> ModelPatcher: ...
    def add_patches(
        self, patches: Mapping[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[str]: ...
    def get_attachment(self, key: str) -> Any: ...
    def set_attachments(self, key: str, attachment: Any) -> None: ...
    def get_injections(self, key: str) -> list[PatcherInjection] | None: ...
    def set_injections(self, key: str, injections: list[PatcherInjection]) -> None: ...
    def add_callback_with_key(
        self, call_type: str, key: str, callback: Callable[..., None]
    ) -> None: ...
