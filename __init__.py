"""Any Adapter: LoRA-like adapters of every kind for ComfyUI, applied by forward hooks."""

from .nodes import AnyAdapterExtension

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> AnyAdapterExtension:
    """Returns the extension; called by the host."""
    return AnyAdapterExtension()
